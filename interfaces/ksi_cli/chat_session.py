"""A conversation between a person and a model: says, watches, asks back, stops."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from msgspec import Struct

from ksi_cli import output, turns
from ksi_cli.chat_input import Input
from ksi_cli.chat_screen import Answer, Screen
from ksi_client import (
    AcceptedChunk,
    AsyncClient,
    Completion,
    CompletionChunk,
    KsiError,
    StatusChunk,
)

VERDICTS = ("done", "redo", "drop")


class Left(Exception):
    """The person has left."""


class Totals(Struct):
    """What this session has taken so far."""

    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced_turns: int = 0

    def add(self, completion: Completion) -> None:
        """Count a turn."""
        self.turns += 1
        self.input_tokens += completion.usage.input_tokens
        self.output_tokens += completion.usage.output_tokens
        self.cost_usd += completion.cost_usd or 0.0
        self.unpriced_turns += completion.cost_usd is None


class Session:
    """The state of one ``ksi chat``.

    Args:
        client: The daemon.
        screen: Where answers are shown.
        person: Who is asked.
        model: Which model to ask; the conversation's own unless given.
        conversation_id: What to go on with.
        agent: In whose name.
        user: Who says it.
    """

    def __init__(
        self,
        client: AsyncClient,
        screen: Screen,
        person: Input,
        *,
        model: str | None = None,
        conversation_id: str | None = None,
        agent: str | None = None,
        user: str | None = None,
    ) -> None:
        self.client = client
        self.screen = screen
        self.person = person
        self.model = model
        self.conversation_id = conversation_id
        self.agent = agent
        self.user = user
        self.totals = Totals()
        self._running: _Watched | None = None

    @property
    def context(self) -> dict[str, Any] | None:
        """In whose name events are sent."""
        return {"user": self.user} if self.user else None

    async def request(self, event: str, **data: Any) -> Any:
        """Ask the daemon something in this session's name."""
        return await self.client.request(event, data, context=self.context)

    async def say(self, text: str) -> None:
        """Have a turn, and show it."""
        await self.say_parts([{"kind": "text", "text": text}])

    async def say_parts(self, parts: Sequence[dict[str, Any]]) -> None:
        """Have a turn that a message of these parts begins, and show it."""
        await self._watch(
            self.client.stream_completion(
                messages=[{"role": "user", "parts": parts}],
                model=self.model,
                conversation_id=self.conversation_id,
                agent=self.agent,
                context=self.context,
            )
        )

    async def attach(self, run_id: str) -> None:
        """Show a turn that runs already."""
        self.screen.say("a turn is under way; Ctrl-C stops it")
        await self._watch(self.client.follow_completion(run_id, context=self.context))

    def interrupt(self) -> bool:
        """Stop the turn that runs; say whether there is one."""
        if self._running is None:
            return False
        self._running.stop()
        return True

    async def _watch(self, chunks: AsyncGenerator[CompletionChunk]) -> None:
        with self.screen.answering() as answer:
            watched = _Watched(self.client, self.person, answer)
            with self._as_running(watched):
                error = await watched.run(chunks)
        self.conversation_id = watched.conversation_id or self.conversation_id
        if error is None and watched.ended is not None:
            self.totals.add(watched.ended)
        elif error is not None and watched.is_stopped:
            self.screen.say("stopped; what you said is kept")
        elif error is not None:
            self.screen.fail(output.reason(error))
            self._tell_what_is_left(watched, error)
        elif watched.is_left:
            self.screen.say(f"the turn goes on in the daemon: ksi turn status {watched.run_id}")
        if watched.has_gone:
            raise Left

    def _tell_what_is_left(self, watched: "_Watched", error: KsiError) -> None:
        if watched.run_id is not None and not turns.is_of_turn(error):
            self.screen.say(f"the turn goes on in the daemon: ksi turn wait {watched.run_id}")
        elif watched.conversation_id:
            self.screen.say("what you said is kept; try again with /retry")

    @contextmanager
    def _as_running(self, watched: "_Watched") -> Any:
        self._running = watched
        try:
            yield
        finally:
            self._running = None


