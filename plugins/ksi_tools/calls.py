"""Makes calls: the intent before, the effect once, the outcome after."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, current_context
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import (
    Busy,
    Cancelled,
    Conflict,
    Context,
    Denied,
    Failed,
    KsiError,
    TimedOut,
    Unavailable,
)
from ksi_postgres.patience import until_there
from ksi_tools import bearers
from ksi_tools import events as e
from ksi_tools.registry import Tools
from ksi_tools.settings import ToolsSettings
from ksi_tools.store import Ending, Fenced, Intent, Known, Ledger, whose_of
from ksi_tools.text import Arguments, Text, clean, keepable, read_arguments, text_of
from ksi_tools.tool import Question, ToolContext

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_DELAY_S: Final = 5.0
STOP_SHARE_S: Final = 2.0
WRITTEN_WITHIN_S: Final = 1.0
MAX_MESSAGE_CHARS: Final = 1000
IN_DOUBT: Final = (
    "Nobody knows whether this call had its effect: {why}. It is not repeated; a person is to say "
    "what became of it (tool:resolve, or ksi tool resolve)."
)
ASKED: Final = "a person is to answer"
NEVER_BEGUN: Final = "it was cancelled before anything was done"

# Within a tool: what it calls itself takes no place of its own, or many could wait for each other.
_INSIDE: Final[ContextVar[bool]] = ContextVar("ksi_tools_inside", default=False)


class Effect(Exception):
    """A call has ended without a result: with an error, or nobody knows how."""

    def __init__(self, error: KsiError, *, is_unknown: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.is_unknown = is_unknown


class Execution:
    """A call that is being made in this daemon, and whoever waits for it."""

    def __init__(self, intent: Intent, prepared: Any, limit_s: float) -> None:
        self.intent = intent
        self.prepared = prepared
        self.limit_s = limit_s
        self.waiters = 0
        self.has_told = False  # of its progress
        self.why_cancelled: str | None = None
        self.outcome: e.ToolCalled | KsiError | None = None
        self.is_told = asyncio.Event()
        self.is_over = asyncio.Event()  # told, and written
        self._scope: asyncio.Timeout | None = None

    def cancel(self, why: str) -> None:
        """End the effect; what is written of it is written all the same."""
        if self.why_cancelled is None:
            self.why_cancelled = why
            if self._scope is not None:
                self._scope.reschedule(asyncio.get_running_loop().time())

    def tell(self, outcome: e.ToolCalled | KsiError) -> None:
        """Tell whoever waits what came of it; what was told first stands."""
        if not self.is_told.is_set():
            self.outcome = outcome
            self.is_told.set()

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[asyncio.Timeout]:
        """End what is done within after the limit, or when the call is cancelled."""
        async with asyncio.timeout(self.limit_s) as scope:
            self._scope = scope
            try:
                yield scope
            finally:
                self._scope = None


class Calls:
    """Answers ``tool:call``.

    Args:
        settings: Bounds.
        tools: What can be called.
        ledger: Keeps intents and outcomes.
        is_fresh: Says whether nobody can have taken over from this daemon yet.
        ready: Waits until calls can be recorded; raises `Unavailable` while Postgres is away.
        bus: Publishes.
    """

    def __init__(
        self,
        settings: ToolsSettings,
        tools: Tools,
        ledger: Ledger,
        is_fresh: Callable[[], bool],
        ready: Callable[[], Awaitable[None]],
        bus: Bus,
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._ledger = ledger
        self._is_fresh = is_fresh
        self._ready = ready
        self._bus = bus
        self._slots = asyncio.Semaphore(settings.max_running)
        self._waiting = 0
        self._running: dict[tuple[str, str], Execution] = {}
        self._group: asyncio.TaskGroup | None = None

    # -- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let calls end, then end them; what they can't write any more the next sweep finds."""
        group, self._group = self._group, None
        assert group is not None
        await self._ended(self._settings.stop_grace_s)
        for execution in list(self._running.values()):
            execution.cancel("the daemon stopped")
        await self._ended(STOP_SHARE_S)
        error = asyncio.CancelledError()
        try:
            await group.__aexit__(asyncio.CancelledError, error, None)
        except asyncio.CancelledError:
            if current_cancelling():
                raise

    async def _ended(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                for execution in list(self._running.values()):
                    await execution.is_over.wait()
        except TimeoutError:
            return

    async def written(self) -> None:
        """Wait, within bounds, until what was told of calls is written."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WRITTEN_WITHIN_S):
                for execution in list(self._running.values()):
                    if execution.is_told.is_set():
                        await execution.is_over.wait()

    # -- one call -------------------------------------------------------------------------------

    async def call(self, request: e.ToolCall) -> e.ToolCalled:
        """Make a call, or tell what came of it before."""
        context = current_context()
        assert context is not None  # it is an event that is being handled
        if self._group is None:
            raise Unavailable("no tools are called any more: the daemon stops", retry_after_s=1.0)
        arguments = read_arguments(
            request.name, request.arguments, self._settings.max_arguments_bytes
        )
        call_id = request.call_id or uuid4().hex
        execution = self._running.get((context.tenant, call_id))
        if execution is not None:
            _check_same(execution.intent, request.name, arguments, context)
            return await self._await(execution)
        try:
            execution = self._prepared(request, call_id, arguments, context)
        except KsiError:
            known = await self._recorded(request, arguments, context)
            if known is None:
                raise
            return known
        self._running[context.tenant, call_id] = execution
        self._group.create_task(self._execute(execution), name=f"tool {request.name}")
        return await self._await(execution)

    def _prepared(
        self, request: e.ToolCall, call_id: str, arguments: Arguments, context: Context
    ) -> Execution:
        tool = self._tools.find(request.name, context.tenant)
        prepared = tool.check(arguments.given)
        question = clean(tool.question(prepared)) if tool.question is not None else None
        may_all = may_call_all(context)
        intent = Intent(call_id, uuid4(), tool, arguments, context, may_all, question)
        own_s = tool.timeout_s or self._settings.timeout_s
        return Execution(intent, prepared, min(request.timeout_s or own_s, own_s))

    async def _recorded(
        self, request: e.ToolCall, arguments: Arguments, context: Context
    ) -> e.ToolCalled | None:
        """Return what came of a call whose tool is not there any more, or has changed.

        Raises:
            Unavailable: It may have had its effect, and nobody knows yet; or it is to be made
                again. Whoever took it for one that was never made might make another.
        """
        if request.call_id is None:
            return None
        for known in await self._ledger.calls(whose_of(context), call_id=request.call_id):
            if (known.name, known.digest) != (request.name, arguments.digest):
                continue
            is_running = known.status == "running" and known.effects == "effectful"
            if is_running or known.status == "due":
                raise Unavailable(
                    f"the call {known.call_id} of {known.name} has been begun, and the tool can't "
                    "be called now: ask again",
                    retry_after_s=1.0,
                    details={"kind": "begun"},
                )
            if known.status not in ("running", "lost"):
                return _told(known)
        return None

    async def _await(self, execution: Execution) -> e.ToolCalled:
        """Wait for a call's end; when nobody does any more, it is cancelled."""
        execution.waiters += 1
        try:
            await execution.is_told.wait()
        finally:
            execution.waiters -= 1
            if not execution.waiters and not execution.is_told.is_set():
                execution.cancel("it was cancelled while it was being done")
        outcome = execution.outcome
        if isinstance(outcome, e.ToolCalled):
            return outcome
        assert outcome is not None
        raise outcome

    async def _execute(self, execution: Execution) -> None:
        """Make a call; never raises, since all calls share a group."""
        intent = execution.intent
        outcome: e.ToolCalled | KsiError = Cancelled(f"{intent.tool.name} was cancelled")
        try:
            async with self._slot():
                outcome = await self._made(execution)
        except KsiError as error:
            outcome = error
        except Fenced:
            outcome = Unavailable(
                "this daemon calls no tools any more: another has taken over", retry_after_s=1.0
            )
        except Exception as error:  # the boundary of a task in a shared group
            log.error("a call broke", exc_info=error, extra={"tool": intent.tool.name})
            kind = type(error).__name__
            outcome = Failed(f"the call of {intent.tool.name} broke with {kind}")
        finally:
            del self._running[intent.context.tenant, intent.call_id]
            execution.tell(outcome)
            execution.is_over.set()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a place among the calls that are made at once."""
        if _INSIDE.get():
            yield
            return
        if self._slots.locked() and self._waiting >= self._settings.max_waiting:
            raise Busy(
                f"{self._settings.max_running} tools are being called and {self._waiting} calls "
                "wait (tools.max_running, tools.max_waiting)",
                retry_after_s=1.0,
            )
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def _made(self, execution: Execution) -> e.ToolCalled:
        intent = execution.intent
        if execution.why_cancelled is not None:
            raise Cancelled(f"{intent.tool.name} was cancelled")
        if intent.tool.is_for_programs and is_agents(intent.context):
            raise _denied(intent)
        await self._ready()
        await self._look_at_scopes(execution)
        verdict, times, known = await self._begun(execution)
        if verdict == "run":
            return await self._done_once(execution, times)
        if verdict == "denied":
            raise _denied(intent)
        if verdict == "at_work":
            raise Busy(
                f"another daemon is making the call {intent.call_id}",
                retry_after_s=1.0,
                details={"kind": "at_work"},
            )
        if known is None:
            raise _other(intent.call_id)
        if verdict in ("asked", "doubted"):
            self.tell_doubted(known)
        return _told(known)

    async def _look_at_scopes(self, execution: Execution) -> None:
        """Let whoever came with a key or a token call what its scopes say."""
        intent = execution.intent
        if intent.tool.effects != "read_only" and bearers.speaks_for_itself(intent.context):
            scopes = await bearers.scopes_of(self._bus, intent.context)
            if bearers.is_covered(intent.tool, scopes):
                execution.intent = replace(intent, may_all=True)

    async def _done_once(self, execution: Execution, times: int) -> e.ToolCalled:
        intent = execution.intent
        answer = await self._answer(intent) if times > 1 else None
        ending = await self._effect(execution, times, answer)
        if _may_be_told_first(execution, ending):
            execution.tell(self._ended_as(intent, ending, is_repeated=times > 1))
            for _ in range(2):  # whoever waits is told, and the answer sent, before all else
                await asyncio.sleep(0)
        if not await self._persist(lambda: self._ledger.end(intent, ending)):
            raise Unavailable(
                f"the call {intent.call_id} is not this daemon's any more", retry_after_s=1.0
            )
        return self._ended_as(intent, ending, is_repeated=times > 1)

    async def _answer(self, intent: Intent) -> str | None:
        """Return what a person answered to what the tool has asked, when it was called before."""
        whose, call_id = whose_of(intent.context), intent.call_id
        known = await self._persist(lambda: self._ledger.calls(whose, call_id=call_id))
        return known[0].answer if known else None

    async def _begun(self, execution: Execution) -> tuple[str, int, Known | None]:
        """Write the intent, as often as it takes to know that it is written.

        One that may be written, and of which nobody knows, would be in doubt without need.
        """
        while True:
            begun = await self._persist(lambda: self._ledger.begin(execution.intent))
            # Where the process stood still since it asked, another may have taken over.
            if begun[0] != "run" or self._is_fresh():
                return begun

    async def _persist(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Ask Postgres, again and again while it is away."""
        return await until_there(work, max_delay_s=MAX_DELAY_S, failed=_log_late)

    def _ended_as(self, intent: Intent, ending: Ending, *, is_repeated: bool) -> e.ToolCalled:
        if ending.status == "lost":
            raise Cancelled(f"{intent.tool.name} was cancelled")
        if ending.status in ("in_doubt", "waiting"):
            self._publish_doubt(intent.call_id, intent.tool.name, ending.status, str(ending.why))
        return e.ToolCalled(
            call_id=intent.call_id,
            name=intent.tool.name,
            status=ending.status,  # type: ignore[arg-type]  # one of them: lost is dealt with
            content=ending.text.content,
            error=ending.error,
            output_ref=intent.call_id if ending.text.pieces else None,
            size_bytes=ending.text.size_bytes,
            duration_ms=ending.duration_ms,
            is_repeated=is_repeated,
        )

    # -- the effect -----------------------------------------------------------------------------

    async def _effect(self, execution: Execution, attempt: int, answer: str | None) -> Ending:
        """Do it, and say what came of it, whatever that is."""
        intent = execution.intent
        if execution.why_cancelled is not None:
            # An answer stays for whoever asks again; what failed has none.
            error = Cancelled(NEVER_BEGUN).body if answer is None else None
            return Ending("lost", Text(answer or ""), 0.0, error, NEVER_BEGUN)
        token = _INSIDE.set(True)
        started = time.perf_counter()
        try:
            result = await self._done(execution, self._context(execution, attempt, answer))
        except Question as question:
            text = Text(clean(str(question))[: self._settings.max_content_chars])
            return Ending("waiting", text, _ms_since(started), why=ASKED)
        except Effect as effect:
            return _ending(execution, effect, _ms_since(started), self._settings)
        finally:
            _INSIDE.reset(token)
        duration_ms = _ms_since(started)
        settings = self._settings
        text = text_of(
            result, intent.call_id, settings.max_content_chars, settings.max_output_bytes
        )
        return Ending("done", text, duration_ms)

    async def _done(self, execution: Execution, context: ToolContext) -> Any:
        """Call the tool; every way in which that may end without a result is an `Effect`."""
        tool = execution.intent.tool
        try:
            async with execution.limited() as scope:
                return await tool.execute(execution.prepared, context)
        except TimeoutError as error:
            why = "it did not come to an end"
            if scope.expired():
                why = execution.why_cancelled or f"it did not end within {execution.limit_s:g} s"
            raise Effect(TimedOut(f"{tool.name}: {why}"), is_unknown=True) from error
        except asyncio.CancelledError as error:
            if current_cancelling():
                raise
            raise Effect(Cancelled(f"{tool.name} was broken off"), is_unknown=True) from error
        except KsiError as error:
            is_unknown = isinstance(error, TimedOut | Cancelled) or (
                isinstance(error, Unavailable) and tool.event is not None
            )
            raise Effect(error, is_unknown=is_unknown) from error
        except Question:
            raise
        except ConnectionRefusedError as error:
            told = Unavailable(f"{tool.name}: nobody is there ({error})")
            raise Effect(told, is_unknown=False) from error
        except ConnectionError as error:
            told = Unavailable(f"{tool.name}: the connection was lost ({error})")
            raise Effect(told, is_unknown=True) from error
        except Exception as error:
            log.error(
                "a tool failed",
                exc_info=error,
                extra={"tool": tool.name, "plugin": tool.provider, "call_id": context.call_id},
            )
            kind = type(error).__name__
            broke = Failed(f"{tool.name} failed with {kind} in {tool.provider}; the log has more")
            raise Effect(broke, is_unknown=False) from error

    def _context(self, execution: Execution, attempt: int, answer: str | None) -> ToolContext:
        intent = execution.intent
        whose = intent.context
        loop = asyncio.get_running_loop()
        interval_s = self._settings.progress_interval_s
        due_at = 0.0

        def publish(told: e.ToolProgressed) -> None:
            with acting_as(whose):
                self._bus.publish("tool:progress", told)

        def progress(message: str, done: float | None = None, total: float | None = None) -> None:
            nonlocal due_at
            now = time.monotonic()
            if now < due_at:
                return
            due_at = now + interval_s
            execution.has_told = True
            told = e.ToolProgressed(
                call_id=intent.call_id,
                name=intent.tool.name,
                message=message[:MAX_MESSAGE_CHARS],
                done=done,
                total=total,
            )
            with contextlib.suppress(RuntimeError):  # a thread that outlasts the loop
                loop.call_soon_threadsafe(publish, told)

        return ToolContext(
            intent.call_id,
            whose.tenant,
            whose.run,
            whose.conversation,
            whose.agent,
            attempt,
            progress,
            answer,
        )

    # -- what is told ---------------------------------------------------------------------------

    def tell_doubted(self, call: Known) -> None:
        """Publish that a call is in doubt, or waits for a person."""
        why = call.why or ASKED
        with acting_as(context_of(call)):
            self._publish_doubt(call.call_id, call.name, call.status, why)

    def _publish_doubt(self, call_id: str, name: str, status: str, why: str) -> None:
        context = current_context()
        told = e.ToolDoubted(
            call_id=call_id,
            name=name,
            status=status,  # type: ignore[arg-type]  # waiting or in_doubt
            why=why,
            run_id=context.run if context else None,
            conversation_id=context.conversation if context else None,
        )
        self._bus.publish("tool:doubted", told)


def may_call_all(context: Context) -> bool:
    """Say whether a call is the owner's own: no agent makes it, and no token's bearer caused it."""
    return context.agent is None and context.conversation is None and not is_bearers(context)


def is_agents(context: Context) -> bool:
    """Say whether a call is an agent's, or made in a conversation or by a run."""
    return (context.agent, context.conversation, context.run) != (None, None, None)


def current_cancelling() -> bool:
    """Say whether the task that runs here is being cancelled from outside."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def context_of(call: Known) -> Context:
    """Return the context in which a call was made, for events about it."""
    return Context(
        id=call.call_id,
        origin="tools",
        tenant=call.tenant,
        agent=call.agent,
        conversation=call.conversation,
        run=call.run,
    )


def _may_be_told_first(execution: Execution, ending: Ending) -> bool:
    """Say whether a result may be told while it is written: lost, it would be read once more.

    A run goes on from what was recorded, a long output is read from the record, and what was told
    of the progress is still on its way to those who are told of the end.
    """
    intent = execution.intent
    return (
        intent.tool.effects == "read_only"
        and not is_agents(intent.context)
        and ending.status == "done"
        and not ending.text.pieces
        and not execution.has_told
    )


def _check_same(intent: Intent, name: str, arguments: Arguments, context: Context) -> None:
    ours, theirs = intent.context, context
    if (intent.tool.name, intent.arguments.digest, ours.run, ours.conversation, ours.agent) != (
        name,
        arguments.digest,
        theirs.run,
        theirs.conversation,
        theirs.agent,
    ):
        raise _other(intent.call_id)


def _other(call_id: str) -> Conflict:
    return Conflict(f"the call_id {call_id} is that of another call: give each its own")


def _denied(intent: Intent) -> Denied:
    context = intent.context
    subjects = [
        f"{kind}:{value}"
        for kind, value in (("agent", context.agent), ("conversation", context.conversation))
        if value is not None
    ]
    whom = " in ".join(subjects) or context.origin
    return Denied(
        f"{whom} may not call {intent.tool.name}, which is {intent.tool.effects}; "
        + (
            f"a key needs the scope {bearers.SCOPE}{intent.tool.name}"
            if bearers.speaks_for_itself(context)
            else "the owner can allow it with tool:permit (ksi tool permit)"
        ),
        details={"kind": "not_permitted", "subjects": subjects},
    )


def _ending(
    execution: Execution, effect: Effect, duration_ms: float, settings: ToolsSettings
) -> Ending:
    """Say how a call ended that has no result.

    What nobody knows the end of is in doubt; where a repetition does no harm it has failed, and is
    done when it is asked for again, if it was only cancelled.
    """
    text = text_of(
        effect.error.message,
        execution.intent.call_id,
        settings.max_content_chars,
        settings.max_output_bytes,
    )
    body = keepable(effect.error.body, settings.max_content_chars)
    why = body.message
    if effect.is_unknown and execution.intent.tool.effects == "effectful":
        return Ending("in_doubt", Text(IN_DOUBT.format(why=why)), duration_ms, body, why)
    status = "lost" if execution.why_cancelled is not None else "failed"
    return Ending(status, text, duration_ms, body, why)


def _told(call: Known) -> e.ToolCalled:
    """Tell of a call that was made before."""
    content = call.content or ""
    if call.status == "in_doubt" and not content:
        content = IN_DOUBT.format(why=call.why)
    return e.ToolCalled(
        call_id=call.call_id,
        name=call.name,
        status=call.status,  # type: ignore[arg-type]  # one of them
        content=content,
        error=call.error_body,
        output_ref=call.call_id if call.has_output else None,
        size_bytes=call.size_bytes,
        duration_ms=call.duration_ms or 0.0,
        is_repeated=call.status != "waiting",
    )


def _log_late(error: KsiError) -> None:
    log.warning("a call can't be recorded yet", extra={"why": error.message})


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
