"""Has the turns of an orchestration: asks its members, waits, and writes down what they said.

A turn is asked for under a request id of its own, so that asking twice is asking once; whatever is
killed and when, the next one who asks gets the same turn.
"""

import asyncio
from typing import Final

from msgspec import Struct

from ksi_agents.events import AgentSpent, Spent
from ksi_completion.events import (
    CompletionAccepted,
    CompletionAsync,
    CompletionCancel,
    CompletionList,
    CompletionListed,
    CompletionResult,
    CompletionWait,
)
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Cancelled, Context, ErrorBody, KsiError
from ksi_orchestration.events import Utterance
from ksi_orchestration.play import Score, hearers
from ksi_orchestration.settings import OrchestrationSettings
from ksi_orchestration.store import Kept, Open, Store, Totals
from ksi_orchestration.telling import Telling
from ksi_postgres.patience import AWAY, until_there

ENDED: Final = ("succeeded", "failed", "cancelled")
GOING: Final = ("waiting", "running", "paused")
WAIT_S: Final = 25.0
MAX_TURNS: Final = 1000
BUDGETS: Final = ("cost_usd", "tokens", "requests", "tool_calls")
CUT: Final = "\n[… the rest of it is in the conversation {}]"


class Answer(Struct, frozen=True, kw_only=True):
    """What a member was asked within which turn, and what came of it."""

    run: str | None = None
    result: CompletionResult | None = None
    error: ErrorBody | None = None


