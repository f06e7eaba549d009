"""What a conversation looks like: on a terminal laid out as it comes, elsewhere as plain lines."""

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ksi_cli import output, turns
from ksi_cli.markdown_flow import MarkdownFlow
from ksi_client import (
    Completion,
    CompletionChunk,
    RestartedChunk,
    StatusChunk,
    TextChunk,
    ToolCallChunk,
    ToolResultChunk,
)

MAX_TAIL: Final = 8_000  # characters that are laid out again at each refresh
REFRESH_PER_S: Final = 8
ASKING: Final = "ask_user"


class Screen(Protocol):
    """Shows a conversation."""

    def answering(self) -> "Answer":
        """Return what shows one answer; use it in ``with``."""

    def say(self, text: str) -> None:
        """Say something that is no part of the conversation."""

    def fail(self, text: str) -> None:
        """Say what went wrong."""

    def message(self, who: str, text: str) -> None:
        """Show a message of the past."""

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""


class Answer(Protocol):
    """Shows one answer as it comes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, chunk: CompletionChunk) -> None:
        """Show what came."""

    def note(self, text: str) -> None:
        """Say something in the middle of it."""

    def pause(self) -> None:
        """Leave the terminal to a question."""

    def resume(self) -> None:
        """Take the terminal again."""


# -- plain ---------------------------------------------------------------------------------------


class PlainScreen:
    """Writes answers to stdout as they come, and all else to stderr."""

    def answering(self) -> "PlainAnswer":
        """Return what shows one answer."""
        return PlainAnswer()

    def say(self, text: str) -> None:
        """Say something that is no part of the conversation."""
        output.note(text)

    def fail(self, text: str) -> None:
        """Say what went wrong."""
        output.note(f"ksi: {text}")

    def message(self, who: str, text: str) -> None:
        """Show a message of the past."""
        output.write(f"{who}: {text}")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""
        output.write(output.table(headings, rows))


class PlainAnswer:
    """Writes one answer as it comes."""

    def __init__(self) -> None:
        self._line_is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_line()

    def show(self, chunk: CompletionChunk) -> None:
        """Write what came."""
        if isinstance(chunk, TextChunk):
            self._write(turns.plain(chunk.text))
        elif told := told_of(chunk):
            self.note(told)

    def note(self, text: str) -> None:
        """Say something in the middle of it."""
        self._end_line()
        output.note(text)

    def pause(self) -> None:
        """Leave the terminal to a question."""
        self._end_line()

    def resume(self) -> None:
        """Take the terminal again."""

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._line_is_open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._line_is_open:
            self._write("\n")


def told_of(chunk: CompletionChunk) -> str:
    """Say in a line what is worth a line of its own; nothing of what is not."""
    if isinstance(chunk, RestartedChunk):
        return f"the answer begins again: {turns.one_line(chunk.why, 300)}"
    if isinstance(chunk, ToolCallChunk | ToolResultChunk) and chunk.name == ASKING:
        return ""  # the question and its answer stand there
    if isinstance(chunk, ToolCallChunk):
        return f"calling {turns.called(chunk)}"
    if isinstance(chunk, ToolResultChunk):
        return f"  {turns.came_of(chunk)}"
    if isinstance(chunk, StatusChunk) and chunk.waits_for == "daemon":
        return turns.one_line(chunk.message, 300)
    if isinstance(chunk, Completion) and chunk.status == "succeeded":
        return turns.account(chunk)
    return ""


# -- on a terminal -------------------------------------------------------------------------------


class RichScreen:
    """Lays out Markdown, block by block; what is complete is printed once, and scrolls."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def answering(self) -> "RichAnswer":
        """Return what shows one answer."""
        return RichAnswer(self.console)

    def say(self, text: str) -> None:
        """Say something that is no part of the conversation."""
        self.console.print(Text(output.clean(text), style="dim"))

    def fail(self, text: str) -> None:
        """Say what went wrong."""
        self.console.print(Text(output.clean(text), style="red"))

    def message(self, who: str, text: str) -> None:
        """Show a message of the past."""
        self.console.print(Text(who, style="bold"))
        self.console.print(Block(text))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""
        grid = Table(*headings, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            grid.add_row(*(Text(output.clean(cell)) for cell in row))
        self.console.print(grid)


class Block:
    """Markdown that is laid out, without empty lines around it; a link shows where it leads."""

    def __init__(self, text: str) -> None:
        self._markdown = Markdown(turns.plain(text), hyperlinks=False)

    def lines(self, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
        """Return its lines."""
        lines = console.render_lines(self._markdown, options.update(height=None), pad=False)
        filled = [at for at, line in enumerate(lines) if any(s.text.strip() for s in line)]
        return [_stripped(line) for line in lines[filled[0] : filled[-1] + 1]] if filled else []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(console, options):
            yield from line
            yield Segment.line()


def _stripped(line: list[Segment]) -> list[Segment]:
    """Leave out the blanks at a line's end, which would be copied with it, but no background."""
    while line:
        text, style, _ = line[-1]
        if style is not None and style.bgcolor is not None:
            return line
        if text.strip():
            return [*line[:-1], Segment(text.rstrip(), style)]
        line = line[:-1]
    return line


class RichAnswer:
    """Shows one answer: blocks for good, below them the unfinished one and what goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._flow = MarkdownFlow()
        self._progress = turns.Progress()
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None
        self._printed = False
        self._began_at = time.monotonic()
        self._is_away = False

    def __enter__(self) -> Self:
        self.resume()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pause()
        rest = self._flow.finish()
        if rest.strip():
            self._console.print(Block(rest))

    def show(self, chunk: CompletionChunk) -> None:
        """Show what came."""
        self._progress.take(chunk)
        if isinstance(chunk, StatusChunk) and chunk.waits_for == "daemon" and self._is_away:
            return
        is_away = isinstance(chunk, StatusChunk) and chunk.waits_for == "daemon"
        if self._is_away and not is_away:
            self.note("the daemon is back")
        self._is_away = is_away
        if isinstance(chunk, TextChunk):
            for block in self._flow.feed(chunk.text):
                self._print(block)
        elif isinstance(chunk, RestartedChunk):
            self._void(chunk)
        elif told := told_of(chunk):
            self.note(told)

    def _void(self, chunk: RestartedChunk) -> None:
        self._flow.finish()
        if self._printed:
            self.note(told_of(chunk))
        self._printed = False

    def note(self, text: str) -> None:
        """Say something in the middle of it; what came before stands for good then."""
        rest = self._flow.finish()
        if rest.strip():
            self._print(rest)
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
                console=self._console,
                get_renderable=self._below,
                refresh_per_second=REFRESH_PER_S,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)

    def _print(self, block: str) -> None:
        self._printed = True
        self._console.print(Block(block))
        self._console.print()

    def _below(self) -> RenderableType:
        return Below(self._flow.tail, self._spinner, str(self._progress), self._began_at)


class Below:
    """The unfinished block, as much of its end as there is room for, and the spinner."""

    def __init__(self, tail: str, spinner: Spinner, progress: str, began_at: float) -> None:
        self._tail = tail
        self._spinner = spinner
        self._progress = progress
        self._began_at = began_at

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(console.height - 3, 1)
        yield from self._last_lines(console, options, room)
        words = self._progress
        seconds = int(time.monotonic() - self._began_at)
        if words and seconds >= 3:
            words = f"{words} · {seconds} s"
        self._spinner.update(text=Text(output.clean(words), style="dim", overflow="ellipsis"))
        if words:
            yield self._spinner

    def _last_lines(
        self, console: Console, options: ConsoleOptions, room: int
    ) -> Iterator[Segment]:
        if not self._tail.strip():
            return
        tail = self._tail
        if len(tail) > MAX_TAIL:
            tail = tail[-MAX_TAIL:].partition("\n")[2] or tail[-MAX_TAIL:]
        for line in Block(tail).lines(console, options)[-room:]:
            yield from line
            yield Segment.line()


__all__ = ["Answer", "Below", "Block", "PlainScreen", "RichScreen", "Screen"]
