"""Has turns: calls the model, calls the tools that it asks for, until there is an answer."""

import asyncio
import itertools
import logging
from contextlib import aclosing, suppress
from typing import Any, Final, Literal

import msgspec

from ksi_completion import tokens
from ksi_completion.acceptance import Acceptance
from ksi_completion.events import (
    CompletionAgent,
    CompletionResult,
    StreamStatus,
    StreamStep,
    StreamText,
    StreamThinking,
    StreamToolCall,
    StreamToolResult,
    TurnStatus,
)
from ksi_completion.messages import body_of, decode_parts
from ksi_completion.outputs import MISFIT, given_up, misfit_of, objection
from ksi_completion.profiles import Profiles
from ksi_completion.prompts import Prompts
from ksi_completion.relays import DIED, Relays
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import Commit, Committed, Lost, Store, result_of
from ksi_completion.streams import Hub, Kind
from ksi_completion.tooling import Held, Outcome, Tooling
from ksi_completion.work import (
    Acted,
    Stopped,
    Thought,
    Work,
    added,
    check_answer,
    check_step,
    groups_of,
    marks_of,
)
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import (
    Busy,
    Cancelled,
    ErrorBody,
    Failed,
    KsiError,
    TimedOut,
    Unavailable,
)
from ksi_models.events import (
    Message,
    ModelChunk,
    ModelResponse,
    ModelRestarted,
    ModelWaiting,
    Part,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    ToolSchema,
)
from ksi_postgres.news import News, Waiters
from ksi_tools.events import ToolCalled
from ksi_workflows.api import Run, current_run, receive, step, workflow

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = (15.0, 60.0, 240.0, 600.0)  # after pauses for calls that were begun
TRANSIENT: Final = (Unavailable, Busy, TimedOut)
TEXTS: Final[dict[type[Any], Kind]] = {TextPart: StreamText, ThinkingPart: StreamThinking}


