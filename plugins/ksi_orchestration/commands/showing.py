"""What an orchestration looks like while it goes on: on a terminal live, elsewhere as text."""

import sys
import time
from collections.abc import Callable
from typing import Final, Protocol

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ksi_cli import output, turns
from ksi_cli.chat_screen import Below, Block
from ksi_cli.markdown_flow import MarkdownFlow
from ksi_client import CompletionChunk, RestartedChunk, TextChunk, ToolCallChunk, ToolResultChunk
from ksi_orchestration.commands import words
from ksi_orchestration.events import FollowChunk, Orchestration, StatusChanged, TurnBegan, Utterance

COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta")
NAMED: Final = 4  # of those who speak at once


class Show(Protocol):
    """Shows an orchestration."""

    @property
    def live_run(self) -> str | None:
        """The turn whose words are to be shown as they come, if there is one."""

    def take(self, chunk: FollowChunk) -> None:
        """Show what came."""

    def heard(self, run_id: str, chunk: CompletionChunk) -> None:
        """Show what the one who speaks says just now."""

    def note(self, text: str) -> None:
        """Say something that is no part of it."""

    def pause(self) -> None:
        """Leave the terminal to a question."""

    def resume(self) -> None:
        """Take the terminal again."""

    def tick(self) -> None:
        """Move on what moves."""


class JsonShow:
    """Prints each thing that happens as one line of JSON."""

    @property
    def live_run(self) -> str | None:
        """None: what is said comes whole."""
        return None

    def take(self, chunk: FollowChunk) -> None:
        """Print it."""
        output.write_json(chunk)
        sys.stdout.flush()

    def heard(self, run_id: str, chunk: CompletionChunk) -> None:
        """Leave it out: it comes whole."""

    def note(self, text: str) -> None:
        """Say something that is no part of it."""
        output.note(text)

    def pause(self) -> None:
        """Do nothing: there is no terminal."""

    def resume(self) -> None:
        """Do nothing: there is no terminal."""

    def tick(self) -> None:
        """Do nothing: nothing moves."""


class PlainShow(JsonShow):
    """Writes what is said to stdout when it was said, and all else to stderr."""

    def __init__(self) -> None:
        self._stage = ""

    def take(self, chunk: FollowChunk) -> None:
        """Write it."""
        if isinstance(chunk, Utterance):
            sys.stdout.write(output.clean(words.utterance_text(chunk)) + "\n\n")
            sys.stdout.flush()
        elif isinstance(chunk, StatusChanged):
            it = chunk.orchestration
            if it.stage != self._stage or it.status == "paused":
                self._stage = it.stage
                output.note(words.standing(it))


