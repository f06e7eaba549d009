"""The program: connects, listens, and ends with its daemon or by a signal."""

import argparse
import asyncio
import contextlib
import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, get_args

import msgspec
from msgspec.structs import replace

from ksi_daemon import logs
from ksi_daemon import loop as event_loop
from ksi_daemon.protocol import Denied, KsiError, NotFound, Unavailable
from ksi_daemon.settings import LogLevel, LogSettings
from ksi_http.sidecar import app as application
from ksi_http.sidecar.app import Sidecar
from ksi_http.sidecar.connections import own_token

log = logging.getLogger("ksi_http")

WAIT_S: Final = 0.1
TOLD_AGAIN_S: Final = 30.0
MAX_FILES: Final = 65_536
OVER: Final = ("host", "port")  # what the command line may say in place of the settings


def main(words: Sequence[str]) -> int:
    """Run until a signal, or the end of the daemon that started it; return the exit code."""
    options = parse(words)
    look = "pretty" if sys.stderr.isatty() else "json"
    settings = msgspec.convert({"level": options.log_level, "format": look}, LogSettings)
    _allow_connections()
    with logs.configured(settings, None):
        try:
            event_loop.run(run(options))
        except asyncio.CancelledError:
            log.info("the HTTP server has ended")
        except KsiError as error:
            log.error("%s", error.message)
            return 1
    return 0


def _allow_connections() -> None:
    """Have as many files open as the system lets us: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m ksi_http")
    parser.add_argument("--host", help="in place of http.host")
    parser.add_argument("--port", type=int, help="in place of http.port")
    parser.add_argument("--log-level", default="info", choices=get_args(LogLevel))
    parser.add_argument("--supervised", action="store_true", help="end when stdin does")
    return parser.parse_args(words)


async def run(options: argparse.Namespace) -> None:
    """Serve until it is to end.

    Raises:
        KsiError: It can't serve, or the daemon does not let it in any more.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    if options.supervised:
        loop.add_reader(sys.stdin.fileno(), _look_at_stdin, task)
    async with _connected() as app:
        given = {name: value for name in OVER if (value := getattr(options, name)) is not None}
        app.settings = replace(app.settings, **given)
        async with application.serving(app) as (host, port):
            log.info("requests are answered", extra={"host": host, "port": port})
            await app.connections.first.closed.wait()
    raise Denied("the daemon does not let this server in any more: its token is not valid")


def _look_at_stdin(task: asyncio.Task[None]) -> None:
    """End when the daemon has ended, however that went."""
    if not os.read(sys.stdin.fileno(), 1024):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        task.cancel()


@contextlib.asynccontextmanager
async def _connected() -> AsyncIterator[Sidecar]:
    """Connect to the daemon as soon as it is there."""
    told_at, token = -math.inf, own_token()
    while True:
        async with contextlib.AsyncExitStack() as stack:
            try:
                app = await stack.enter_async_context(application.connected(lambda: None, token))
            except (Unavailable, NotFound) as error:
                if time.monotonic() - told_at > TOLD_AGAIN_S:
                    told_at = time.monotonic()
                    log.info("waiting for the daemon", extra={"why": error.message})
            else:
                yield app
                return
        await asyncio.sleep(WAIT_S)
