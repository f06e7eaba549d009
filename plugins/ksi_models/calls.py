"""Calls models: who waits for whom, what is tried again, what is recorded."""

import asyncio
import logging
import random
import secrets
import time
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from ksi_completion.events import ConversationFetched, ConversationMessages
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, current_context, event_handler
from ksi_daemon.protocol import (
    Busy,
    Context,
    InvalidData,
    KsiError,
    TimedOut,
    Unavailable,
)
from ksi_daemon.protocol.names import did_you_mean
from ksi_models.catalogue import Catalogue, ProviderTable
from ksi_models.events import (
    Message,
    MessageRange,
    ModelCall,
    ModelChunk,
    ModelEmbed,
    ModelEmbedded,
    ModelResponse,
    ModelRestarted,
    ModelWaiting,
)
from ksi_models.failures import ILL, Stalled, error_of
from ksi_models.keys import Keys
from ksi_models.lanes import Lane, Lanes
from ksi_models.prices import FREE, Prices, split
from ksi_models.provider import (
    TRANSIENT,
    Answered,
    Provider,
    ProviderError,
    Question,
)
from ksi_models.recorder import Recorder
from ksi_models.settings import ModelsSettings
from ksi_models.store import CallOutcome, CallRow
from ksi_models.watch import Watch
from ksi_models.work import Embedded, Open, Piece, Work, called, digest_of, usage_of

log = logging.getLogger(__name__)

OUTSIDE: Final = Context("", None, "models")
DEFAULT_PRIORITY: Final = 1000


class Tools(NamedTuple):
    """What calls are made with."""

    settings: ModelsSettings
    catalogue: Catalogue
    providers: ProviderTable
    lanes: Lanes
    prices: Prices
    recorder: Recorder
    keys: Keys


