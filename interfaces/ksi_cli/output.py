"""How commands speak: sentences and tables for people, or one JSON object."""

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from ksi_client import KsiError

Shown = TypeVar("Shown")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

FAILED: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3  # as the Linux Standard Base has it for init scripts
NOT_FOUND: Final = 4
DENIED: Final = 5
TRY_AGAIN: Final = 6
TIMED_OUT: Final = 7
INTERRUPTED: Final = 130

# Also what reorders the text of a line, or hides in it.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_MIN_LAST_COLUMN: Final = 20


class UsageError(KsiError):
    """The command line is wrong; the message says what would be right."""

    code = "usage"


class NotRunning(KsiError):
    """No daemon runs in this home; start it."""

    code = "unavailable"


_NO_PLUGIN: Final = re.compile(r"nothing answers '(completion|conversation|model|tool):\w+'")
_EXIT_CODES: Final = {
    "usage": USAGE,
    "not_found": NOT_FOUND,
    "denied": DENIED,
    "busy": TRY_AGAIN,
    "unavailable": TRY_AGAIN,
    "timeout": TIMED_OUT,
}


def exit_code(error: KsiError) -> int:
    """Return the exit code for an error: one for each kind that a script treats differently."""
    if isinstance(error, NotRunning):
        return NOT_RUNNING
    return _EXIT_CODES.get(error.code, FAILED)


def show(value: Shown, text: Callable[[Shown], str], *, as_json: bool) -> None:
    """Print a value: as JSON, or as ``text`` makes it."""
    if as_json:
        write_json(value)
    else:
        write(text(value))


def write(text: str) -> None:
    """Print text for people; what could steer their terminal is made visible."""
    if text:
        sys.stdout.write(clean(text).rstrip("\n") + "\n")


def write_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    sys.stdout.write(encode_json(value) + "\n")


def encode_json(value: Any) -> str:
    """Return a value as one line of JSON."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def note(text: str) -> None:
    """Say something that is no part of the answer, after what was said of that."""
    if sys.stdout is not None:  # whoever started this may have closed either
        sys.stdout.flush()
    if sys.stderr is not None:
        sys.stderr.write(f"{clean(text)}\n")


def fail(error: KsiError, *, as_json: bool) -> None:
    """Report an error: a sentence on stderr, or a JSON object on stdout."""
    if as_json:
        write_json({"error": error.body})
    else:
        note(f"ksi: {reason(error)}")


def reason(error: KsiError) -> str:
    """Return an error's message, with the next step where only this command can know it."""
    if error.code == "not_found" and _NO_PLUGIN.fullmatch(error.message):
        return f"{error.message}: its plugin is not there; see: ksi health"
    return error.message


def clean(text: str) -> str:
    """Make control characters visible, so that no text moves the cursor or sets a title."""
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def displayed(path: Path | str) -> str:
    """Return a path as text that can be printed and put into JSON, whatever its bytes are."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay rows out in columns; the last one is wrapped to the terminal's width."""
    lines = [list(headings), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(headings) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(shutil.get_terminal_size().columns - indent, _MIN_LAST_COLUMN)
    return "\n".join(
        (
            "".join(c.ljust(width + 2) for c, width in zip(line, widths, strict=False))
            + _wrapped(line[-1], room, indent)
        ).rstrip()
        for line in lines
    )


def fields(pairs: Iterable[tuple[str, object]]) -> str:
    """Lay names and values out in two columns, without those that are empty."""
    shown = [(name, str(value)) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)


def paragraphs(text: str) -> str:
    """Lay prose out in as many columns as the terminal has; an empty line parts paragraphs."""
    columns = max(shutil.get_terminal_size().columns, 2 * _MIN_LAST_COLUMN)
    parts = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join("\n".join(textwrap.wrap(part, columns)) for part in parts)


def indented(text: str, indent: int, *, max_lines: int | None = None) -> list[str]:
    """Wrap a text to the terminal's width, so many columns in; say … where there is more of it."""
    return textwrap.wrap(
        text,
        max(shutil.get_terminal_size().columns, indent + _MIN_LAST_COLUMN),
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        max_lines=max_lines,
        placeholder=" …",
        break_on_hyphens=False,
    )


def _wrapped(text: str, width: int, indent: int) -> str:
    lines = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    return ("\n" + " " * indent).join(lines)


def duration(seconds: float) -> str:
    """Write a time span as people say it: ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``4 d 1 h``."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest = int(seconds)
    parts: list[tuple[int, str]] = []
    for unit, size in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"


def command_name() -> str:
    """Return how this user calls ``ksi``: by its name, or by its path if it is not on the PATH."""
    script = Path(sys.executable).with_name("ksi")
    found = shutil.which("ksi")
    if not script.exists() or (found and Path(found).resolve() == script.resolve()):
        return "ksi"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)
