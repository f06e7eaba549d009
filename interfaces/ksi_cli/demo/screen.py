"""What the demo shows: stages, what is claimed in each and holds, and agents at work."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from msgspec import Struct
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ksi_cli import output, turns
from ksi_cli.demo.answers import Answers
from ksi_client import CompletionChunk, Failed, TextChunk

MAX_WIDTH: Final = 100  # longer lines are hard to read
INDENT: Final = 3


class Claim(Struct, frozen=True):
    """Something that was claimed and looked at; all that is reported holds."""

    stage: str
    claim: str


class Row:
    """An agent, and what it is at."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.phase = ""
        self.text = ""
        self.progress = turns.Progress()

    def take(self, chunk: CompletionChunk) -> None:
        """Note what comes of its turn."""
        self.progress.take(chunk)
        if isinstance(chunk, TextChunk):
            self.text += chunk.text

    @property
    def last_line(self) -> str:
        """The end of what it has said so far, or what it is at."""
        lines = self.text.strip().splitlines()
        return lines[-1] if lines else str(self.progress)


class Broken(Failed):
    """A claim of the demo does not hold; the message says which, and what was found."""


class Screen:
    """Writes to a terminal or a pipe, and keeps what was claimed.

    Args:
        console: Where to.

    Attributes:
        claims: What was claimed and held.
        current: The stage.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.claims: list[Claim] = []
        self.current = ""
        self._number = 0

    @property
    def width(self) -> int:
        """How many columns text has."""
        return min(self.console.width, MAX_WIDTH) - INDENT

    def title(self, text: str, below: str) -> None:
        """Begin."""
        self.console.print(Text(output.clean(text), style="bold"))
        self._print(below, "dim", indent=0)

    def stage(self, text: str) -> None:
        """Begin another stage."""
        self.current = text
        self._number += 1
        self.heading(f"{self._number}  {text}")

    def heading(self, text: str) -> None:
        """Begin what is no stage."""
        self.console.print()
        self._print(text, "bold", indent=0, hanging=INDENT)

    def say(self, text: str, style: str = "") -> None:
        """Say something."""
        self._print(text, style)

    def lines(self, lines: Iterable[str], style: str = "", *, indent: int = INDENT) -> None:
        """Show lines as they are, but for what is too long."""
        for line in lines:
            shown = Text(" " * indent + output.clean(line), style=style)
            shown.truncate(min(self.console.width, MAX_WIDTH), overflow="ellipsis")
            self.console.print(shown, no_wrap=True)

    def claim(self, what: str, *, holds: bool, found: object = "") -> None:
        """Say what is so.

        Raises:
            Broken: It is not.
        """
        if not holds:
            self._print(f"✗ {what}", "bold red", hanging=2)
            raise Broken(
                f"a claim of the demo does not hold: {what}"
                + (f"; found: {found}" if found else "")
            )
        self.claims.append(Claim(self.current, what))
        self._print(f"✓ {what}", "green", hanging=2)

    async def choose(self, answers: Answers, choices: Sequence[tuple[str, str]]) -> str:
        """Show which keys there are, and return the one that is pressed.

        Raises:
            Left: Nobody is there any more.
        """
        self.console.print()
        for key, what in choices:
            self._print(f"{key}  {what}", "bold cyan", hanging=INDENT)
        self._prompt()
        key = await answers.key("".join(key for key, _ in choices))
        self.console.print(key)
        return key

    async def ask(self, answers: Answers, text: str, default: str) -> str:
        """Ask for a line.

        Raises:
            Left: Nobody is there any more.
        """
        self._print(f"{text} (Enter: {default})", "bold cyan")
        line = await answers.line(self._prompt)
        if not answers.echoes:
            self.console.print(line)
        return line or default

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show on a terminal that something goes on; yields what says how far it is."""
        with self.console.status(Text(output.clean(text), style="dim")) as status:
            yield lambda more: status.update(Text(output.clean(more), style="dim"))

    @contextmanager
    def working(self, rows: Sequence[Row]) -> Iterator[None]:
        """Show on a terminal what agents are at; it goes when the block ends."""
        with Live(
            console=self.console,
            transient=True,
            refresh_per_second=8,
            get_renderable=lambda: self._table(rows),
        ):
            yield

    def _table(self, rows: Sequence[Row]) -> Text:
        """Lay out what each is at; of what it says, the end."""
        lines = []
        for row in rows:
            head = f"{row.name:12}{row.phase:10}"
            said = output.clean(row.last_line)
            room = self.width - len(head) - 1
            lines.append(
                " " * INDENT + head + (said if len(said) <= room else "…" + said[1 - room :])
            )
        return Text("\n".join(lines), style="cyan", no_wrap=True, overflow="ellipsis")

    def _prompt(self) -> None:
        self.console.print(Text(" " * INDENT + "> ", style="bold cyan"), end="")

    def _print(self, text: str, style: str, *, indent: int = INDENT, hanging: int = 0) -> None:
        wrapped = textwrap.wrap(
            text, self.width, subsequent_indent=" " * hanging, break_on_hyphens=False
        )
        self.lines(wrapped or [""], style, indent=indent)


def excerpt(text: str, width: int, max_lines: int) -> list[str]:
    """Return the beginning of a text in lines; it ends with … where there is more."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        lines += textwrap.wrap(line, width, break_on_hyphens=False)
    if len(lines) <= max_lines:
        return lines
    return [*lines[: max_lines - 1], lines[max_lines - 1][: width - 2] + " …"]
