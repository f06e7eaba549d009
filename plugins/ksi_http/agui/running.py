"""Has one run: a turn with all that is asked for within it, as one stream of AG-UI's events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import msgspec
from msgspec import Struct

from ksi_client import turns as c
from ksi_completion.events import CompletionAnswer, Turn
from ksi_daemon.protocol import Cancelled, Conflict, InvalidData, KsiError, NotFound, Unavailable
from ksi_http.agui import events as a
from ksi_http.agui.inputs import News, RunAgentInput, answer_of
from ksi_http.agui.older import Older
from ksi_http.agui.state import UPDATE_STATE, changed, changes_of, operations
from ksi_http.agui.translation import Call, Place, Resumption, Sent, Translation
from ksi_http.sidecar import errors
from ksi_http.sidecar.streaming import EventStream
from ksi_tools.events import ToolResolve

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

ASK: Final = "ask_agent"
FOLLOWED: Final = "completion:stream"
WAITED_FOR: Final = (
    "what was said is taken on, and its turn comes when the one before it has ended; that one "
    "waits for a person: resume it, or cancel it"
)
QUEUED: Final = 256
CHILDREN_S: Final = 30.0
LOOK_S: Final = 5.0  # how often is looked at the turn that another one waits for
CHILD_END_S: Final = 5.0  # how long a call's result waits for the end of the turn behind it
OPEN: Final = frozenset({"waiting", "running", "paused"})
VERDICTS: Final = ("done", "redo", "drop")
VERDICT_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "verdict": {"enum": list(VERDICTS)},
        "content": {"type": "string", "description": "What came of it, where it was done."},
    },
    "required": ["verdict"],
}

write = msgspec.json.Encoder().encode


class Finished(Struct, frozen=True):
    """The end of a turn's stream."""

    result: c.Completion | None = None
    error: KsiError | None = None


Chunks = AsyncGenerator[c.CompletionChunk]
Item = c.CompletionChunk | Finished | asyncio.Event  # an event is set when all before it was sent


class Branch:
    """A turn that is followed: the one that was asked for, or one within it.

    Attributes:
        run: The turn.
        agent: Whose it is, where it is within another.
        call_id: The call by which it was asked for.
        translation: Makes its events.
        resumption: Passes over what the client has had; ``None`` once that is behind.
        is_old: Whether what comes was sent in an earlier run.
        done: Set once its end was sent.
    """

    def __init__(
        self, translation: Translation, agent: str = "", call_id: str | None = None
    ) -> None:
        self.run = translation.run
        self.agent = agent
        self.call_id = call_id
        self.translation = translation
        self.resumption: Resumption | None = None
        self.is_old = False
        self.done = asyncio.Event()

    def feed(self, chunk: c.CompletionChunk) -> Iterator[Sent]:
        """Yield the events of a chunk that the client has not had."""
        if self.resumption is not None:
            yield from self.resumption.feed(chunk)
            if self.resumption.is_over:
                self.resumption = None
            return
        for sent in self.translation.feed(chunk):
            if not self.is_old:
                yield sent

    @property
    def is_behind(self) -> bool:
        """Whether the client has had more of the stream that was cut."""
        return self.resumption is not None and not self.resumption.is_at_end

    @property
    def mark(self) -> str:
        """How far the client has it."""
        return f"!~{self.run}" if self.done.is_set() else str(self.translation.place)