class _Watched:
    """A turn whose chunks are shown, and whose questions are put to the person."""

    def __init__(self, client: AsyncClient, person: Input, answer: Answer) -> None:
        self.run_id: str | None = None
        self.conversation_id: str | None = None
        self.ended: Completion | None = None
        self.is_stopped = False
        self.is_left = False
        self.has_gone = False
        self._client = client
        self._person = person
        self._answer = answer
        self._question: asyncio.Task[None] | None = None
        self._asked: str | None = None
        self._stop = asyncio.Event()
        self._accepted = asyncio.Event()
        self._leave: Callable[[], object] = lambda: None

    async def run(self, chunks: AsyncGenerator[CompletionChunk]) -> KsiError | None:
        """Show the turn to its end; returns why it failed."""
        failed: KsiError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                stopping = group.create_task(self._stop_when_told(), name="stop")
                reading = group.create_task(self._read(group, chunks), name="read")
                self._leave = reading.cancel
                try:
                    failed = await reading
                except asyncio.CancelledError:
                    if not self.is_left:
                        raise
                finally:
                    stopping.cancel()
                    self._end_question()
        except* KsiError as errors:
            failed = _first(errors)
        return failed

    def stop(self) -> None:
        """End the turn; asked a second time, leave it to itself."""
        if self.is_stopped:
            self._leave_turn()
        self.is_stopped = True
        self._stop.set()

    def _leave_turn(self) -> None:
        self.is_left = True
        self._leave()

    async def _stop_when_told(self) -> None:
        await self._stop.wait()
        self._end_question()
        await self._accepted.wait()
        try:
            await self._client.cancel_completion(self.run_id or "", reason="stopped by Ctrl-C")
        except KsiError as error:
            self._answer.note(f"the turn may go on: {error.message}; Ctrl-C again leaves it")

    async def _read(
        self, group: asyncio.TaskGroup, chunks: AsyncGenerator[CompletionChunk]
    ) -> KsiError | None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._take(chunk, group)
        except KsiError as error:
            details = error.details or {}
            self.conversation_id = self.conversation_id or details.get("conversation_id")
            return error
        return None

    def _take(self, chunk: CompletionChunk, group: asyncio.TaskGroup) -> None:
        if isinstance(chunk, AcceptedChunk):
            self.run_id, self.conversation_id = chunk.run_id, chunk.conversation_id
            self._accepted.set()
        elif isinstance(chunk, Completion):
            self.ended = chunk
        if isinstance(chunk, StatusChunk) and chunk.waits_for in turns.ASKS:
            if self._asked != chunk.call_id or self._question is None:
                self._end_question()
                self._asked = chunk.call_id
                self._answer.pause()
                self._question = group.create_task(self._ask(chunk), name="question")
            return
        if not isinstance(chunk, StatusChunk):
            self._end_question()  # somebody else has answered it
        self._answer.show(chunk)

    def _end_question(self) -> None:
        if self._question is not None:
            self._question.cancel()
            self._question = None
            self._answer.resume()

    async def _ask(self, chunk: StatusChunk) -> None:
        try:
            if chunk.waits_for == "answer":
                await self._ask_answer(chunk)
            else:
                await self._ask_decision(chunk)
        except KeyboardInterrupt:
            self.stop()
        except EOFError:
            self.has_gone = True
            self._leave_turn()
        except KsiError as error:
            self._answer.note(error.message)
        finally:
            if self._question is asyncio.current_task():
                self._question = None
                self._answer.resume()

    async def _ask_answer(self, chunk: StatusChunk) -> None:
        self._answer.note(f"? {chunk.message}")
        said = await self._person.ask("answer> ", is_question=True)
        await self._client.answer_completion(self.run_id or "", said, call_id=chunk.call_id)

    async def _ask_decision(self, chunk: StatusChunk) -> None:
        self._answer.note(f"! {chunk.message}\n  {turns.how_to_answer(chunk, self.run_id or '')}")
        while True:
            said = (await self._person.ask("done, redo or drop> ", is_question=True)).strip()
            verdict, _, content = said.partition(" ")
            if verdict in VERDICTS:
                break
            self._answer.note("done: it has happened; redo: it has not, call again; drop: leave it")
        request = {"call_id": chunk.call_id, "verdict": verdict, "content": content}
        await self._client.request("tool:resolve", request)


def _first(errors: BaseExceptionGroup[KsiError]) -> KsiError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