class Turns:
    """The turns that are at work in this daemon.

    Args:
        settings: The plugin's.
        store: Keeps them.
        bus: Calls models and tools.
        news: Tells other daemons of their ends.
        prompts: Makes what the model is asked.
        profiles: Knows who the agents are.
        acceptance: Begins the next turn of a conversation.
        settled: Set once every plugin has started, with the tools that it brings.
    """

    def __init__(
        self,
        settings: CompletionSettings,
        store: Store,
        bus: Bus,
        news: News,
        prompts: Prompts,
        profiles: Profiles,
        acceptance: Acceptance,
        settled: asyncio.Event,
    ) -> None:
        self.hub = Hub(settings.stream_buffer_bytes)
        self.waiters = Waiters()
        self.families = Waiters()
        self.relays = Relays(settings, store, self.hub, news)
        self._settings = settings
        self._store = store
        self._bus = bus
        self._news = news
        self._prompts = prompts
        self._profiles = profiles
        self._acceptance = acceptance
        self._settled = settled
        self._tooling = Tooling(bus, settings.patience_s)
        self._works: dict[str, Work] = {}
        news.on("cancel", self._cancelled)
        news.on("ended", self.waiters.wake)
        news.on_missed(self.waiters.wake_all)
        news.on("child", self.families.wake)
        news.on_missed(self.families.wake_all)

    def is_expected(self, run: str) -> bool:
        """Say whether a turn is about to begin here."""
        return run in self._acceptance.expected

    def find(self, run: str) -> Work | None:
        """Return a turn that is at work here."""
        return self._works.get(run)

    def _cancelled(self, run: str) -> None:
        work = self._works.get(run)
        if work is not None:
            work.stop("cancelled")

    # -- the workflow ---------------------------------------------------------------------------

    @workflow("turn")
    async def turn(self) -> None:
        """Have a turn, from its first model call to its end."""
        run = current_run()
        work = self._works[run.id] = Work(run.id, run.tenant, self.hub.begin(run.id))
        self._acceptance.expected.discard(run.id)
        self.waiters.wake(run.id)
        try:
            await self._settled.wait()
            with self.relays.at_work(work):
                await self._have(run)
        except asyncio.CancelledError:
            if run.interruption == "cancelled":  # not by us: somebody ended the run itself
                await asyncio.shield(self._give_up(run, Cancelled("the run was cancelled")))
            raise
        except Lost:
            raise
        except Exception as error:
            log.exception("a turn broke", extra={"run": run.id})
            await self._give_up(run, error)
        finally:
            if self._works.get(run.id) is work:
                del self._works[run.id]
            self.hub.drop(work.live)

    async def _have(self, run: Run) -> None:
        number = 0
        while True:
            number += 1
            thought = await self.think(run.tenant, run.id, number)
            if thought.is_over:
                return
            for group in thought.groups:
                refused = tuple(index for index in group if index in thought.refused)
                if await self._act(run, number, group, refused):
                    return

    async def _act(
        self, run: Run, number: int, group: tuple[int, ...], refused: tuple[int, ...]
    ) -> bool:
        """Make some calls, however long a person takes to decide; say whether the turn is over."""
        pauses = itertools.chain(LOOK_AGAIN_S, itertools.repeat(LOOK_AGAIN_S[-1]))
        while True:
            acted = await self.act(run.tenant, run.id, number, group, refused)
            if acted.is_over or acted.waits_on is None:
                return acted.is_over
            await self._load(run.tenant, run.id, number)
            timeout_s = next(pauses) if acted.looks_again else None
            with suppress(TimedOut):
                await receive(f"tool:{acted.waits_on}", timeout_s=timeout_s)

    async def _give_up(self, run: Run, error: Exception) -> None:
        body = error.body if isinstance(error, KsiError) else ErrorBody(Failed.code, "a turn broke")
        await self.give_up(run.tenant, run.id, body)

    async def give_up(self, tenant: str, run: str, error: ErrorBody) -> None:
        """End a turn at which nobody is any more."""
        row = await self._store.state_of(tenant, run)
        if row is None or row["verdict"] != "ok":
            return
        work = self._works.get(run) or Work(run, tenant, self.hub.begin(run))
        work.read(row)
        await self._read_step(work, None)
        is_cancelled = row["stopping"] is not None or error.code == Cancelled.code
        await self._end(work, "cancelled" if is_cancelled else "failed", error)
        if run not in self._works:
            self.hub.drop(work.live)

    # -- thinking -------------------------------------------------------------------------------

    @step(name="think")
    async def think(self, tenant: str, run: str, number: int) -> Thought:
        """Have the model answer once, and keep what it said."""
        work = self._works[run]
        row = await self._store.open_step(tenant, run, number)
        if row["verdict"] == "over":
            await self._note_end(work)
            return Thought(is_over=True)
        work.read(row)
        work.step, work.calls, work.done = number, (), set()
        work.live.open_step(row["units"], row["attempt"], DIED if row["is_again"] else "")
        try:
            await self._identify(work)
            async with work.bounded(self._settings.max_turn_s):
                if row["verdict"] == "done":
                    return await self._thought(work, decode_parts(row["done_parts"]))
                check_step(work, self._settings)
                response = await self._ask(work)
        except Stopped:
            return await self._keep_the_rest(work)
        except KsiError as error:
            await self._end(work, "failed", error.body)
            return Thought(is_over=True)
        return await self._keep(work, response)

    async def _identify(self, work: Work) -> None:
        """Find out who has the turn, and say within which run it is."""
        is_declared = work.agent_version is not None
        if work.is_identified or not (is_declared or work.parent_run):
            return
        asked = CompletionAgent(
            agent=work.row["agent"] if is_declared else "",
            version=work.agent_version,
            run_id=work.run,
            parent_run_id=work.parent_run,
        )
        with acting_as(work.context):
            work.profile = await self._profiles.find(asked)
        work.is_identified = True

    async def _ask(self, work: Work) -> ModelResponse:
        """Call the model until it answers, for a while."""
        settings, loop = self._settings, asyncio.get_running_loop()
        until = loop.time() + settings.patience_s
        with acting_as(work.context):
            while True:
                try:
                    if work.step == 1 and work.permit is not None and work.row["made_conversation"]:
                        await self._tooling.permit(work)
                    return await self._answer(work, await self._tooling.offered_to(work))
                except TRANSIENT as error:
                    delay_s = max(settings.retry_s, error.retry_after_s or 0.0)
                    if loop.time() + delay_s > until:
                        raise
                    await self._anew(work, error.message)
                    work.live.show(
                        StreamStatus(waits_for="retry", message=error.message, delay_s=delay_s)
                    )
                    await asyncio.sleep(delay_s)

    async def _answer(self, work: Work, schemas: tuple[ToolSchema, ...]) -> ModelResponse:
        live, response = work.live, None
        built = await self._prompts.build(work, schemas)
        async with aclosing(self._bus.stream("model:call", built.call)) as chunks:
            async for chunk in chunks:
                kind = type(chunk)
                if kind is TextDelta:
                    live.say(StreamText, chunk.text)
                elif kind is ThinkingDelta:
                    live.say(StreamThinking, chunk.text)
                else:
                    response = await self._other(work, chunk) or response
        if response is None:
            raise Failed("the model's answer had no end")
        self._prompts.observe(built, response)
        await self._match(work, response.message)
        return response

    async def _other(self, work: Work, chunk: Any) -> ModelResponse | None:
        if isinstance(chunk, dict):  # a model that is served from elsewhere
            chunk = msgspec.convert(chunk, ModelChunk)
        if isinstance(chunk, ModelResponse):
            return chunk
        if isinstance(chunk, TextDelta | ThinkingDelta):
            work.live.say(
                StreamText if isinstance(chunk, TextDelta) else StreamThinking, chunk.text
            )
        elif isinstance(chunk, ModelRestarted):
            await self._anew(work, chunk.why)
        elif isinstance(chunk, ModelWaiting):
            work.live.show(
                StreamStatus(waits_for=chunk.reason, message=chunk.message, delay_s=chunk.delay_s)
            )
        return None

    async def _anew(self, work: Work, why: str) -> None:
        """Take back what was streamed of a step."""
        if work.live.end > work.live.base:
            work.live.restart(await self._store.begin_anew(work.tenant, work.run), why)

    async def _match(self, work: Work, message: Message) -> None:
        """See to it that what was streamed is what will be kept."""
        live = work.live
        said, kept = live.said(), texts_of(message.parts)
        if said == kept:
            return
        if said:
            await self._anew(work, "the answer came whole")
        for kind, text in kept:
            live.say(kind, text)

    async def _keep(self, work: Work, response: ModelResponse) -> Thought:
        live, message = work.live, response.message
        work.calls = tuple(part for part in message.parts if isinstance(part, ToolCallPart))
        for index, part in enumerate(work.calls):
            live.add(
                StreamToolCall(
                    attempt=live.attempt,
                    offset=live.end,
                    call_id=work.call_id(index),
                    name=part.name,
                    arguments=part.arguments,
                )
            )
        live.add(
            StreamStep(
                attempt=live.attempt,
                offset=live.end,
                model=response.model,
                usage=response.usage,
                cost_usd=response.cost_usd,
            )
        )
        marks = tuple(marks_of(message))
        trouble = check_answer(work, marks, self._settings)
        misfit = self._misfit(work, message.parts) if trouble is None else None
        if misfit is not None:
            marks = (*marks, MISFIT)
        is_end = not work.calls and trouble is None and misfit is None
        commit = Commit(
            step=work.step,
            parts=message.parts,
            body=body_of(message.parts),
            tokens=tokens.of_parts(message.parts),
            units=live.end - live.base,
            attempt=live.attempt,
            model=response.model,
            usage=response.usage,
            cost_usd=response.cost_usd,
            is_model_call=True,
            total_usage=added(work.usage, response.usage),
            calls=len(work.calls),
            marks=marks,
            ends_as="succeeded" if is_end else None,
        )
        committed = await self._store.commit(work.tenant, work.run, commit)
        if trouble is not None and committed.verdict != "over":
            await self._end(work, "failed", trouble.body)
            return Thought(number=committed.number, is_over=True)
        if misfit is not None and committed.verdict == "ok":
            return await self._object(work, misfit, work.row["marks"].count(MISFIT))
        return await self._after(work, committed)

    def _misfit(self, work: Work, parts: tuple[Part, ...]) -> str | None:
        return None if work.calls else misfit_of(work.output_schema, parts)

    async def _object(self, work: Work, misfit: str, before: int) -> Thought:
        """Tell the model that its answer does not fit, unless it was told too often before."""
        if before >= self._settings.output_retries:
            await self._end(work, "failed", given_up(misfit, before).body)
            return Thought(is_over=True)
        parts = objection(misfit)
        said = Commit(
            step=work.step, place=1, role="user", parts=parts, tokens=tokens.of_parts(parts)
        )
        return await self._after(work, await self._store.commit(work.tenant, work.run, said))

    async def _after(self, work: Work, committed: Committed) -> Thought:
        """Go on with what a step's commit says."""
        if committed.verdict == "stopping":
            work.stop("cancelled")
            await self._end(work, "cancelled", _cancelled(work))
        elif committed.verdict in ("ended", "over"):
            await self._note_end(work, committed)
        else:
            return self._to_do(work, committed.number)
        return Thought(number=committed.number, is_over=True)

    async def _thought(self, work: Work, parts: tuple[Part, ...]) -> Thought:
        """Return what a step left that was kept, and not recorded."""
        work.calls = tuple(part for part in parts if isinstance(part, ToolCallPart))
        if work.calls:
            with acting_as(work.context):
                await self._tooling.offered_to(work)
            return self._to_do(work, None)
        misfit = self._misfit(work, parts)
        if misfit is not None:
            return await self._object(work, misfit, work.row["marks"].count(MISFIT) - 1)
        committed = await self._store.commit(work.tenant, work.run, Commit(ends_as="succeeded"))
        return await self._after(work, committed)

    def _to_do(self, work: Work, number: int | None) -> Thought:
        groups = tuple(groups_of(work.calls, work.tools, self._settings.max_parallel_tools))
        refused = (index for index, call in enumerate(work.calls) if call.name not in work.tools)
        return Thought(number=number, groups=groups, refused=tuple(refused))

    async def _keep_the_rest(self, work: Work) -> Thought:
        """End a cancelled turn with what it had said: it is what was seen."""
        live = work.live
        parts = tuple(TextPart(text) for kind, text in live.said() if kind is StreamText)
        commit = None
        if parts:
            commit = Commit(
                step=work.step,
                parts=parts,
                body=body_of(parts),
                tokens=tokens.of_parts(parts),
                units=live.end - live.base,
                attempt=live.attempt,
                ends_as="cancelled",
                error=_cancelled(work),
            )
        await self._end(work, "cancelled", _cancelled(work), commit)
        return Thought(is_over=True)

    # -- acting ---------------------------------------------------------------------------------

    @step(name="act")
    async def act(
        self,
        tenant: str,
        run: str,
        number: int,
        group: tuple[int, ...],
        refused: tuple[int, ...],
    ) -> Acted:
        """Make some of the model's calls at once, and keep what came of them."""
        work = await self._load(tenant, run, number)
        if work.is_paused:
            work.is_paused = False
            verdict = await self._store.set_waiting(tenant, run, "running", None, None)
            if verdict != "ok":
                work.stop("cancelled")
        try:
            async with work.bounded(self._settings.max_turn_s):
                outcomes = await self._call_all(work, group, refused)
        except Stopped:
            await self._end(work, "cancelled", _cancelled(work))
            return Acted(is_over=True)
        except KsiError as error:
            await self._end(work, "failed", error.body)
            return Acted(is_over=True)
        for each in outcomes:
            if isinstance(each, ToolCalled):
                return await self._pause(
                    work,
                    "answer" if each.status == "waiting" else "decision",
                    each.call_id,
                    each.content,
                )
        for each in outcomes:
            if isinstance(each, Held):
                return await self._pause(work, "tool", each.call_id, each.why)
        return await self._keep_results(work, group, outcomes)

    async def _call_all(
        self, work: Work, group: tuple[int, ...], refused: tuple[int, ...]
    ) -> list[Outcome]:
        names = ", ".join(dict.fromkeys(work.calls[index].name for index in group))
        work.live.show(
            StreamStatus(waits_for="tool", message=names, call_id=work.call_id(group[0]))
        )
        with acting_as(work.context):
            if len(group) == 1:
                return [await self._tooling.call(work, group[0], refused)]
            async with asyncio.TaskGroup() as together:
                tasks = [
                    together.create_task(
                        self._tooling.call(work, index, refused), name=f"tool {work.call_id(index)}"
                    )
                    for index in group
                ]
            return [task.result() for task in tasks]

    async def _pause(
        self, work: Work, waits_for: Literal["answer", "decision", "tool"], call_id: str, why: str
    ) -> Acted:
        verdict = await self._store.set_waiting(
            work.tenant, work.run, "paused", f"{waits_for}: {why}", call_id
        )
        if verdict != "ok":
            await self._end(work, "cancelled", _cancelled(work))
            return Acted(is_over=True)
        work.is_paused = True
        work.live.show(StreamStatus(waits_for=waits_for, message=why, call_id=call_id))
        return Acted(waits_on=call_id, looks_again=waits_for == "tool")

    async def _keep_results(
        self, work: Work, group: tuple[int, ...], outcomes: list[Outcome]
    ) -> Acted:
        results = tuple(each for each in outcomes if isinstance(each, ToolResultPart))
        self._show_results(work, group, results)
        committed = await self._store.commit(
            work.tenant, work.run, _results_commit(work, group, results)
        )
        work.done.update(group)
        if committed.verdict == "stopping":
            await self._end(work, "cancelled", _cancelled(work))
        elif committed.verdict == "over":
            await self._note_end(work, committed)
        return Acted(is_over=committed.verdict != "ok")

    def _show_results(
        self, work: Work, group: tuple[int, ...], results: tuple[ToolResultPart, ...]
    ) -> None:
        live = work.live
        for index, part in zip(group, results, strict=True):
            live.add(
                StreamToolResult(
                    attempt=live.attempt,
                    offset=live.end,
                    call_id=work.call_id(index),
                    name=part.name,
                    content=part.content,
                    is_error=part.is_error,
                )
            )

    async def _load(self, tenant: str, run: str, number: int) -> Work:
        """Return a turn with the calls of a step, also where another daemon made that step."""
        work = self._works[run]
        if work.step == number and work.calls:
            return work
        row = await self._store.state_of(tenant, run)
        work.read(row)
        work.live.open_step(row["units"], row["attempt"])
        await self._read_step(work, number)
        if row["waits_for"] is not None:
            work.is_paused = True
            waits_for, _, message = row["waits_for"].partition(": ")
            status = StreamStatus(waits_for=waits_for, message=message, call_id=row["waits_call"])
            work.live.show(status)
        return work

    async def _read_step(self, work: Work, number: int | None) -> None:
        """Read the calls of a step, the last one unless told, and which of them are done."""
        rows = await self._store.said_by_turn(work.tenant, work.run)
        work.step = number or max((row["step"] for row in rows), default=0)
        work.calls, work.done = (), set()
        for row in rows:
            if row["step"] != work.step or row["parts"] is None:
                continue
            parts = decode_parts(row["parts"])
            if row["place"] == 0:
                work.calls = tuple(part for part in parts if isinstance(part, ToolCallPart))
            else:
                work.done.update(range(row["place"] - 1, row["place"] - 1 + len(parts)))

    # -- ending ---------------------------------------------------------------------------------

    async def _end(
        self,
        work: Work,
        status: TurnStatus,
        error: ErrorBody,
        commit: Commit | None = None,
    ) -> None:
        """End a turn; calls that have come to nothing are answered, so that the next is sane."""
        undone = work.undone()
        if commit is None and undone:
            results = tuple(
                ToolResultPart(work.calls[i].id, work.calls[i].name, _NOT_DONE, is_error=True)
                for i in undone
            )
            self._show_results(work, tuple(undone), results)
            commit = _results_commit(work, tuple(undone), results)
            commit = msgspec.structs.replace(commit, ends_as=status, error=error)
        commit = commit or Commit(ends_as=status, error=error)
        await self._note_end(work, await self._store.commit(work.tenant, work.run, commit))

    async def _note_end(self, work: Work, committed: Committed | None = None) -> None:
        """Tell of a turn's end, and begin the next."""
        if committed is not None and committed.next is not None:
            self._acceptance.begin(committed.next)
        result = None if committed is None else committed.result
        if result is None:
            row = await self._store.outcome_at_work(work.tenant, work.run)
            if row is None:
                return
            result = result_of(row)
        work.live.finish(result)
        self.tell_end(result)
        if committed is not None:
            with acting_as(work.context):
                self._bus.publish("completion:result", result)

    def tell_end(self, result: CompletionResult) -> None:
        """Wake those who wait for a turn, here and elsewhere."""
        self.waiters.wake(result.run_id)
        self._news.tell("ended", result.run_id)


_NOT_DONE: Final = (
    "There is no result: the turn ended before. It may have been done all the same; look before "
    "you do it again."
)


def texts_of(parts: tuple[Part, ...]) -> list[tuple[Kind, str]]:
    """Return the texts of a message as a stream has them, those of one kind together."""
    texts: list[tuple[Kind, str]] = []
    for part in parts:
        kind = TEXTS.get(type(part))
        if kind is None or not isinstance(part, TextPart | ThinkingPart) or not part.text:
            continue
        if texts and texts[-1][0] is kind:
            texts[-1] = (kind, texts[-1][1] + part.text)
        else:
            texts.append((kind, part.text))
    return texts


def _results_commit(
    work: Work, group: tuple[int, ...], results: tuple[ToolResultPart, ...]
) -> Commit:
    return Commit(
        step=work.step,
        place=1 + group[0],
        role="tool",
        parts=results,
        body=body_of(results),
        tokens=tokens.of_parts(results),
        units=len(results),
        attempt=work.live.attempt,
    )


def _cancelled(work: Work) -> ErrorBody:
    return Cancelled(work.stopping or "cancelled").body
