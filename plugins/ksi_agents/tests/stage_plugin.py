"""A plugin whose workflow has agents speak, and bounds what that takes."""

from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct

from ksi_agents.events import AgentAnswered, AgentAsk
from ksi_completion.events import (
    CompletionAccepted,
    CompletionAsync,
    CompletionResult,
    CompletionWait,
)
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import KsiError
from ksi_models.api import text_of
from ksi_models.events import Message, ModelCall, ModelResponse, TextPart
from ksi_workflows.api import Workflows, current_run, step, workflow


class Play(Struct, frozen=True):
    """Who is to say what, in which order, and what all of it may take."""

    lines: list[tuple[str, str]]
    limits: dict[str, Any]
    above: str | None = None


class Stage:
    """Has plays performed."""

    def __init__(self, plugin: Plugin) -> None:
        self._bus = plugin.bus

    @workflow("play")
    async def play(self, args: Play) -> list[str]:
        """Perform a play."""
        run = current_run().id
        await self.bound(run, args)
        return [
            await self.speak(who, what, f"{run}.{number}")
            for number, (who, what) in enumerate(args.lines)
        ]

    @step
    async def bound(self, run: str, play: Play) -> None:
        """Bound what the play takes."""
        asked = {"run_id": run, "limits": play.limits, "parent_run_id": play.above}
        await self._bus.request("agent:limit", asked)

    @step
    async def speak(self, who: str, what: str, number: str) -> str:
        """Have somebody speak: an agent, nobody in particular, or the bare model."""
        try:
            if who == "model":
                return await self._call(what)
            if who == "nobody":
                return await self._turn(what, number)
            asked = AgentAsk(agent=who, prompt=what, message_id=number)
            answer: AgentAnswered = await self._bus.request(
                "agent:ask", asked, result_type=AgentAnswered
            )
        except KsiError as error:
            return error.message
        return answer.text if answer.error is None else answer.error.message

    async def _call(self, what: str) -> str:
        call = ModelCall(messages=(Message("user", (TextPart(what),)),))
        async for chunk in self._bus.stream("model:call", call):
            if isinstance(chunk, ModelResponse):
                return text_of(chunk.message)
        return ""

    async def _turn(self, what: str, number: str) -> str:
        asked = CompletionAsync(prompt=what, request_id=number)
        accepted = await self._bus.request(
            "completion:async", asked, result_type=CompletionAccepted
        )
        wait = CompletionWait(run_id=accepted.run_id)
        result: CompletionResult = await self._bus.request(
            "completion:wait", wait, result_type=CompletionResult
        )
        return result.text if result.error is None else result.error.message


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Require what a play needs."""
    return PluginInfo(requires=("workflows", "completion", "agents"))


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Have plays performed while the daemon runs."""
    plugin.service(Workflows).register(Stage(plugin).play)
    yield