class LiveShow:
    """Shows on a terminal who speaks, each in a colour: the one who speaks alone as it speaks.

    Of several who speak at once each is shown when it is done.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None
        self._colours: dict[str, str] = {}
        self._speaking: dict[str, TurnBegan] = {}
        self._solo: TurnBegan | None = None
        self._flow = MarkdownFlow()
        self._fed: str | None = None  # what has come since the last tool call; none: nothing yet
        self._held: list[Utterance] = []  # said while somebody else speaks here
        self._now: Orchestration | None = None
        self._began_at = time.monotonic()

    @property
    def live_run(self) -> str | None:
        """The turn whose words are to be shown as they come."""
        return None if self._solo is None else self._solo.run_id

    def take(self, chunk: FollowChunk) -> None:
        """Show what came."""
        if isinstance(chunk, TurnBegan):
            self._began(chunk)
        elif isinstance(chunk, Utterance):
            self._said(chunk)
        else:
            self._stands(chunk.orchestration)

    def _began(self, turn: TurnBegan) -> None:
        if turn.run_id in self._speaking:
            return
        self._speaking[turn.run_id] = turn
        self._began_at = time.monotonic()
        if len(self._speaking) == 1:
            self._solo = turn
        elif self._fed is None:
            self._solo = None

    def _stands(self, it: Orchestration) -> None:
        was, self._now = self._now, it
        if was is None or was.status != it.status:
            if it.status == "paused":
                self.note("paused; what runs is finished")
            elif was is not None and was.status == "paused" and it.status == "running":
                self.note("it goes on")

    # -- who speaks -----------------------------------------------------------------------------

    def heard(self, run_id: str, chunk: CompletionChunk) -> None:
        """Show what the one who speaks says just now."""
        if self._solo is None or run_id != self._solo.run_id:
            return
        if isinstance(chunk, TextChunk):
            self._feed(self._solo, chunk.text)
        elif isinstance(chunk, RestartedChunk) and self._fed is not None:
            self._flow.finish()
            self._fed = ""
            self.note(f"the answer begins again: {turns.one_line(chunk.why, 300)}")
        elif isinstance(chunk, ToolCallChunk):
            self._end_step()
            self.note(f"calling {turns.called(chunk)}")
        elif isinstance(chunk, ToolResultChunk):
            self.note(f"  {turns.came_of(chunk)}")

    def _feed(self, turn: TurnBegan, text: str) -> None:
        if self._fed is None:
            self._head(turn)
            self._fed = ""
        self._fed += text
        for block in self._flow.feed(text):
            self._print(block)

    def _end_step(self) -> None:
        rest = self._flow.finish()
        if rest.strip():
            self._print(rest)
        if self._fed is not None:
            self._fed = ""

    def _said(self, said: Utterance) -> None:
        turn = self._speaking.pop(said.run_id or "", None)
        if turn is not None and turn is self._solo:
            self._end_solo(turn, said)
        elif self._fed is not None:
            self._held.append(said)
        else:
            self._whole(said)

    def _end_solo(self, turn: TurnBegan, said: Utterance) -> None:
        """Show what had not come yet of what was said, and then what others said meanwhile."""
        if said.error is None and said.text.startswith(self._fed or ""):
            self._feed(turn, said.text[len(self._fed or "") :])
        self._end_step()
        self._tail(said)
        self._solo = self._fed = None
        held, self._held = self._held, []
        for each in held:
            self._whole(each)

    def _whole(self, said: Utterance) -> None:
        if said.error is None:
            self._head(said)
            self._console.print(Block(said.text))
            self._console.print()
        self._tail(said)

    def _head(self, who: Utterance | TurnBegan) -> None:
        name = words.speaker(who)
        colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
        head = Text(output.clean(f"● {name}"), style=f"bold {colour}")
        head.append(output.clean(f"  {words.place(who)}"), style="dim")
        self._console.print(head)

    def _tail(self, said: Utterance) -> None:
        if said.error is not None:
            self._console.print(Text(output.clean(words.failed(said)), style="red"))
        elif took := words.took(said):
            self.note(took)
        self._console.print()

    def _print(self, block: str) -> None:
        self._console.print(Block(block))
        self._console.print()

    # -- the terminal ---------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Say something that is no part of it."""
        self._console.print(Text(output.clean(text), style="dim"))

    def pause(self) -> None:
        """Leave the terminal to a question."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def resume(self) -> None:
        """Take the terminal again."""
        if self._live is None:
            self._live = Live(
                _Under(self._below),
                console=self._console,
                auto_refresh=False,  # its thread would write amid what is printed here
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)

    def tick(self) -> None:
        """Draw anew what is below."""
        if self._live is not None:
            self._live.refresh()

    def _below(self) -> RenderableType:
        return Below(self._flow.tail, self._spinner, self._progress(), self._began_at)

    def _progress(self) -> str:
        names = [each.member for each in self._speaking.values()]
        who = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" * (len(names) > NAMED))
        parts = [f"{who} at work" if who else "waiting"]
        if self._now is not None:
            if self._now.status == "paused":
                parts = ["paused"] if not who else [*parts, "then paused"]
            parts.append(words.spent(self._now))
        return " · ".join(parts)


class _Under:
    """What stands below all that was printed, as it is whenever something is drawn."""

    def __init__(self, below: Callable[[], RenderableType]) -> None:
        self._below = below

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._below()
