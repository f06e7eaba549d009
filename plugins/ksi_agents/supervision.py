"""Starts agents: says what each may call, asks it what it must know, and counts its failures."""

import asyncio
from collections.abc import Iterable
from typing import Final

from ksi_agents.agents import Agents, Kept
from ksi_agents.definition import Definition, Probe
from ksi_agents.definitions import Definitions
from ksi_agents.permits import Permits
from ksi_agents.probes import Question, question_of
from ksi_agents.reconcile import AWAY, Reconciler
from ksi_agents.settings import AgentsSettings
from ksi_agents.waking import Waking
from ksi_completion.events import (
    CompletionAccepted,
    CompletionAsync,
    CompletionCancel,
    CompletionResult,
    CompletionWait,
    ConversationDelete,
)
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Conflict, Context, KsiError, NotFound

FORBIDDEN_AT_ONCE: Final = 16
START_TIMES: Final = 20
START_AGAIN_S: Final = 0.5


class Supervision:
    """Starts agents.

    Args:
        settings: The plugin's.
        agents: Keeps them.
        definitions: Know which names are theirs.
        permits: Says what they may call.
        waking: Gives them work by themselves.
        bus: Asks them.
        reconciler: Sees to what comes after a start.
    """

    def __init__(
        self,
        settings: AgentsSettings,
        agents: Agents,
        definitions: Definitions,
        permits: Permits,
        waking: Waking,
        bus: Bus,
        reconciler: Reconciler,
    ) -> None:
        self._settings = settings
        self._agents = agents
        self._definitions = definitions
        self._permits = permits
        self._waking = waking
        self._bus = bus
        self._reconciler = reconciler

    async def start(self, agent: Kept) -> None:
        """Start an agent; where that fails it is started again later, or not any more."""
        started: Kept | None = agent
        if agent.phase == "Pending":
            started = await self._agents.begin_start(agent)
        if started is None:  # another start has overtaken this one
            return
        self._reconciler.tell(started, agent.phase)
        definition = await self._agents.definition_of(started, started.tenant)
        for left in reversed(range(START_TIMES)):
            try:
                why_not, message = await self._try(started, definition)
                break
            except AWAY as error:
                if not left:
                    raise
                await asyncio.sleep(error.retry_after_s or START_AGAIN_S)
        probed = "Passed" if definition.probes else "NoProbes"
        going = await self._agents.end_start(started, why_not, message, probed)
        if going is not None:
            self._reconciler.go_on(going, was="Starting" if going.given is None else "Ready")

    async def _try(self, agent: Kept, definition: Definition) -> tuple[str | None, str]:
        """Return why a start fails, if it does.

        Raises:
            Unavailable: What it needs is not there just now.
        """
        try:
            await self._permits.say(agent.tenant, agent.name, definition, agent.parent)
            await self._waking.keep(agent, definition)
            for index, probe in enumerate(definition.probes):
                message = await self._probe(agent, definition, probe, index)
                if message:
                    return "ProbeFailed", message
        except AWAY:
            raise
        except KsiError as error:
            return "StartFailed", error.message
        return None, ""

    async def forbid(self, agents: Iterable[Kept]) -> None:
        """Have agents that end woken no more, and forgotten by the gate unless they are defined."""
        left = iter(agents)

        async def forbid_some() -> None:
            for agent in left:
                await self._waking.drop(agent)
                if await self._definitions.find(agent.tenant, agent.name) is None:
                    await self._permits.forget(agent.tenant, agent.name)

        async with asyncio.TaskGroup() as together:
            for _ in range(FORBIDDEN_AT_ONCE):
                together.create_task(forbid_some(), name="forbid")

    # -- whether it is ready --------------------------------------------------------------------

    async def _probe(
        self, agent: Kept, definition: Definition, probe: Probe, index: int
    ) -> str | None:
        """Ask an agent what a probe asks, apart from its conversation; return what was wrong."""
        name = f"probe-{agent.id}-{agent.starts}-{index}"
        question = question_of(probe, name)
        timeout_s = probe.timeout_s or self._settings.probe_timeout_s
        with acting_as(Context("", tenant=agent.tenant, user=agent.owner)):
            result = await self._ask(agent, definition, name, question, timeout_s)
            await self._tidy(result)
        said = result.output if definition.output is not None else result.text
        if result.status == "succeeded" and question.is_answered_by(said):
            return None
        if result.status == "succeeded":
            return (
                f"the probe {probe.kind} expected {_shortened(question.expected)} and got "
                f"{_shortened(str(said))}"
            )
        if result.error is not None:
            return f"the probe {probe.kind} failed: {result.error.message}"
        return f"the probe {probe.kind} was not answered in {timeout_s:g} s (timeout_s)"

    async def _ask(
        self,
        agent: Kept,
        definition: Definition,
        name: str,
        question: Question,
        timeout_s: float,
    ) -> CompletionResult:
        turn = CompletionAsync(
            prompt=question.prompt,
            agent=agent.name,
            conversation_id=name,
            output_schema=None if definition.output is None else {"type": "string"},
            timeout_s=timeout_s,
            request_id=name,  # another daemon that starts it as well asks the same
        )
        accepted = await self._bus.request("completion:async", turn, result_type=CompletionAccepted)
        wait = CompletionWait(run_id=accepted.run_id, timeout_s=min(timeout_s + 1.0, 3600.0))
        result: CompletionResult = await self._bus.request(
            "completion:wait", wait, result_type=CompletionResult
        )
        return result

    async def _tidy(self, result: CompletionResult) -> None:
        """Leave nothing of a probe behind, as far as that can be helped."""
        try:
            if result.ended_at is None:
                cancel = CompletionCancel(run_id=result.run_id, reason="the probe took too long")
                await self._bus.request("completion:cancel", cancel)
            gone = ConversationDelete(conversation_id=result.conversation_id)
            await self._bus.request("conversation:delete", gone)
        except (*AWAY, Conflict, NotFound):
            pass  # it is of no harm


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
