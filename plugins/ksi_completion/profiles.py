"""Asks who an agent is, for its turns."""

import msgspec

from ksi_completion.events import AgentProfile, CompletionAgent
from ksi_daemon.bus import Bus
from ksi_daemon.protocol import Unavailable


class Profiles:
    """Finds what is declared of agents, by whichever plugin knows them.

    Args:
        bus: Asks.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def find(self, asked: CompletionAgent) -> AgentProfile | None:
        """Return what is declared of an agent; ``None`` where its name is a mere label.

        Raises:
            Unavailable: Who knows agents does not answer: a turn without what bounds it is no
                smaller harm than none.
            NotFound: The version that is asked for is gone.
        """
        for answer in await self._bus.gather("completion:agent", asked):
            if answer.error is not None:
                raise Unavailable(
                    f"what the agent {asked.agent} is can't be told just now: "
                    f"{answer.plugin}: {answer.error.message}",
                    retry_after_s=answer.error.retry_after_s or 1.0,
                )
            if answer.result is not None:
                return msgspec.convert(answer.result, AgentProfile)
        return None
