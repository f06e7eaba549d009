"""Tries what no program of a runtime may do at the daemon's socket: ``probe.py SOCKET TOKEN_FILE``.

A script of its own, run by a bare Python as such a program would be. It writes a line of JSON for
each way: what it tried, and what came of it, which is ``null`` where it was refused.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

TIMEOUT_S: Final = 10.0
ORPHANED_S: Final = 5.0
# What only the owner may ask; nothing comes of any of them where they are let through.
OWNERS: Final = ("token:list",)
FORBIDDEN: Final = (*OWNERS, "tool:call", "model:call", "router:subscribe")


class Caller:
    """A connection to the daemon."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")

    def ask(self, event: str, data: dict[str, Any]) -> str | None:
        """Send an event; return ``None`` where that was denied, else how the answer begins."""
        line = json.dumps({"id": 1, "event": event, "data": data})
        self._socket.sendall(line.encode() + b"\n")
        answer = self._answers.readline()
        try:
            code = json.loads(answer).get("error", {}).get("code")
        except ValueError:
            code = None
        return None if code == "denied" or not answer else f"{event}: {answer[:200].decode()}"

    def try_all(self, events: tuple[str, ...]) -> str | None:
        """Send events that it may not send; return the first answer that is no refusal."""
        data = {"pattern": "*", "name": "probe", "arguments": "{}"}
        return next((got for event in events if (got := self.ask(event, data))), None)


def without_token(path: str) -> str | None:
    """Connect as whoever the daemon takes us for."""
    return Caller(path).try_all(OWNERS)


def from_an_orphan(path: str) -> str | None:
    """Connect from a process of a session of its own that has no parent any more."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        first = os.getpid()
        if os.fork() == 0:
            until = time.monotonic() + ORPHANED_S
            while os.getppid() == first and time.monotonic() < until:
                time.sleep(0.01)
            os.write(write, json.dumps(without_token(path)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told: str | None = json.loads(answer.read() or b'"the orphan told nothing"')
    return told


def with_token(path: str, token: str) -> Iterator[tuple[str, str | None]]:
    """Ask for more than a token gives, then use it a second time."""
    first = Caller(path)
    accepted = first.ask("router:authenticate", {"token": token})
    yield "asking for more", None if accepted is None else first.try_all(FORBIDDEN)
    yield "a token used twice", Caller(path).ask("router:authenticate", {"token": token})


def main(path: str, token_file: str) -> None:
    """Try it all."""
    token = Path(token_file).read_text()
    ways = [
        ("the socket without a token", without_token(path)),
        ("a second process", from_an_orphan(path)),
        *with_token(path, token),
    ]
    for way, got in ways:
        sys.stdout.write(json.dumps({"way": way, "got": got}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
