"""The demo's daemon, which is started, killed and stopped as anybody would do it."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_cli.demo.place import Place
from ksi_client import Failed

GRACE_S: Final = "5"


class Running(Struct, frozen=True):
    """A daemon that is ready, as ``ksi start`` tells it."""

    pid: int
    socket: str
    already_running: bool


class Ended(Struct, frozen=True):
    """What ``ksi stop`` did."""

    was_running: bool
    killed: bool = False


class Daemon:
    """Runs ``ksi start``, ``ksi stop`` and a kill -9 on the daemon of a place.

    Args:
        place: Whose daemon.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    async def start(self, tell: Callable[[str], None]) -> Running:
        """Start it, and return once it is ready; ``tell`` is told what is waited for.

        Raises:
            Failed: It did not start.
        """
        return msgspec.convert(await self._run(["start"], tell), Running)

    async def stop(self) -> Ended:
        """Stop it, if it runs.

        Raises:
            Failed: It lives on.
        """
        told = await self._run(["stop", "--timeout-s", GRACE_S], lambda _: None)
        return msgspec.convert(told, Ended)

    async def kill(self, pid: int) -> None:
        """Kill it with -9, and return once it is gone."""
        os.kill(pid, signal.SIGKILL)
        while (await self._run(["status"], lambda _: None))["running"]:
            pass  # the kernel is at it, and asking takes its time

    async def _run(self, words: list[str], tell: Callable[[str], None]) -> dict[str, Any]:
        """Run a command, which gets no signal of the terminal's: the demo ends it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "ksi_cli", *words, "--json"),
            env=self._place.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async for line in process.stderr:
                tell(line.decode(errors="replace").strip())
            out = await process.stdout.read()
        except asyncio.CancelledError:
            process.send_signal(signal.SIGINT)  # a start that is interrupted leaves no daemon
            raise
        finally:
            await process.wait()
        return _answer(words[0], out)


def _answer(command: str, out: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = msgspec.json.decode(out)
    except msgspec.DecodeError:
        raise Failed(f"ksi {command} said: {out.decode(errors='replace').strip()}") from None
    if "error" in answer:
        raise Failed(str(answer["error"]["message"]))
    return answer
