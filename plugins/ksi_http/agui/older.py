"""What front ends see of sub-agents that know none: events of their own, beside the run's."""

from typing import Any

from ksi_http.agui import events as a


class Older:
    """Tells what the agents within a run say as ``CUSTOM`` events.

    They are ``child_content``, ``child_tool_start`` and ``child_tool_result``, with the agent.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def told(self, event: a.AgUiEvent) -> a.AgUiEvent | None:
        """Return what such a front end is told instead; nothing of most."""
        if isinstance(event, a.SubagentStarted):
            self._names[event.subagent_run_id or ""] = event.name
            return None
        if event.subagent_run_id is None:
            return event
        agent = self._names.get(event.subagent_run_id, "agent")
        if isinstance(event, a.TextMessageContent):
            return _custom("child_content", agent_name=agent, content=event.delta)
        if isinstance(event, a.ToolCallStart):
            return _custom(
                "child_tool_start",
                agent_name=agent,
                tool_name=event.tool_call_name,
                tool_call_id=event.tool_call_id,
            )
        if isinstance(event, a.ToolCallResult):
            return _custom(
                "child_tool_result",
                agent_name=agent,
                tool_call_id=event.tool_call_id,
                result=event.content,
            )
        if isinstance(event, a.SubagentError):
            return _custom("child_content", agent_name=agent, content=f"(failed: {event.message})")
        return None


def _custom(name: str, **value: Any) -> a.Custom:
    return a.Custom(name=name, value=value)
