"""The probe, which tries the daemon's socket: a refusal is one, and silence is none."""

import contextlib
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ksi_mcp.runtimes import probe
from ksi_mcp.runtimes.claude import probed
from ksi_mcp.runtimes.probe import FORBIDDEN, MORE, TWICE, WAYS

Answer = Callable[[str], str | None]
DENIED = '{"id": 1, "error": {"code": "denied"}}'


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Return the socket of a daemon: what it answers to an event, if it does not hang up."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()

        with ThreadPoolExecutor() as threads:
            threads.submit(_accept, listener, answer, threads)
            try:
                yield f"{folder}/s"
            finally:
                listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, answer: Answer, threads: ThreadPoolExecutor) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it is over
            return
        try:
            threads.submit(_serve, connection, answer)
        except RuntimeError:  # the test is over, and with it whoever asks
            connection.close()


def _serve(connection: socket.socket, answer: Answer) -> None:
    with connection, connection.makefile("rwb") as lines:
        for line in lines:
            told = answer(json.loads(line)["event"])
            if told is None:
                break
            lines.write(told.encode() + b"\n")
            lines.flush()


def granted(events: dict[str, str]) -> Answer:
    """Return a daemon that takes the token, and answers some events so; the others it denies."""
    return lambda event: {"router:authenticate": '{"result": {}}', **events}.get(event, DENIED)


@pytest.mark.parametrize(
    ("events", "result", "detail"),
    [
        ({}, "held", ""),
        ({"model:call": '{"error": {"code": "invalid_data"}}'}, "through", "model:call"),
        ({"model:call": '{"error": {"code": "unavailable"}}'}, "unknown", "model:call"),
        ({"tool:call": '{"error": {"code": "busy"}}', "model:call": "{}"}, "through", "model:call"),
        ({"token:list": "no JSON"}, "unknown", "JSONDecodeError"),
    ],
)
def test_only_a_denial_holds(events: dict[str, str], result: str, detail: str) -> None:
    with answering(granted(events)) as path, contextlib.closing(probe.Caller(path)) as caller:
        found = probe.tried(caller.try_all, FORBIDDEN)

    assert found[0] == result
    assert detail in found[1]


def test_where_the_daemon_hangs_up_nobody_knows() -> None:
    with answering(lambda event: None) as path:
        assert probe.tried(probe.without_token, path)[0] == "unknown"


def test_where_the_token_is_refused_nothing_is_told_of_it() -> None:
    with answering(lambda event: DENIED) as path, pytest.raises(PermissionError):
        list(probe.with_token(path, "t"))


def test_a_token_that_is_taken_twice_is_through() -> None:
    with answering(granted({})) as path:
        ways = dict(probe.with_token(path, "t"))

    assert (ways[MORE][0], ways[TWICE][0]) == ("held", "through")


def test_what_is_not_told_of_is_unknown(tmp_path: Path) -> None:
    told = tmp_path / "told"
    assert [each.result for each in probed(told)] == ["unknown"] * len(WAYS)

    told.write_text(json.dumps([{"way": MORE, "result": "held", "detail": ""}]))

    assert {each.way: each.result for each in probed(told)} == {
        **dict.fromkeys(WAYS, "unknown"),
        MORE: "held",
    }
