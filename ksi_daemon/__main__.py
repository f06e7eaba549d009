"""Runs the daemon in the foreground: what ``ksi start``, systemd, launchd and a container run."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ksi_daemon import loop as event_loop
from ksi_daemon.daemon import Daemon
from ksi_daemon.protocol import KsiError
from ksi_daemon.protocol.paths import home_directory

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal or ``system:shutdown``; return the exit code.

    Args:
        arguments: ``--home DIR`` and any number of ``--set section.key=value``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    home: Path | None = None
    settings: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--home" and words:
            home = Path(words.pop(0)).absolute()
        elif word == "--set" and words:
            settings.append(words.pop(0))
        else:
            sys.stderr.write("usage: python -m ksi_daemon [--home DIR] [--set section.key=value]\n")
            return 2
    try:
        event_loop.run(run(home, settings))
    except KsiError as error:
        return fail(error.message)
    except OSError as error:  # a full disk, a folder that was taken away
        where = error.filename or home or home_directory()
        return fail(f"{where}: {error.strerror or error}")
    return 0


def fail(message: str) -> int:
    """Tell whoever started the daemon why it does not run; return the exit code."""
    tell_parent({"error": message})
    with contextlib.suppress(OSError):
        sys.stderr.write(f"ksi: {message}\n")
    return 1


async def run(home: Path | None, settings: Sequence[str]) -> None:
    """Run a daemon, with signal handlers, and tell who started it when it is ready."""
    daemon = Daemon(home, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, daemon.shutdown)

    def ready() -> None:
        tell_parent({"pid": os.getpid(), "socket": str(daemon.home.socket)})
        tell_systemd("READY=1")
        interval_s = watchdog_interval_s()
        if interval_s:
            daemon.supervisor.start("systemd watchdog", lambda: feed_systemd(interval_s))

    def stopping() -> None:
        tell_systemd("STOPPING=1")
        # The last resort: the kernel ends a daemon that a plugin keeps from ending.
        signal.alarm(math.ceil(daemon.longest_stop_s) + 1)

    await daemon.run(ready, stopping=stopping, echo="KSI_READY_FD" not in os.environ)


def tell_parent(message: dict[str, object]) -> None:
    """Write one line to the pipe that ``ksi start`` waits on, if there is one."""
    number = os.environ.pop("KSI_READY_FD", "")
    if number.isdigit():
        with contextlib.suppress(OSError), open(int(number), "wb") as pipe:  # noqa: PTH123  a handle
            pipe.write(msgspec.json.encode(message) + b"\n")


def tell_systemd(message: str) -> None:
    """Speak systemd's notify protocol (sd_notify(3)), where systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in {"/", "@"}:
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        ):
            notify.connect("\0" + address[1:] if address[0] == "@" else address)
            notify.send(message.encode())


def watchdog_interval_s() -> float:
    """Return how often systemd wants to hear from us: half of what it allows, 0 for never."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(limit_us) / 2e6 if limit_us.isdigit() and ours else 0.0


async def feed_systemd(interval_s: float) -> None:
    """Tell systemd that the loop turns; a blocked one is silent, and is restarted."""
    while True:
        tell_systemd("WATCHDOG=1")
        await asyncio.sleep(interval_s)


if __name__ == "__main__":
    sys.exit(main())
