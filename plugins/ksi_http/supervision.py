"""Runs the sidecar beside the daemon: starts it, takes its log lines, ends it."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from ksi_daemon.event_system import event_contributor
from ksi_daemon.hosts import (
    current_level,
    explain_exit,
    kill_group,
    read_log_line,
    scrubbed,
)
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Failed
from ksi_daemon.protocol.events import Grants
from ksi_daemon.supervisor import RestartPolicy
from ksi_system.events import HealthCheck, HealthChecked

FOR_EVER: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=10.0, max_restarts=1_000_000)
TTL_S: Final = 10 * 365 * 86_400.0
STOP_S: Final = 5.0
LAST_WORDS_S: Final = 0.5
MAX_LINE_BYTES: Final = 256 * 1024
# All that it may do, so that who has taken it over can do no more.
GRANTS: Final = Grants(
    call=(
        "content:load",
        "http:authenticate",
        "http:configure",
        "http:connect",
        "http:raw",
        "http:raw_keep",
    ),
    scopes=("*",),
    subscribe=("http:key_revoked", "mcp:changed", "mcp:updated"),
    impersonate=True,
)


class Sidecar:
    """The process of the HTTP server.

    Args:
        plugin: Whose process it is.
        socket: The daemon's.
    """

    def __init__(self, plugin: Plugin, socket: Path) -> None:
        self._plugin = plugin
        self._socket = socket
        self._token = ""
        self._log = logging.getLogger(f"ksi.host.{plugin.name}")
        self._said = ""  # the last error that it told of
        self._why_down: str | None = None

    async def run(self) -> None:
        """Run it until its end; raises then, to be started again."""
        self._said = ""
        async with self._process() as process:
            self._why_down = None
            async with asyncio.TaskGroup() as tasks:
                relay = tasks.create_task(self._relay(process), name="log")
                await process.wait()
                await asyncio.wait({relay}, timeout=LAST_WORDS_S)
                relay.cancel()
        self._why_down = f"the HTTP server {explain_exit(process.returncode)}: {self._said}"
        raise Failed(self._why_down)

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """Write its log lines into the daemon's log."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                continue  # a line longer than the limit, of which asyncio drops what it has read
            if not line:
                return
            level, message, fields = read_log_line(line)
            if level >= logging.ERROR:
                self._said = message
            self._log.log(level, message, extra={**fields, "plugin": self._plugin.name})

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start it; it reads its token from a pipe, and ends when its stdin does: with us."""
        if not self._token:  # one for all restarts, lest they use up what there may be
            self._token = self._plugin.issue_token(Principal("http", GRANTS), ttl_s=TTL_S)
        read, write = os.pipe()
        os.write(write, self._token.encode())  # fits into what a pipe holds
        os.close(write)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # whatever lies in the working directory is not to be imported
                "-m",
                "ksi_http",
                "--supervised",
                "--log-level",
                current_level(),
                pass_fds=(read,),
                env={
                    **scrubbed(()),
                    "KSI_HOME": str(self._plugin.home),
                    "KSI_SOCKET": str(self._socket),
                    "KSI_TOKEN_FILE": f"/dev/fd/{read}",
                },
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                start_new_session=True,
            )
        except OSError as error:
            self._why_down = f"the HTTP server can't be started: {error}"
            raise
        finally:
            os.close(read)
        try:
            yield process
        finally:
            await _end(process)

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether it runs."""
        if self._why_down is not None:
            return HealthChecked(health="degraded", why=self._why_down)
        return HealthChecked()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        kill_group(process)
        await process.wait()
