"""Runs the stages of the demo, and whatever happens stops what was started."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Final

import typer
from msgspec import Struct
from rich.console import Console

from ksi_cli import output
from ksi_cli.demo import agents, asking, crash, stages
from ksi_cli.demo.answers import Answers, Keyboard, Left, Prepared
from ksi_cli.demo.crash import PostOffice
from ksi_cli.demo.place import Place
from ksi_cli.demo.screen import Claim, Screen
from ksi_cli.demo.stages import Demo
from ksi_client import AsyncClient, KsiError, TimedOut

UNATTENDED: Final = ("k", "y", "m", "", "q")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHOICES: Final = (
    ("k", "kill the daemon with -9, amid an effect"),
    ("m", "ask the memory something, and where the answer is from"),
    ("q", "end, and delete all of this"),
)


class DemoReport(Struct, frozen=True):
    """What the demo claimed; all of it was looked at and holds."""

    claims: tuple[Claim, ...]
    seconds: float


def run(model: str | None, *, is_attended: bool, is_silent: bool) -> DemoReport:
    """Show all of it.

    Args:
        model: Which one the agents work with.
        is_attended: Whether somebody presses keys.
        is_silent: Whether nothing is shown.

    Raises:
        KsiError: Something that was claimed is not so, or could not even be tried.
    """
    began_at = time.monotonic()
    screen = Screen(Console(highlight=False, quiet=is_silent))
    with Place() as place, _answers(is_attended=is_attended) as answers:
        asyncio.run(Show(Demo(place, screen, answers, model)).run())
    return DemoReport(tuple(screen.claims), round(time.monotonic() - began_at, 1))


@contextlib.contextmanager
def _answers(*, is_attended: bool) -> Iterator[Answers]:
    if not is_attended:
        yield Prepared(UNATTENDED)
        return
    with Keyboard() as keyboard:
        yield keyboard


class Show:
    """One run of the demo.

    Args:
        demo: What its stages share.
    """

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._signal: signal.Signals | None = None
        self._is_stopping = False

    async def run(self) -> None:
        """Run it to its end.

        Raises:
            KsiError: Something is not as it should be; what is left is there to be looked at.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        for number in SIGNALS:
            loop.add_signal_handler(number, self._interrupt, number, task)
        try:
            await self._show()
        except BaseException as error:
            self._is_stopping = True
            await self._stop(error)
            if self._signal is not None:
                output.note("interrupted; the demo's daemon has stopped, and all of it is deleted")
                raise typer.Exit(128 + self._signal) from None
            raise _told(error, self._demo) from error

    async def _stop(self, error: BaseException) -> None:
        """Stop the daemon; its log is kept where something has failed, and not merely ended."""
        self._demo.screen.console.quiet = True  # its terminal, or who read a pipe, may be gone
        if self._signal is not None or isinstance(error, SystemExit):
            await self._clear()
        else:
            await self._demo.daemon.stop()

    def _interrupt(self, number: signal.Signals, task: "asyncio.Task[None]") -> None:
        if not self._is_stopping:  # a second one must not keep it from stopping what it started
            self._signal, self._is_stopping = number, True
            task.cancel()

    async def _show(self) -> None:
        demo, screen = self._demo, self._demo.screen
        screen.title(
            "KSI, in two minutes",
            f"A daemon of the demo's own, in {output.displayed(demo.place.root)}, which is deleted "
            "in the end. Yours, if there is one, is left alone.",
        )
        await stages.start(demo)
        connected = AsyncClient(demo.running.socket, token="", on_error=lambda _: None)
        async with connected as demo.client:
            await stages.look_at_plugins(demo)
            office = PostOffice(demo.place.box)
            await demo.client.serve("post:letter", office.post, data_schema=crash.SCHEMA)
            await stages.read_documentation(demo)
            await agents.work(demo)
            with contextlib.suppress(Left):
                await self._invite(office)
        screen.stage("The end")
        await self._clear()
        screen.claim(
            "the demo's daemon has stopped, and all that it had is deleted",
            holds=not demo.place.root.exists(),
        )
        self._tell_what_is_next()

    async def _invite(self, office: PostOffice) -> None:
        """Have somebody choose what to see, until that is enough."""
        while True:
            key = await self._demo.screen.choose(self._demo.answers, CHOICES)
            if key == "q":
                return
            if key == "k":
                await crash.crash(self._demo, office)
            else:
                await asking.ask(self._demo)

    async def _clear(self) -> None:
        with self._demo.screen.waiting("stopping the demo's daemon …"):
            await self._demo.daemon.stop()
            self._demo.place.remove()

    def _tell_what_is_next(self) -> None:
        ksi = output.command_name()
        screen = self._demo.screen
        screen.heading("Next, for yourself:")
        screen.lines(
            (
                f"{ksi} start           a daemon that stays",
                f"{ksi} chat            talk to a model",
                f"{ksi} upsert ~/notes  have it remember what you know",
            )
        )


def _told(error: BaseException, demo: Demo) -> BaseException:
    """Return an error as it is to be told: the first of a group, and where to look."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        error = TimedOut(f"what was waited for never came, in “{demo.screen.current}”")
    if not isinstance(error, KsiError):
        return error
    where = output.displayed(demo.place.log)
    error.message = f"{error.message} (its log is kept until the next demo: {where})"
    return error