class Calls:
    """Answers ``model:call`` and ``model:embed``.

    Args:
        tools: What calls are made with.
        bus: Fetches the messages of conversations, and tells what has ended.
    """

    def __init__(self, tools: Tools, bus: Bus) -> None:
        self._settings = tools.settings
        self._catalogue = tools.catalogue
        self._providers = tools.providers
        self._lanes = tools.lanes
        self._prices = tools.prices
        self._recorder = tools.recorder
        self._keys = tools.keys
        self._bus = bus
        self._first_token_timeout_s = tools.settings.first_token_timeout_s
        self._idle_timeout_s = tools.settings.idle_timeout_s

    # -- asked ----------------------------------------------------------------------------------

    @event_handler("model:call", scope="models:write", timeout_s=0)
    async def call(self, request: ModelCall) -> AsyncGenerator[ModelChunk]:
        """Have a model answer: a stream of its text, thinking and tool calls, then the response.

        While nothing comes it says what it waits for. After ``restarted`` what came so far is void.
        The response comes when what the call took is recorded.
        """
        self._check_extra(request.settings.extra)
        messages, seen = await self._messages(request)
        context = current_context() or OUTSIDE
        question = Question(
            model="",
            system=request.system,
            messages=messages,
            tools=request.tools,
            settings=request.settings,
            output_schema=request.output_schema,
            tenant=context.tenant,
            conversation=context.conversation,
            run=context.run,
        )

        def ask(provider: Provider, model: str) -> AsyncGenerator[Any]:
            asked = msgspec.structs.replace(question, model=model)
            if work.at and not self._providers.calls_tools(provider.name):
                # Better an answer without them than none.
                asked = msgspec.structs.replace(asked, tools=())
            return provider.stream(asked)

        work = await self._work(
            request.model, ask, lambda: _size(question), context, request.fallbacks
        )
        work.purpose, work.priority, work.seen = request.purpose, request.priority, seen
        work.digest = lambda: digest_of(messages)
        work.deadline = self._deadline(request.timeout_s)
        async with aclosing(self._run(work)) as chunks:
            async for chunk in chunks:
                yield chunk
        row = await self._end(work, "ok", None)
        assert row is not None
        yield _response(work, row)

    @event_handler("model:embed", scope="models:write", timeout_s=0)
    async def embed(self, request: ModelEmbed) -> ModelEmbedded:
        """Turn texts into vectors, one for each, in order."""
        size = sum(len(text.encode()) for text in request.texts)
        if size > self._settings.max_embed_bytes:
            raise InvalidData(
                f"the texts have {size} bytes, more than models.max_embed_bytes allows "
                f"({self._settings.max_embed_bytes})",
                details={"setting": "models.max_embed_bytes"},
            )
        name = request.model or self._settings.embed_model
        if not name:
            raise InvalidData("name a model that makes vectors, or set models.embed_model")

        async def ask(provider: Provider, model: str) -> AsyncGenerator[Any]:
            vectors, usage = await provider.embed(model, request.texts)
            if len(vectors) != len(request.texts):
                raise ProviderError(
                    "malformed", f"it made {len(vectors)} vectors of {len(request.texts)} texts"
                )
            yield Embedded(vectors, usage)

        work = await self._work(name, ask, lambda: size, current_context() or OUTSIDE)
        work.purpose = request.purpose
        async with aclosing(self._run(work)) as chunks:
            async for _ in chunks:
                pass
        row = await self._end(work, "ok", None)
        assert row is not None
        return ModelEmbedded(
            model=work.model,
            vectors=tuple(map(tuple, work.answer.vectors)),
            usage=usage_of(row),
            cost_usd=row.cost_usd,
        )

    # -- what is asked --------------------------------------------------------------------------

    def _check_extra(self, extra: dict[str, Any]) -> None:
        """Let nothing into a provider's request that the settings don't allow: it may be tools."""
        refused = sorted(extra.keys() - self._settings.extra)
        if refused:
            hint = did_you_mean(refused[0], self._settings.extra)
            raise InvalidData(
                f"settings.extra: {', '.join(refused)} can't be passed on to a provider, "
                f"models.extra says what can{hint}",
                details={"setting": "models.extra"},
            )

    async def _messages(
        self, request: ModelCall
    ) -> tuple[tuple[Message, ...], MessageRange | None]:
        """Return the messages that the model is to see, and where they can be found again."""
        wanted = request.range
        if wanted is None:
            if not request.messages:
                raise InvalidData("give the model messages to answer: `messages` or `range`")
            return request.messages, request.seen
        fetched: ConversationFetched = await self._bus.request(
            "conversation:messages",
            ConversationMessages(
                conversation_id=wanted.conversation_id,
                first=wanted.first,
                last=wanted.last,
                sha256=wanted.sha256,
            ),
            result_type=ConversationFetched,
        )
        seen = msgspec.structs.replace(wanted, sha256=fetched.sha256)
        return (*fetched.messages, *request.messages), seen

    async def _work(
        self,
        name: str | None,
        ask: Open,
        size: Callable[[], int],
        context: Context,
        fallbacks: tuple[str, ...] = (),
    ) -> Work:
        asked = name or (await self._catalogue.default()).model
        return Work(
            call_id=secrets.token_hex(12),
            context=context,
            purpose="",
            model_asked=asked,
            candidates=self._catalogue.expand_all((asked, *fallbacks)),
            open=ask,
            asked_bytes=size,
            seen=None,
            priority=DEFAULT_PRIORITY,
            deadline=self._deadline(None),
            max_answer_bytes=self._settings.max_answer_bytes,
            started=time.perf_counter(),
        )

    def _deadline(self, timeout_s: float | None) -> float:
        return _now() + (timeout_s or self._settings.call_timeout_s)

    # -- asking ---------------------------------------------------------------------------------

    async def _run(self, work: Work) -> AsyncGenerator[ModelChunk]:
        """Ask until there is an answer; a call that ends without one leaves its row here."""
        try:
            while work.answer is None:
                async with aclosing(self._admit(work)) as waits:
                    async for waiting in waits:
                        yield waiting
                self._begin(work)
                notices: list[ModelChunk] = []
                watch = Watch()
                try:
                    async with aclosing(self._open(work)) as stream:
                        while work.answer is None:
                            piece = await self._next(work, stream, watch)
                            if piece is not None:
                                yield piece
                except ProviderError as failure:
                    notices = self._failed(work, failure)
                finally:
                    watch.close()
                    self._leave(work)
                for notice in notices:
                    yield notice
                if notices and work.delay_s:
                    await asyncio.sleep(work.delay_s)
        except KsiError as error:
            await self._end(work, "failed", error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._end_later(work)
            raise
        finally:
            self._leave(work)  # also the queue, where it waits in one

    def _begin(self, work: Work) -> None:
        """Count an attempt, and have the first one noted where it may cost something."""
        if work.begin_attempt() == 1 and work.provider not in FREE:
            self._recorder.begin(work.beginning())

    async def _admit(self, work: Work) -> AsyncGenerator[ModelWaiting]:
        """Wait until the provider may be asked."""
        waited_until = _now() + self._settings.circuit_timeout_s
        while True:
            lane = self._lanes.of(work.provider)
            if not lane.circuit.lets_pass:
                yield self._go_round(work, lane, waited_until)
                if lane is self._lanes.of(work.provider):
                    await lane.circuit.wait(min(waited_until, work.deadline) - _now())
                continue
            ticket = work.ticket = lane.slots.ask(work.key, work.priority)
            if not ticket.is_granted:
                reason, delay = lane.slots.delay()
                what = "its rate allows" if reason == "rate" else "a slot is free"
                yield ModelWaiting(reason, f"waiting until {work.provider} has room: {what}", delay)
                await self._wait_for(work)
            work.number = lane.circuit.try_pass()
            if work.number:
                return
            self._leave(work)

    async def _wait_for(self, work: Work) -> None:
        assert work.ticket is not None
        limit = min(self._settings.slot_timeout_s, work.deadline - _now())
        if await work.ticket.wait(limit):
            return
        if _now() >= work.deadline:
            raise _out_of_time(work)
        raise Busy(
            f"{work.provider} had no room for this call in {limit:g} s (models.slot_timeout_s, "
            f"models.providers.{work.provider}.max_concurrent)",
            retry_after_s=limit,
            details={"kind": "no_slot", "setting": "models.slot_timeout_s"},
        )

    def _go_round(self, work: Work, lane: Lane, until: float) -> ModelWaiting:
        """Go on to a model whose provider is there, or say how long one has to wait."""
        for at in range(work.at + 1, len(work.candidates)):
            if self._lanes.of(split(work.candidates[at])[0]).circuit.lets_pass:
                return self._fall_back(work, at, f"{work.provider} is left alone")
        if _now() >= work.deadline:
            raise _out_of_time(work)
        delay = lane.circuit.delay_s()
        if _now() >= until:
            raise Unavailable(
                f"{work.provider} is left alone, as it failed {lane.circuit.failed} times: "
                f"{lane.circuit.why} (models.circuit_timeout_s)",
                retry_after_s=delay or self._settings.circuit_open_s,
                details={"kind": "circuit_open", "setting": "models.circuit_timeout_s"},
            )
        message = f"{work.provider} has failed time and again; waiting to see if it is back"
        return ModelWaiting("circuit", message, delay)

    def _fall_back(self, work: Work, at: int, why: str) -> ModelWaiting:
        work.at, work.tries = at, 0
        return ModelWaiting("fallback", f"asking {work.model}: {why}")

    def _open(self, work: Work) -> AsyncGenerator[Any]:
        name, own = split(work.model)
        provider = self._providers.find(name)
        if provider is None:  # it was there when the candidates were found
            raise ProviderError("not_found", f"there is no provider {name!r} any more")
        return work.open(provider, own)

    async def _next(self, work: Work, stream: AsyncGenerator[Any], watch: Watch) -> Piece | None:
        """Return the next piece of an answer; ``None`` where the answer has come to its end.

        Raises:
            ProviderError: There is none, or not in time.
        """
        limit_s = self._idle_timeout_s if work.has_streamed else self._first_token_timeout_s
        watch.begin(limit_s, work.deadline)
        try:
            piece: Any = await anext(stream)
        except asyncio.CancelledError as error:
            if not watch.end():
                raise
            raise self._too_late(work, limit_s) from error
        except StopAsyncIteration as error:
            raise ProviderError("cut_off", "the answer broke off before its end") from error
        except (ProviderError, KsiError):
            raise
        except Exception as error:  # noqa: BLE001  whatever its library raises; it may hold a key
            raise self._broken(work, error) from None
        finally:
            watch.end()
        if piece.__class__ is Answered or piece.__class__ is Embedded:
            work.answer = piece
            self._lanes.of(work.provider).circuit.succeed()
            return None
        work.note(piece)
        return piece  # type: ignore[no-any-return]  # telling their classes apart takes time

    def _broken(self, work: Work, error: Exception) -> ProviderError:
        told = self._keys.redacted("".join(traceback.format_exception(error)))
        log.error("a provider broke", extra={"model": work.model, "traceback": told})
        kind = type(error).__name__
        message = f"its provider failed with {kind}; the daemon's log has the traceback"
        return ProviderError("broken", message)

    def _too_late(self, work: Work, limit_s: float) -> Exception:
        if _now() >= work.deadline:
            return _out_of_time(work)
        if work.has_streamed:
            return Stalled(f"nothing more came for {limit_s:g} s", "models.idle_timeout_s")
        return Stalled(f"nothing came for {limit_s:g} s", "models.first_token_timeout_s")

    def _leave(self, work: Work) -> None:
        """Make room for the next."""
        if work.number:
            self._lanes.of(work.provider).circuit.drop(work.number)
            work.number = 0
        if work.ticket is not None:
            work.ticket.release()
            work.ticket = None

    # -- failing --------------------------------------------------------------------------------

    def _failed(self, work: Work, failure: ProviderError) -> list[ModelChunk]:
        """Find out how it goes on after a failure, and say so.

        Raises:
            KsiError: It does not.
        """
        failure.message = self._keys.redacted(failure.message)
        self._note(work, failure)
        notices: list[ModelChunk] = []
        if work.has_streamed:
            notices.append(ModelRestarted(work.attempts + 1, failure.message))
        work.lose()
        delay = self._retry_delay(work, failure)
        if delay is not None:
            work.delay_s = delay
            message = f"{work.model}: {failure.message}; trying again in {delay:.1f} s"
            notices.append(ModelWaiting("retry", message, round(delay, 3)))
        elif work.at + 1 < len(work.candidates):
            work.delay_s = 0.0
            self._leave(work)  # while it is known whose slot it is
            why = f"{work.model}: {failure.message}"
            notices.append(self._fall_back(work, work.at + 1, why))
        else:
            raise error_of(failure, work.model, work.attempts) from None
        return notices

    def _note(self, work: Work, failure: ProviderError) -> None:
        """Tell the provider's circuit, and all who wait for it, what was learnt."""
        lane = self._lanes.of(work.provider)
        if failure.kind in ILL:
            if lane.circuit.fail(failure.message):
                log.warning(
                    "a provider is left alone for a while",
                    extra={"provider": work.provider, "why": failure.message},
                )
        elif failure.kind != "rate_limited":
            lane.circuit.succeed()
        if failure.retry_after_s is not None:
            lane.slots.pause(min(failure.retry_after_s, self._settings.retry_after_max_s))

    def _retry_delay(self, work: Work, failure: ProviderError) -> float | None:
        """Return how long to wait until the next try; ``None`` where there is none."""
        settings = self._settings
        if failure.kind not in TRANSIENT or work.tries >= settings.max_attempts:
            return None
        if failure.retry_after_s is not None:
            if failure.retry_after_s > settings.retry_after_max_s:
                return None
            delay = failure.retry_after_s
        else:
            most = min(settings.retry_max_s, settings.retry_first_s * 2 ** (work.tries - 1))
            delay = random.uniform(0, most)
        return delay if _now() + delay < work.deadline else None

    # -- ending ---------------------------------------------------------------------------------

    async def _end(
        self, work: Work, outcome: CallOutcome, error: KsiError | None
    ) -> CallRow | None:
        """Record how a call has ended, and tell.

        Raises:
            Unavailable: It has an answer that can't be recorded.
        """
        try:
            await self._prices.ready(work.model)
        except asyncio.CancelledError:
            self._end_later(work)
            raise
        row = work.row(outcome, None if error is None else _kind(error), self._prices)
        try:
            await self._recorder.write(row)
        except Unavailable:
            if error is None:
                raise  # else that of the call is what counts; the row is written later
        self._tell(work, row)
        return row

    def _end_later(self, work: Work) -> None:
        """Have it recorded that a call was cancelled: who cancels does not wait for that."""
        row = work.row("cancelled", "cancelled", self._prices)
        self._recorder.later(row)
        self._tell(work, row)

    def _tell(self, work: Work, row: CallRow) -> None:
        with acting_as(work.context):  # a stream that is closed is not closed in its own context
            self._bus.publish("model:called", called(row, work.seen))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _out_of_time(work: Work) -> TimedOut:
    return TimedOut(
        f"{work.model} had not answered when the call's time was over "
        "(timeout_s of model:call, models.call_timeout_s)",
        details={"kind": "call_timeout", "setting": "models.call_timeout_s"},
    )


def _kind(error: KsiError) -> str:
    return str((error.details or {}).get("kind", error.code))


class Sized(Struct, frozen=True):
    """What of a question is sent to a provider."""

    system: str | None
    messages: tuple[Message, ...]
    tools: Any


def _size(question: Question) -> int:
    """Return about how many bytes a provider is sent."""
    return len(msgspec.json.encode(Sized(question.system, question.messages, question.tools)))


def _response(work: Work, row: CallRow) -> ModelResponse:
    answer: Answered = work.answer
    return ModelResponse(
        call_id=work.call_id,
        model_asked=work.model_asked,
        model=work.model,
        message=answer.message,
        finish=answer.finish,
        usage=usage_of(row),
        cost_usd=row.cost_usd,
        is_estimated=row.is_estimated,
        latency_ms=row.latency_ms,
        first_token_ms=row.first_token_ms,
        attempts=work.attempts,
    )
