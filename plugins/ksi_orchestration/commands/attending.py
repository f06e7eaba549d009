"""Follows an orchestration for a person: shows it, and asks what to do at Ctrl-C."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext
from functools import partial
from typing import Any, Final, Literal

from ksi_cli import output
from ksi_cli.chat_input import TerminalInput
from ksi_client import AsyncClient, KsiError, Unavailable
from ksi_orchestration.commands.showing import JsonShow, LiveShow, PlainShow, Show
from ksi_orchestration.events import FollowChunk, Orchestration, StatusChanged, Utterance

RECONNECT_S: Final = 60.0
AGAIN_S: Final = 0.3
TICK_S: Final = 0.125
QUESTION: Final = "pause, stop, detach or go on? [p/s/d/g] "
QUESTION_PAUSED: Final = "go on, stop or detach? [g/s/d] "

Left = Literal["ended", "detached", "interrupted"]


def show_for(*, as_json: bool) -> Show:
    """Return what fits to where stdout leads."""
    if as_json:
        return JsonShow()
    return LiveShow() if is_terminal() else PlainShow()


def is_terminal() -> bool:
    """Say whether somebody can be asked, and shown what moves."""
    is_plain = os.environ.get("TERM") in (None, "dumb")
    return sys.stdin.isatty() and sys.stdout.isatty() and not is_plain


class Attending:
    """Follows one orchestration.

    Args:
        client: Connected to the daemon.
        which: The orchestration's id.
        show: Shows it.

    Attributes:
        was_stopped: Whether the person has stopped it here.
    """

    def __init__(self, client: AsyncClient, which: str, show: Show) -> None:
        self.was_stopped = False
        self._client = client
        self._which = which
        self._show = show
        self._after = 0
        self._now: Orchestration | None = None
        self._person = TerminalInput(()) if isinstance(show, LiveShow) else None
        self._group: asyncio.TaskGroup | None = None
        self._question: asyncio.Task[None] | None = None
        self._listening: tuple[str, asyncio.Task[None]] | None = None
        self._held: list[Callable[[], None]] = []  # what came while a question stands there
        self._left: Left = "ended"
        self._leave = asyncio.Event()

    async def run(self, after: int = 0) -> Left:
        """Show it until it has ended, or the person leaves it.

        Raises:
            KsiError: It is not there, or the daemon is gone for too long.
        """
        self._after = after
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        failed: list[KsiError] = []
        try:
            with nullcontext() if self._person is None else self._person.quiet():
                self._show.resume()
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    reading = group.create_task(self._read(failed), name="follow")
                    ticking = group.create_task(self._tick(), name="tick")
                    leaving = group.create_task(self._leave.wait(), name="leave")
                    await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
                    for task in (reading, leaving, ticking, self._question):
                        if task is not None:
                            task.cancel()
                    self._listen(None)
        finally:
            self._show.pause()
            loop.remove_signal_handler(signal.SIGINT)
        if failed:
            raise failed[0]
        return self._left

    async def _tick(self) -> None:
        while True:
            self._show.tick()
            await asyncio.sleep(TICK_S)

    # -- following ------------------------------------------------------------------------------

    async def _read(self, failed: list[KsiError]) -> None:
        try:
            async for chunk in self._chunks():
                self._now_or_later(partial(self._take, chunk))
            while self._question is not None:  # the answer to it comes too late
                self._end_question()
        except KsiError as error:
            failed.append(error)

    def _now_or_later(self, show: Callable[[], None]) -> None:
        """Show something, or keep it until the question is answered."""
        if self._question is None:
            show()
        else:
            self._held.append(show)

    def _take(self, chunk: FollowChunk) -> None:
        if isinstance(chunk, StatusChanged):
            self._now = chunk.orchestration
        self._show.take(chunk)
        self._listen(self._show.live_run)

    async def _chunks(self) -> AsyncGenerator[FollowChunk]:
        """Yield what happens, also where the daemon goes away and returns."""
        loop = asyncio.get_running_loop()
        lost_at: float | None = None
        while True:
            try:
                ask = {"id": self._which, "after": self._after}
                chunks = self._client.stream("orchestration:follow", ask, result_type=FollowChunk)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        if lost_at is not None:
                            self._show.note("the daemon is back")
                            lost_at = None
                        if isinstance(chunk, Utterance):
                            self._after = chunk.number
                        yield chunk
                return
            except Unavailable as error:
                if lost_at is None:
                    lost_at = loop.time()
                    self._show.note("looking for the daemon")
                if loop.time() - lost_at > RECONNECT_S:
                    raise
                await asyncio.sleep(error.retry_after_s or AGAIN_S)

    def _listen(self, run: str | None) -> None:
        """Have shown what is said in a turn as it is said, and in no other."""
        if self._listening is not None:
            if self._listening[0] == run:
                return
            self._listening[1].cancel()
            self._listening = None
        if run is not None and self._group is not None:
            task = self._group.create_task(self._hear(run), name=f"listen {run}")
            self._listening = (run, task)

    async def _hear(self, run: str) -> None:
        chunks = self._client.follow_completion(run)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._now_or_later(partial(self._show.heard, run, chunk))
        except KsiError:
            return  # what came of it is told by the orchestration

    # -- Ctrl-C ---------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        if self._person is None or self._question is not None or self._group is None:
            self._go("interrupted")
            return
        self._question = self._group.create_task(self._ask(self._person), name="question")

    def _go(self, how: Left) -> None:
        self._left = how
        self._leave.set()

    async def _ask(self, person: TerminalInput) -> None:
        is_paused = self._now is not None and self._now.status == "paused"
        self._show.pause()
        try:
            question = QUESTION_PAUSED if is_paused else QUESTION
            said = (await person.ask(question, is_question=True)).strip().lower()
            await self._do(said[:1], is_paused=is_paused)
        except (KeyboardInterrupt, EOFError):
            self._go("detached")
        except KsiError as error:
            self._show.note(output.reason(error))
        finally:
            self._end_question()

    async def _do(self, letter: str, *, is_paused: bool) -> None:
        if letter == "s":
            self.was_stopped = True  # its end may be seen before this is answered
            await self._order("stop")
        elif letter == "d":
            self._go("detached")
        elif letter == "p" and not is_paused:
            await self._order("pause")
        elif letter in ("g", "") and is_paused:
            await self._order("resume")
        elif letter not in ("g", ""):
            self._show.note("it goes on")

    async def _order(self, what: str) -> None:
        data: dict[str, Any] = {"id": self._which}
        if what == "stop":
            data["reason"] = "stopped by Ctrl-C"
        await self._client.request(f"orchestration:{what}", data)

    def _end_question(self) -> None:
        if self._question is None:
            return
        if self._question is not asyncio.current_task():
            self._question.cancel()
        self._question = None
        if not self._leave.is_set():
            self._show.resume()
        held, self._held = self._held, []
        for show in held:
            show()