class Running:
    """Follows a turn for a front end, until it ends or waits for it.

    Args:
        app: The server.
        caller: Who has it.
        given: What the front end sent.
        news: What of that is new.
        stream: Where the events go.
        marks: How far the client has it, by turn, where its stream was cut.
    """

    def __init__(
        self,
        app: "Sidecar",
        caller: "Caller",
        given: RunAgentInput,
        news: News,
        stream: EventStream,
        marks: dict[str, Place | None],
    ) -> None:
        self._app = app
        self._caller = caller
        self._given = given
        self._news = news
        self._stream = stream
        self._marks = marks
        self._branches: list[Branch] = []
        self._queue: asyncio.Queue[tuple[Branch, Item]] = asyncio.Queue(QUEUED)
        self._state = given.state
        self._answered: set[str] = set()
        self._client_tools = {each.name for each in given.tools or ()}
        self._known = {
            each.tool_call_id for each in given.messages if each.tool_call_id is not None
        } - news.answers.keys()
        self._tasks: asyncio.TaskGroup | None = None
        self._started: list[asyncio.Task[None]] = []
        self._watched: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._pending = bytearray()
        self._older = None if app.settings.knows_subagents else Older()

    # -- the run --------------------------------------------------------------------------------

    async def have(self, turn: dict[str, Any]) -> None:
        """Have a new turn, and send what it says.

        Args:
            turn: The payload of ``completion:async``.

        Raises:
            KsiError: There is no such turn to be had.
        """
        async with self._app.client_for(self._caller, FOLLOWED) as client:
            chunks = client.stream_completion(**turn, context=self._caller.context)
            async with aclosing(chunks):
                run = _accepted(await anext(chunks))
                await self._begin(run)
                await self._send(self._top(run), chunks)

    async def go_on(self, run: str) -> None:
        """Send what a turn says that went on before and has waited for the client."""
        top = self._top(run)
        top.is_old = True
        await self._begin(run)
        async with self._followed(run) as chunks:
            await self._send(top, chunks)

    async def resume(self) -> None:
        """Send what the client has not had of a stream that was cut.

        Raises:
            NotFound: There is no such turn.
        """
        run, place = next(iter(self._marks.items()))
        top = self._top(run)
        if place is not None:
            top.resumption = Resumption(top.translation, place)
        async with self._followed(run) as chunks:
            await self._send(top, chunks)

    async def _begin(self, run: str) -> None:
        """Tell the client that its run has begun."""
        given = self._given
        started = a.RunStarted(
            thread_id=given.thread_id,
            run_id=given.run_id,
            protocol_version=a.PROTOCOL,
            parent_run_id=given.parent_run_id,
            metadata={"ksi": {"run_id": run}},
        )
        self._put(Sent(started))
        if given.state:
            self._put(Sent(a.StateSnapshot(snapshot=given.state)))
        await self._flush()

    def _top(self, run: str) -> Branch:
        return Branch(Translation(run, self._snapshot))

    @asynccontextmanager
    async def _followed(self, run: str) -> AsyncIterator[Chunks]:
        async with self._app.client_for(self._caller, FOLLOWED) as client:
            chunks = client.follow_completion(run, context=self._caller.context)
            async with aclosing(chunks):
                yield chunks

    async def _send(self, top: Branch, chunks: Chunks) -> None:
        """Send what the turn says until it ends, or waits for what only the client can say."""
        async with asyncio.TaskGroup() as self._tasks:
            self._branches.append(top)
            self._do(self._read(top, chunks), top.run)
            try:
                await self._relay(top)
            finally:
                for task in self._started:
                    task.cancel()
        await self._flush()

    async def _relay(self, top: Branch) -> None:
        while True:
            branch, chunk = await self._queue.get()
            if isinstance(chunk, asyncio.Event):
                chunk.set()
            elif isinstance(chunk, Finished):
                if branch is top:
                    if _is_not_there(chunk.error) and not self._stream.is_open:
                        raise chunk.error
                    self._end(top, chunk)
                    return
                self._end_child(branch, chunk)
            elif isinstance(chunk, c.StatusChunk) and chunk.waits_for in ("answer", "decision"):
                if not await self._answer(branch, chunk):
                    self._interrupt(top, branch, chunk)
                    return
            else:
                if branch is top:
                    self._mind_the_turn_before(top, chunk)
                self._take(branch, chunk)
            if self._queue.empty() or len(self._pending) > 16_384:
                await self._flush()

    def _take(self, branch: Branch, chunk: c.CompletionChunk) -> None:
        if branch.is_old and isinstance(chunk, c.ToolResultChunk):
            branch.is_old = chunk.call_id in self._known
        for sent in branch.feed(chunk):
            event = sent.event
            is_its_own = (
                isinstance(event, a.ToolCallResult) and event.tool_call_id in self._news.answers
            )
            if not is_its_own:  # the client has a message of its own for that
                self._put(sent)
        if any(call.name == ASK for call in branch.translation.calls.values()):
            self._watch(branch)

    # -- its end --------------------------------------------------------------------------------

    def _end(self, top: Branch, finished: Finished) -> None:
        self._leave(top)
        given, usage = self._given, tuple(top.translation.usage.values())
        error = finished.error
        if isinstance(error, Cancelled):
            self._finish(a.Cancelled(), usage)
        elif error is not None:
            shown = errors.shown(error)
            self._put(Sent(a.RunError(message=shown.message, code=shown.code, usage=usage)))
        else:
            output = None if finished.result is None else finished.result.output
            self._put(
                Sent(
                    a.RunFinished(
                        thread_id=given.thread_id,
                        run_id=given.run_id,
                        result=output,
                        outcome=a.Success(),
                        usage=usage,
                    )
                )
            )

    def _finish(self, outcome: a.Success | a.Cancelled | a.Interrupted, usage: Any) -> None:
        given = self._given
        finished = a.RunFinished(
            thread_id=given.thread_id, run_id=given.run_id, outcome=outcome, usage=usage
        )
        self._put(Sent(finished))

    def _leave(self, top: Branch) -> None:
        """Close what is open: the last of those within first."""
        for branch in reversed(self._branches):
            if branch is not top and not branch.done.is_set():
                self._close(branch)
                self._say_of(branch, a.SubagentFinished(subagent_run_id=branch.run))
                branch.done.set()
        self._close(top)

    def _close(self, branch: Branch) -> None:
        for sent in branch.translation.close():
            self._put(sent)

    def _end_child(self, branch: Branch, finished: Finished) -> None:
        self._close(branch)
        branch.done.set()
        if finished.error is not None:
            shown = errors.shown(finished.error)
            error = a.SubagentError(
                message=shown.message, code=shown.code, subagent_run_id=branch.run
            )
            self._say_of(branch, error)
            return
        text = "" if finished.result is None else finished.result.text
        ended = a.SubagentFinished(subagent_run_id=branch.run, result=text, outcome=a.Success())
        self._say_of(branch, ended)

    # -- what only the client can say -----------------------------------------------------------

    async def _answer(self, branch: Branch, status: c.StatusChunk) -> bool:
        """Hand on what the client has said to this; say whether it has."""
        call = status.call_id or ""
        if call in self._answered:
            return True
        made = branch.translation.calls.get(call)
        if made is not None and made.name == UPDATE_STATE and self._given.state:
            await self._change_state(made)
            return True
        resume, answer = self._news.resumed.get(call), self._news.answers.get(call)
        if resume is not None and status.waits_for == "decision":
            if resume.status == "cancelled":
                return False
            await self._ask("tool:resolve", _verdict_of(call, resume.payload))
        elif status.waits_for == "answer" and (resume is not None or answer is not None):
            content = answer if resume is None else answer_of(resume)
            run = call.rsplit(":", 2)[0]
            asked = CompletionAnswer(run_id=run, content=content or "(nothing)", call_id=call)
            await self._ask("completion:answer", asked)
        else:
            return False
        self._answered.add(call)
        return True

    async def _change_state(self, call: Call) -> None:
        """Change the state as the agent wants it; the front end knows of it before the agent."""
        try:
            state = changed(self._state, changes_of(call.arguments))
            delta = tuple(operations(self._state, state))
            told = "changed" if delta else "it was so already"
        except InvalidData as error:
            delta, told = (), error.message
        else:
            self._state = state
        if delta:
            self._put(Sent(a.StateDelta(delta=delta)))
        await self._flush()
        self._answered.add(call.id)
        run = call.id.rsplit(":", 2)[0]
        answer = CompletionAnswer(run_id=run, content=told, call_id=call.id)
        await self._ask("completion:answer", answer)

    async def _ask(self, event: str, data: Any, kind: Any = None) -> Any:
        return await self._app.request(self._caller, event, data, result_type=kind)

    def _interrupt(self, top: Branch, branch: Branch, status: c.StatusChunk) -> None:
        """End the run, which goes on with the next one that answers."""
        usage = tuple(top.translation.usage.values())
        call = branch.translation.calls.get(status.call_id or "")
        if branch is top and call is not None and call.name in self._client_tools:
            pending = tuple(
                each.id
                for each in branch.translation.calls.values()
                if each.name in self._client_tools
            )
            self._leave(top)
            self._finish(a.Success(pending_tool_call_ids=pending), usage)
            return
        is_question = status.waits_for == "answer"
        interrupt = a.Interrupt(
            id=status.call_id or "",
            reason="question" if is_question else "tool_call_in_doubt",
            message=status.message,
            tool_call_id=status.call_id,
            response_schema={"type": "string"} if is_question else VERDICT_SCHEMA,
            subagent_run_id=None if branch is top else branch.run,
        )
        if branch is not top:
            self._close(branch)
            suspended = a.Suspended(interrupt_ids=(interrupt.id,))
            self._say_of(branch, a.SubagentFinished(subagent_run_id=branch.run, outcome=suspended))
            branch.done.set()
        self._leave(top)
        self._finish(a.Interrupted(interrupts=(interrupt,)), usage)

    # -- those within ---------------------------------------------------------------------------

    def _start(self, branch: Branch) -> None:
        self._branches.append(branch)
        self._do(self._read_within(branch), branch.run)

    def _do(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None
        task = self._tasks.create_task(work, name=name)
        self._started.append(task)
        return task

    def _watch(self, branch: Branch) -> None:
        """Look for turns that are asked for within one, from now on."""
        if branch.run not in self._watched and not branch.is_behind:
            self._watched.add(branch.run)
            self._do(self._look(branch), f"within {branch.run}")

    async def _look(self, branch: Branch) -> None:
        known = 0
        with suppress(KsiError):  # the turn itself tells what is wrong
            while not branch.done.is_set():
                known = await self._discover(branch, known, CHILDREN_S)

    async def _discover(self, branch: Branch, known: int, wait_s: float) -> int:
        turns = await self._app.chats.within(self._caller, branch.run, known, wait_s)
        seen = {each.run for each in self._branches}
        for turn in turns:
            if turn.run_id not in seen:
                is_old = branch.is_old and await self._leads_to_what_is_resumed(turn.run_id)
                self._join(branch, turn, is_old=is_old)
        return len(turns)

    async def _leads_to_what_is_resumed(self, run: str) -> bool:
        """Say whether a turn has asked what the client answers, or another has within it."""
        if any(call.startswith(f"{run}:") for call in self._news.resumed):
            return True
        for turn in await self._app.chats.within(self._caller, run):
            if await self._leads_to_what_is_resumed(turn.run_id):
                return True
        return False

    def _join(self, parent: Branch, turn: Turn, *, is_old: bool) -> None:
        """Follow a turn that was asked for within another, if the client is to see it."""
        call = _call_of(parent, turn)
        is_over = turn.run_id in self._marks and self._marks[turn.run_id] is None
        is_over = is_over or (parent.is_old and turn.status not in OPEN)
        if call is None or is_over:
            return
        owner = turn.run_id
        branch = Branch(Translation(owner, self._snapshot, owner), turn.agent or "", call)
        place = self._marks.get(owner)
        if place is not None:
            branch.resumption = Resumption(branch.translation, place)
            self._start(branch)
            return
        branch.is_old = is_old
        self._start(branch)
        started = a.SubagentStarted(
            subagent_run_id=owner,
            name=branch.agent or "agent",
            parent_subagent_run_id=None if parent is self._branches[0] else parent.run,
            parent_tool_call_id=call,
        )
        self._say_of(branch, started)

    async def _read_within(self, branch: Branch) -> None:
        try:
            async with self._followed(branch.run) as chunks:
                await self._read(branch, chunks)
        except KsiError as error:
            await self._queue.put((branch, Finished(error=error)))

    async def _read(self, branch: Branch, chunks: Chunks) -> None:
        """Put what a turn says into the queue, as it comes."""
        result, error = None, None
        try:
            async for chunk in chunks:
                if isinstance(chunk, c.Completion):
                    result = chunk
                    break
                if isinstance(chunk, c.ToolResultChunk) and chunk.name == ASK:
                    await self._let_end(branch, chunk.call_id)
                if not isinstance(chunk, c.AcceptedChunk):
                    await self._queue.put((branch, chunk))
        except KsiError as failure:
            error = failure
        await self._queue.put((branch, Finished(result, error)))

    async def _let_end(self, parent: Branch, call: str) -> None:
        """Wait until the turns behind a call have been shown to their ends."""
        all_sent = asyncio.Event()
        await self._queue.put((parent, all_sent))
        await all_sent.wait()
        if parent.is_behind or parent.is_old:
            return
        with suppress(TimeoutError, KsiError):
            async with asyncio.timeout(CHILD_END_S):
                await self._discover(parent, 0, 0.0)
                for each in list(self._branches):
                    if each.call_id == call:
                        await each.done.wait()

    # -- those before ---------------------------------------------------------------------------

    def _mind_the_turn_before(self, top: Branch, chunk: c.CompletionChunk) -> None:
        """See to it that the run ends where it waits for a turn that waits for a person."""
        if isinstance(chunk, c.StatusChunk):
            if chunk.waits_for == "turn" and self._looking is None:
                self._looking = self._do(self._look_before(top), "the turn before")
        elif self._looking is not None:
            self._looking.cancel()

    async def _look_before(self, top: Branch) -> None:
        chats, thread = self._app.chats, self._given.conversation
        while True:
            with suppress(KsiError):
                if await chats.waits_for_a_person(self._caller, thread, but_for=top.run):
                    await self._queue.put((top, Finished(error=Conflict(WAITED_FOR))))
                    return
            await asyncio.sleep(LOOK_S)

    # -- sending --------------------------------------------------------------------------------

    def _say_of(self, branch: Branch, event: a.AgUiEvent) -> None:
        self._put(Sent(event, branch.translation.place))

    def _put(self, sent: Sent) -> None:
        """Write an event where it waits to be sent."""
        event = sent.event if self._older is None else self._older.told(sent.event)
        if event is None:
            return
        if sent.place is not None:
            self._pending += b"id: " + self._id().encode() + b"\n"
        self._pending += b"data: " + write(event) + b"\n\n"

    def _id(self) -> str:
        top, *within = self._branches
        open_calls = top.translation.calls
        shown = [each for each in within if each.call_id in open_calls or not each.done.is_set()]
        return "|".join([str(top.translation.place), *(each.mark for each in shown)])

    async def _flush(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            await self._stream.write(bytes(pending))

    def _snapshot(self) -> a.MessagesSnapshot:
        """Return all messages: those of the client, and what was said since."""
        given = [msgspec.to_builtins(each) for each in self._given.messages]
        before = tuple(_without_nothing(each) for each in given)
        own = tuple(
            {**each.as_input(), **({} if branch is self._branches[0] else _owned(branch))}
            for branch in self._branches
            for each in branch.translation.messages
        )
        known = {each["id"] for each in own}
        return a.MessagesSnapshot(
            messages=(*(each for each in before if each["id"] not in known), *own)
        )


def _accepted(chunk: c.CompletionChunk) -> str:
    """Return the turn that a stream begins with.

    Raises:
        Unavailable: The daemon was lost before it took it on.
    """
    if not isinstance(chunk, c.AcceptedChunk):
        raise Unavailable("the daemon was lost before it took this on", retry_after_s=1.0)
    return chunk.run_id


def _is_not_there(error: KsiError | None) -> TypeGuard[NotFound]:
    """Say whether there is no such turn, rather than that it failed."""
    return isinstance(error, NotFound) and "run_id" not in (error.details or {})


def _owned(branch: Branch) -> dict[str, str]:
    return {"subagentRunId": branch.run}


def _without_nothing(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}


def _call_of(parent: Branch, turn: Turn) -> str | None:
    """Return the call by which a turn was asked for, as long as it has no result."""
    calls = parent.translation.calls
    if turn.request_id in calls:
        return turn.request_id
    if turn.status not in OPEN:
        return None
    for call in calls.values():
        if call.name == ASK and _agent_of(call.arguments) == turn.agent:
            return call.id
    return None


def _agent_of(arguments: str) -> Any:
    with suppress(msgspec.DecodeError):
        asked = msgspec.json.decode(arguments)
        return asked.get("agent") if isinstance(asked, dict) else None
    return None


def _verdict_of(call: str, payload: Any) -> ToolResolve:
    """Return what a person says of a call in doubt.

    Raises:
        InvalidData: It is no verdict.
    """
    told = {"verdict": payload} if isinstance(payload, str) else payload
    try:
        return msgspec.convert({**(told or {}), "call_id": call}, ToolResolve)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidData(
            f"resume: a call in doubt is answered with a verdict, one of {', '.join(VERDICTS)}"
        ) from error