class Turns:
    """Has the turns of orchestrations.

    Args:
        settings: The plugin's.
        store: Keeps what is said.
        bus: Has the turns.
        telling: Tells what was said.
    """

    def __init__(
        self, settings: OrchestrationSettings, store: Store, bus: Bus, telling: Telling
    ) -> None:
        self._settings = settings
        self._store = store
        self._bus = bus
        self._telling = telling

    async def have(self, kept: Kept, score: Score, moves: list[Open]) -> None:
        """Have turns, as many at once as the pattern allows, and write each down when it is over.

        Turns of one member are asked for in the order given, which is that of its conversation.
        """
        slots, order = asyncio.Semaphore(score.pattern.limits.parallel), asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            for each in moves:
                group.create_task(
                    self._have_one(kept, score, each, slots, order),
                    name=f"turn {kept.id} {each.move.key}",
                )

    async def _have_one(
        self, kept: Kept, score: Score, each: Open, slots: asyncio.Semaphore, order: asyncio.Lock
    ) -> None:
        async with slots:
            answer = await until_there(lambda: self._answer(kept, each, order))
            if answer is not None:
                await until_there(lambda: self._record(kept, score, each, answer))

    # -- asking ---------------------------------------------------------------------------------

    async def _answer(self, kept: Kept, each: Open, order: asyncio.Lock) -> Answer | None:
        """Ask a member, with one model after the other; ``None`` where it is not to be asked."""
        answer: Answer | None = None
        for number, model in enumerate(each.move.models or (None,)):
            async with order:
                answer = await self._begin(kept, each, number, model)
            if answer is None:
                return None
            if answer.run is not None:
                answer = await self._wait(kept, answer.run)
            if answer is None or answer.error is None or _is_last_word(kept, answer):
                return answer
        return answer

    async def _begin(self, kept: Kept, each: Open, number: int, model: str | None) -> Answer | None:
        """Have a turn accepted, unless none is to be begun; return which it is, or why not."""
        move = each.move
        if not each.is_begun and number == 0 and not await self._may_begin(kept, move.key):
            return None
        request = CompletionAsync(
            prompt=move.prompt,
            agent=move.agent,
            conversation_id=conversation_of(kept.id, move.member),
            model=model,
            output_schema=move.output_schema,
            timeout_s=each.timeout_s,
            request_id=request_of(kept.id, move.key, number),
        )
        try:
            accepted = await self._accept(request)
        except AWAY as error:
            if _is_too_deep(error):
                return Answer(error=error.body)
            raise
        except KsiError as error:
            return Answer(error=error.body)
        async with self._store.changing(kept.tenant, None, kept.id) as change:
            await change.note_run(move.key, accepted.run_id)
            is_over = change.kept.has_ended
        self._telling.stirred(kept.tenant, kept.id)
        if is_over:
            await self.cancel(accepted.run_id)
            return None
        return Answer(run=accepted.run_id)

    async def _may_begin(self, kept: Kept, key: str) -> bool:
        async with self._store.changing(kept.tenant, None, kept.id) as change:
            return not change.kept.is_held and await change.begin_move(key)

    async def _accept(self, request: CompletionAsync) -> CompletionAccepted:
        accepted: CompletionAccepted = await self._bus.request(
            "completion:async", request, result_type=CompletionAccepted
        )
        return accepted

    async def _wait(self, kept: Kept, run: str) -> Answer | None:
        """Wait for a turn's end; ``None`` where the orchestration has ended before it."""
        request = CompletionWait(run_id=run, timeout_s=WAIT_S)
        while True:
            try:
                result: CompletionResult = await self._bus.request(
                    "completion:wait", request, result_type=CompletionResult
                )
            except AWAY:
                raise
            except KsiError as error:
                return Answer(run=run, error=error.body)
            if result.status in ENDED:
                return Answer(run=run, result=result, error=_error_of(result))
            now = await self._store.find(kept.tenant, None, kept.id)
            if now is None or now.has_ended:
                await self.cancel(run)
                return None

    # -- writing down ---------------------------------------------------------------------------

    async def _record(self, kept: Kept, score: Score, each: Open, answer: Answer) -> None:
        """Keep what a member said as the next utterance, once."""
        said = self._utterance(score, kept, each, answer)
        async with self._store.changing(kept.tenant, None, kept.id) as change:
            is_open = await change.finish_move(each.move.key)
            if change.kept.has_ended or not is_open:
                return
            if said.error is not None and _is_spent(kept, answer):
                await change.spend(said.error)
            said = await change.utter(said, key=each.move.key)
        self._telling.said(change.kept, said)

    def _utterance(self, score: Score, kept: Kept, each: Open, answer: Answer) -> Utterance:
        move, result = each.move, answer.result
        has_said = answer.error is None and result is not None
        return Utterance(
            number=0,
            stage=move.stage,
            round=move.round,
            member=move.member,
            agent=move.agent,
            to=hearers(score, move.member) if has_said else (),
            text=self._bounded(kept, move.member, result.text) if has_said and result else "",
            item=move.item,
            run_id=answer.run,
            model=None if result is None else result.model,
            tokens=0 if result is None else _tokens(result),
            cost_usd=None if result is None else result.cost_usd,
            error=answer.error,
            after=move.after,
        )

    def _bounded(self, kept: Kept, member: str, text: str) -> str:
        most = self._settings.max_said_characters
        if len(text) <= most:
            return text
        return text[:most] + CUT.format(conversation_of(kept.id, member))

    async def totals(self, kept: Kept) -> Totals:
        """Return what all of it has taken, with whatever agents were asked by its members."""
        with acting_as(Context("", tenant=kept.tenant, user=kept.context.user)):
            request = AgentSpent(run_id=kept.told.run_id)
            spent: Spent = await self._bus.request("agent:spent", request, result_type=Spent)
        return Totals(tokens=spent.tokens, cost_usd=spent.cost_usd)

    # -- calling off ----------------------------------------------------------------------------

    async def cancel(self, run: str, reason: str = "the orchestration has ended") -> None:
        """End a turn, if it goes on."""
        try:
            await self._bus.request(
                "completion:cancel", CompletionCancel(run_id=run, reason=reason)
            )
        except AWAY:
            raise
        except KsiError:
            return  # its conversation was deleted

    async def call_off(self, kept: Kept, moves: list[Open]) -> None:
        """End the turns of an orchestration that has ended, also those that are not known yet."""
        for each in moves:
            if each.run is not None:
                await self.cancel(each.run)
            elif each.is_begun:
                await self._cancel_unknown(kept, each)
        totals = await self.totals(kept)
        async with self._store.changing(kept.tenant, None, kept.id) as change:
            await change.finish_moves()
            await change.count_all(totals)

    async def _cancel_unknown(self, kept: Kept, each: Open) -> None:
        """End a turn that was asked for by somebody who died before he could note it."""
        request = CompletionList(
            conversation_id=conversation_of(kept.id, each.move.member),
            status=GOING,
            limit=MAX_TURNS,
        )
        listed: CompletionListed = await self._bus.request(
            "completion:list", request, result_type=CompletionListed
        )
        for turn in listed.turns:
            if turn.request_id.startswith(request_of(kept.id, each.move.key)):
                await self.cancel(turn.run_id)


def conversation_of(which: str, member: str) -> str:
    """Return the conversation in which a member has its turns."""
    return f"orchestration:{which}:{member}"


def request_of(which: str, key: str, number: int = 0) -> str:
    """Return the request id of a turn; ``number`` counts the models that were tried before."""
    return f"{which}:{key}" if number == 0 else f"{which}:{key}:{number + 1}"


def _error_of(result: CompletionResult) -> ErrorBody | None:
    if result.status == "succeeded":
        return None
    return result.error or Cancelled("the turn was cancelled").body


def _tokens(result: CompletionResult) -> int:
    return result.usage.input_tokens + result.usage.output_tokens


def _is_too_deep(error: KsiError) -> bool:
    return (error.details or {}).get("kind") == "depth"


def _is_spent(kept: Kept, answer: Answer) -> bool:
    """Say whether a turn failed since the orchestration, or who started it, may spend no more."""
    details = {} if answer.error is None else answer.error.details or {}
    whose = details.get("run_id")
    return details.get("kind") in BUDGETS and whose is not None and whose != answer.run


def _is_last_word(kept: Kept, answer: Answer) -> bool:
    """Say whether another model would not do better."""
    cancelled = answer.result is not None and answer.result.status == "cancelled"
    return cancelled or answer.run is None or _is_spent(kept, answer)
