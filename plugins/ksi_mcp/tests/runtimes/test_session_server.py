"""The server that the claude command starts: a few lines of JSON-RPC, and a daemon behind it."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

SCRIPT: Final = Path(__file__).parents[2] / "runtimes" / "session_server.py"
TOOLS: Final = [{"name": "pay", "inputSchema": {"type": "object"}}]


class Session:
    """The server, the program that talks to it, and the daemon that it asks."""

    def __init__(self, folder: Path) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(20)
        listener.bind(str(folder / "s"))
        listener.listen()
        self.handover = folder / "handover"
        told = {"socket": str(folder / "s"), "token": "t", "tools": TOOLS}
        self.handover.write_text(json.dumps(told))
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SCRIPT), str(self.handover)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._daemon, _ = listener.accept()
        listener.close()
        self._daemon.settimeout(20)
        self._asked = self._daemon.makefile("rb")
        assert self.hear()["data"] == {"token": "t"}
        self.answer({"id": 0, "result": {}})

    def hear(self) -> dict[str, Any]:
        """Return what the daemon was asked next."""
        frame: dict[str, Any] = json.loads(self._asked.readline())
        return frame

    def answer(self, frame: dict[str, Any]) -> None:
        """Answer as the daemon."""
        self._daemon.sendall(json.dumps(frame).encode() + b"\n")

    def hang_up(self) -> None:
        """End as the daemon does."""
        self._asked.close()
        self._daemon.close()

    def say(self, line: bytes) -> None:
        """Say something as the program."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def told(self) -> dict[str, Any]:
        """Return what the program is told next."""
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask something, and return the answer."""
        self.say(json.dumps({"id": 7, "method": method, "params": params}).encode())
        return self.told()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()
        self.hang_up()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.close()


def test_it_speaks_the_protocol_and_makes_no_calls_itself(session: Session) -> None:
    assert not session.handover.exists()
    assert session.ask("initialize", protocolVersion="2025-06-18")["result"]["protocolVersion"] == (
        "2025-06-18"
    )
    version = session.ask("initialize", protocolVersion="1999")["result"]["protocolVersion"]
    assert version == "2025-11-25"
    assert session.ask("ping")["result"] == {}
    assert session.ask("tools/list")["result"] == {"tools": TOOLS}
    assert session.ask("server/discover")["error"]["code"] == -32601

    call = {"name": "pay", "arguments": {"n": 1}, "_meta": {"claudecode/toolUseId": "toolu_1"}}
    session.say(json.dumps({"id": "x", "method": "tools/call", "params": call}).encode())
    asked = session.hear()
    assert (asked["event"], asked["data"]) == (
        "mcp:session_call", {"name": "pay", "arguments": {"n": 1}, "id": "toolu_1"},
    )  # fmt: skip
    session.answer({"id": asked["id"], "result": {"content": "paid"}})
    told = session.told()
    assert (told["id"], told["result"]) == (
        "x", {"content": [{"type": "text", "text": "paid"}], "isError": False},
    )  # fmt: skip


def test_a_call_whose_metadata_makes_no_sense_is_made_without(session: Session) -> None:
    call = {"name": "pay", "arguments": [1], "_meta": [1]}
    session.say(json.dumps({"id": 1, "method": "tools/call", "params": call}).encode())

    assert session.hear()["data"] == {"name": "pay", "arguments": {}}


def test_answers_may_come_in_any_order_and_a_refusal_is_an_error(session: Session) -> None:
    for number in (1, 2):
        call = {"id": number, "method": "tools/call", "params": {"name": "pay"}}
        session.say(json.dumps(call).encode())
    first, second = session.hear(), session.hear()

    session.answer({"id": second["id"], "error": {"code": "denied", "message": "no"}})
    refused = session.told()
    session.answer({"id": first["id"], "result": {"content": "paid", "is_error": True}})

    assert (refused["id"], refused["result"]["isError"]) == (2, True)
    assert refused["result"]["content"][0]["text"] == "denied: no"
    assert session.told()["id"] == 1


def test_a_call_that_is_taken_back_is_taken_back_at_the_daemon(session: Session) -> None:
    session.say(b'{"id": 1, "method": "tools/call", "params": {"name": "pay"}}')
    asked = session.hear()
    session.say(b'{"method": "notifications/cancelled", "params": {"requestId": 1}}')

    assert session.hear() == {"id": asked["id"], "cancel": True}


NO_PARAMS: Final = b'{"id": 1, "method": "tools/call", "params": ["pay"]}'


@pytest.mark.parametrize(
    "line", [b"no json", b"\xff", b"[" * 100_000, b"[]", b'{"id": 1}', NO_PARAMS]
)
def test_what_makes_no_sense_is_an_error_and_no_end(session: Session, line: bytes) -> None:
    session.say(line)

    assert "error" in session.told()
    assert session.ask("ping")["result"] == {}


def test_it_ends_when_the_daemon_does(session: Session) -> None:
    session.hang_up()

    assert session.process.wait(20) == 0
