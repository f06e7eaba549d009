"""Tries what no program of a runtime may do at the daemon's socket, then makes way for its server.

``probe.py HANDOVER TOLD COMMAND...`` is what a runtime's program starts in the place of the server
with its tools: so it stands where that stands, with a handover as that gets. It writes what came of
each way into the file ``TOLD``, and becomes the command, which is the server.

A script of its own, run by a bare Python as such a program would be.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

TIMEOUT_S: Final = 10.0
ORPHANED_S: Final = 5.0
# What only the owner may ask; nothing comes of any of them where they are let through.
OWNERS: Final = ("token:list",)
FORBIDDEN: Final = (*OWNERS, "tool:call", "model:call", "router:subscribe")
# Refusals that say nothing of who asks.
NOT_NOW: Final = ("busy", "timed_out", "unavailable")

WITHOUT_TOKEN: Final = "the socket without a token"
SECOND_PROCESS: Final = "a second process"
MORE: Final = "asking for more"
TWICE: Final = "a token used twice"
WAYS: Final = (WITHOUT_TOKEN, SECOND_PROCESS, MORE, TWICE)

Result = tuple[str, str]  # how it ended, and the detail
HELD: Final = ("held", "")


class Caller:
    """A connection to the daemon."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._socket.close()

    def ask(self, event: str, data: dict[str, Any]) -> Result:
        """Send an event; tell what came of it.

        Raises:
            OSError: There is no answer.
            ValueError: The answer makes no sense.
        """
        line = json.dumps({"id": 1, "event": event, "data": data})
        self._socket.sendall(line.encode() + b"\n")
        answer = self._answers.readline()
        if not answer:
            raise ConnectionResetError("the daemon has hung up")
        code = json.loads(answer).get("error", {}).get("code")
        if code == "denied":
            return HELD
        told = f"{event}: {answer[:200].decode(errors='replace').strip()}"
        return ("unknown" if code in NOT_NOW else "through"), told

    def try_all(self, events: tuple[str, ...]) -> Result:
        """Send events that it may not send; tell the worst that came of them."""
        data = {"pattern": "*", "name": "probe", "arguments": "{}"}
        found = [self.ask(event, data) for event in events]
        return min(found, key=lambda each: ("through", "unknown", "held").index(each[0]))


def without_token(path: str) -> Result:
    """Connect as whoever the daemon takes us for."""
    with contextlib.closing(Caller(path)) as caller:
        return caller.try_all(OWNERS)


def from_an_orphan(path: str) -> Result:
    """Connect from a process of a session of its own that has no parent any more."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        first = os.getpid()
        if os.fork() == 0:
            until = time.monotonic() + ORPHANED_S
            while os.getppid() == first and time.monotonic() < until:
                time.sleep(0.01)
            os.write(write, json.dumps(tried(without_token, path)).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        result, detail = json.loads(answer.read())
    return result, detail


def with_token(path: str, token: str) -> Iterator[tuple[str, Result]]:
    """Ask for more than a token gives, then use it a second time."""
    with contextlib.closing(Caller(path)) as first, contextlib.closing(Caller(path)) as second:
        if first.ask("router:authenticate", {"token": token}) == HELD:
            raise PermissionError("the daemon does not know this conversation")
        yield MORE, tried(first.try_all, FORBIDDEN)
        yield TWICE, tried(second.ask, "router:authenticate", {"token": token})


def tried(way: Callable[..., Result], *arguments: Any) -> Result:
    """Return what came of a way; where there was no answer, nobody knows."""
    try:
        return way(*arguments)
    except (OSError, ValueError) as error:
        return "unknown", f"{type(error).__name__}: {error}"


def ways(path: str, token: str) -> Iterator[tuple[str, Result]]:
    """Try each way."""
    if sys.platform == "linux":
        yield WITHOUT_TOKEN, tried(without_token, path)
        yield SECOND_PROCESS, tried(from_an_orphan, path)
    else:
        why = "only Linux tells whose child a process is"
        yield from ((way, ("untried", why)) for way in (WITHOUT_TOKEN, SECOND_PROCESS))
    with contextlib.suppress(OSError, ValueError):  # what is not told of was not tried
        yield from with_token(path, token)


def main(handover: str, told: str, *command: str) -> None:
    """Try it all, tell of it, and become the server."""
    file = Path(handover)
    given = json.loads(file.read_bytes())
    file.unlink()
    found = [
        {"way": way, "result": result, "detail": detail}
        for way, (result, detail) in ways(given["socket"], given["token"])
    ]
    Path(told).write_text(json.dumps(found))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
