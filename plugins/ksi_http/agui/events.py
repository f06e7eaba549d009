"""The events of AG-UI 1.0 that are sent, as https://docs.ag-ui.com has them."""

from typing import Any, Final, Literal

from msgspec import Struct

PROTOCOL: Final = "1.0"
STATUS: Final = "ksi.status"  # the names of what the protocol has no event for
VOID: Final = "ksi.void"


class AgUiEvent(
    Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel", tag_field="type"
):
    """What every event has; a sub-agent's bear the id of its run."""

    subagent_run_id: str | None = None


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The tokens that one model took."""

    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_input_tokens: int = 0


class Success(
    Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    rename="camel",
    tag_field="type",
    tag="success",
):
    """The run is over; the client is to answer the calls of its own tools."""

    pending_tool_call_ids: tuple[str, ...] = ()


class Cancelled(Struct, frozen=True, tag_field="type", tag="cancelled"):
    """Somebody ended the run."""


class Interrupt(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What a person is to say before the run can go on."""

    id: str
    reason: str
    message: str | None = None
    tool_call_id: str | None = None
    response_schema: dict[str, Any] | None = None
    subagent_run_id: str | None = None


class Interrupted(Struct, frozen=True, kw_only=True, tag_field="type", tag="interrupt"):
    """The run waits for a person."""

    interrupts: tuple[Interrupt, ...]


class Suspended(
    Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    rename="camel",
    tag_field="type",
    tag="suspended",
):
    """A sub-agent waits for a person."""

    interrupt_ids: tuple[str, ...] = ()


class RunStarted(AgUiEvent, frozen=True, kw_only=True, tag="RUN_STARTED"):
    """The first event of a run."""

    thread_id: str
    run_id: str
    protocol_version: str | None = None
    parent_run_id: str | None = None
    metadata: dict[str, Any] | None = None


class RunFinished(AgUiEvent, frozen=True, kw_only=True, tag="RUN_FINISHED"):
    """The last event of a run that did not fail."""

    thread_id: str
    run_id: str
    result: Any = None
    outcome: Success | Cancelled | Interrupted | None = None
    usage: tuple[Usage, ...] = ()


class RunError(AgUiEvent, frozen=True, kw_only=True, tag="RUN_ERROR"):
    """The last event of a run that failed."""

    message: str
    code: str | None = None
    usage: tuple[Usage, ...] = ()


class StepStarted(AgUiEvent, frozen=True, kw_only=True, tag="STEP_STARTED"):
    """A model is called."""

    step_name: str


class StepFinished(AgUiEvent, frozen=True, kw_only=True, tag="STEP_FINISHED"):
    """The model has answered."""

    step_name: str


class TextMessageStart(AgUiEvent, frozen=True, kw_only=True, tag="TEXT_MESSAGE_START"):
    """A message begins."""

    message_id: str
    role: Literal["assistant"]


class TextMessageContent(AgUiEvent, frozen=True, kw_only=True, tag="TEXT_MESSAGE_CONTENT"):
    """More of a message."""

    message_id: str
    delta: str


class TextMessageEnd(AgUiEvent, frozen=True, kw_only=True, tag="TEXT_MESSAGE_END"):
    """A message ends."""

    message_id: str


class ReasoningStart(AgUiEvent, frozen=True, kw_only=True, tag="REASONING_START"):
    """The model begins to think."""

    message_id: str


class ReasoningMessageStart(AgUiEvent, frozen=True, kw_only=True, tag="REASONING_MESSAGE_START"):
    """What it thinks begins."""

    message_id: str
    role: Literal["reasoning"]


class ReasoningMessageContent(
    AgUiEvent, frozen=True, kw_only=True, tag="REASONING_MESSAGE_CONTENT"
):
    """More of what it thinks."""

    message_id: str
    delta: str


class ReasoningMessageEnd(AgUiEvent, frozen=True, kw_only=True, tag="REASONING_MESSAGE_END"):
    """What it thinks ends."""

    message_id: str


class ReasoningEnd(AgUiEvent, frozen=True, kw_only=True, tag="REASONING_END"):
    """The model has thought."""

    message_id: str


class ToolCallStart(AgUiEvent, frozen=True, kw_only=True, tag="TOOL_CALL_START"):
    """The model calls a tool."""

    tool_call_id: str
    tool_call_name: str
    parent_message_id: str | None = None


class ToolCallArgs(AgUiEvent, frozen=True, kw_only=True, tag="TOOL_CALL_ARGS"):
    """More of a call's arguments."""

    tool_call_id: str
    delta: str


class ToolCallEnd(AgUiEvent, frozen=True, kw_only=True, tag="TOOL_CALL_END"):
    """A call's arguments are whole."""

    tool_call_id: str


class ToolCallResult(AgUiEvent, frozen=True, kw_only=True, tag="TOOL_CALL_RESULT"):
    """What came of a call."""

    message_id: str
    tool_call_id: str
    content: str
    role: Literal["tool"]
    metadata: dict[str, Any] | None = None


class StateSnapshot(AgUiEvent, frozen=True, kw_only=True, tag="STATE_SNAPSHOT"):
    """The whole state that agent and front end share."""

    snapshot: Any


class StateDelta(AgUiEvent, frozen=True, kw_only=True, tag="STATE_DELTA"):
    """What changes in the state, as RFC 6902 writes it."""

    delta: tuple[dict[str, Any], ...]


class MessagesSnapshot(AgUiEvent, frozen=True, kw_only=True, tag="MESSAGES_SNAPSHOT"):
    """All messages, where some that were sent are void."""

    messages: tuple[dict[str, Any], ...]


class Custom(AgUiEvent, frozen=True, kw_only=True, tag="CUSTOM"):
    """What the protocol has no event for."""

    name: str
    value: Any


class SubagentStarted(AgUiEvent, frozen=True, kw_only=True, tag="SUBAGENT_STARTED"):
    """An agent was asked by another one."""

    name: str
    parent_subagent_run_id: str | None = None
    parent_tool_call_id: str | None = None


class SubagentFinished(AgUiEvent, frozen=True, kw_only=True, tag="SUBAGENT_FINISHED"):
    """An agent has answered the one that asked it, or waits for a person."""

    result: Any = None
    outcome: Success | Suspended | None = None


class SubagentError(AgUiEvent, frozen=True, kw_only=True, tag="SUBAGENT_ERROR"):
    """An agent that was asked by another one has failed."""

    message: str
    code: str | None = None
