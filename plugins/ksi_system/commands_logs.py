"""Show the daemon's log, and follow it across rotations."""

import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import msgspec
import typer

from ksi_cli import output
from ksi_cli.output import JsonFlag
from ksi_daemon import process
from ksi_daemon.home import Home
from ksi_daemon.protocol import Denied

FOLLOW_INTERVAL_S: Final = 0.2  # the standard library can't wait for a file to grow
READ_BYTES: Final = 256 * 1024


def logs(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many of the last lines.")
    ] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Show the end of the daemon's log, up or down.

    With --json one object a line.
    """
    file = Home().log_file
    stream = opened(file)
    if stream is None and not follow:
        output.note(f"nothing has been logged yet in {output.displayed(file)}")
        return
    for line in process.tail(stream, lines) if stream is not None else ():
        show_line(line, as_json=as_json)
    sys.stdout.flush()
    if follow:
        for line in follow_lines(file, stream):
            show_line(line, as_json=as_json)
            sys.stdout.flush()


def opened(file: Path) -> BinaryIO | None:
    """Open the log; ``None`` where there is none yet.

    Raises:
        Denied: It may not be read.
    """
    try:
        return file.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Denied(f"the log can't be read: {error}") from error


def show_line(line: str, *, as_json: bool) -> None:
    """Print a line of the log."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        fields = None
    if as_json:
        output.write_json({"message": line} if fields is None else fields)
    else:
        output.write(line if fields is None else log_text(fields))


def log_text(fields: dict[str, Any]) -> str:
    """Write a log line for people: time, level, message, fields, and a traceback below."""
    rest = {n: v for n, v in fields.items() if n not in {"time", "level", "message", "logger"}}
    trace = rest.pop("traceback", None)
    told = " ".join(
        f"{name}={value if isinstance(value, str) else output.encode_json(value)}"
        for name, value in rest.items()
    )
    level = str(fields.get("level", "")).upper()
    line = f"{clock(fields.get('time'))} {level:<8} {fields.get('message', '')}  {told}".rstrip()
    return line if trace is None else f"{line}\n{trace}"


def clock(at: Any) -> str:
    """Write a time of the log as the clock on this machine shows it."""
    try:
        return datetime.fromisoformat(str(at)).astimezone().strftime("%m-%d %H:%M:%S")
    except ValueError:
        return str(at)


def follow_lines(file: Path, stream: BinaryIO | None) -> Iterator[str]:
    """Yield the lines that come after a stream's position, also when the file is rotated.

    Args:
        file: The path of the log.
        stream: The log as it was opened, read as far as it was shown; ``None`` before there is one.
    """
    rest = b""
    while True:
        part = b"" if stream is None else stream.read(READ_BYTES)
        *whole, rest = (rest + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if part:
            continue
        if stream is None or _was_replaced(file, stream.fileno()):
            newer = opened(file)
            if newer is not None:
                if stream is not None:
                    stream.close()
                stream, rest = newer, b""
                continue
        time.sleep(FOLLOW_INTERVAL_S)


def _was_replaced(file: Path, handle: int) -> bool:
    """Say whether a path leads to another file than the one that is open, or to a shorter one."""
    ours = os.fstat(handle)
    try:
        now = file.stat()
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino) or now.st_size < _position(handle)


def _position(handle: int) -> int:
    return os.lseek(handle, 0, os.SEEK_CUR)
