"""Channels: what is said on one is found by each of its subscribers in its mailbox."""

import secrets

from ksi_agents.agents import Agents, Kept
from ksi_agents.events import AgentPublish, AgentPublished
from ksi_agents.reconcile import Reconciler
from ksi_agents.settings import AgentsSettings
from ksi_daemon.protocol import Conflict, Context

GETS = ("given", "waiting", "same")


class Channels:
    """Subscribes agents, and hands round what is published.

    Args:
        settings: The plugin's.
        agents: Keeps who is subscribed, and the messages.
        reconciler: Sees to it that a message is given.
    """

    def __init__(self, settings: AgentsSettings, agents: Agents, reconciler: Reconciler) -> None:
        self._settings = settings
        self._agents = agents
        self._reconciler = reconciler

    async def subscribe(self, agent: Kept, channel: str, *, wanted: bool) -> tuple[str, ...]:
        """Subscribe an agent, or end that; return its channels.

        Raises:
            Conflict: It has ended.
        """
        if wanted and agent.ended_at is not None:
            raise Conflict(f"the agent {agent.name} has ended ({agent.phase}): spawn another one")
        return await self._agents.subscribe(agent, channel, wanted=wanted)

    async def publish(self, request: AgentPublish, context: Context) -> AgentPublished:
        """Put a message into the mailboxes of all who are subscribed, asleep or not.

        Raises:
            Conflict: The message's id is that of another one.
        """
        message_id = request.message_id or secrets.token_hex(12)
        posted = await self._agents.publish(
            context,
            request.channel,
            message_id,
            prompt_of(request, context.agent),
            self._settings.max_mailbox,
        )
        for each in posted:
            if each.verdict == "given" and each.going is not None:
                self._reconciler.go_on(each.going, was="Ready")
        if any(each.verdict == "other" for each in posted):
            raise Conflict(
                f"the message_id {message_id} was that of another message to "
                f"{', '.join(each.to for each in posted if each.verdict == 'other')}"
            )
        return AgentPublished(
            channel=request.channel,
            message_id=message_id,
            agents=tuple(each.to for each in posted if each.verdict in GETS),
            refused=tuple(each.to for each in posted if each.verdict == "full"),
        )


def prompt_of(request: AgentPublish, sender: str | None) -> str:
    """Return what a subscriber is told: what was said, by whom, and where."""
    who = f"{sender} says" if sender is not None else "It is said"
    return f"{who} on the channel {request.channel}:\n\n{request.text}"
