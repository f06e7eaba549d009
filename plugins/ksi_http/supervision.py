"""Runs the sidecar beside the daemon: starts it, takes its log lines, ends it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

from ksi_daemon.event_system import event_contributor
from ksi_daemon.hosts import explain_exit, kill_group, relay_log, scrubbed
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Failed
from ksi_daemon.protocol.events import Grants
from ksi_daemon.supervisor import RestartPolicy
from ksi_system.events import HealthCheck, HealthChecked

FOR_EVER: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=10.0, max_restarts=1_000_000)
TTL_S: Final = 10 * 365 * 86_400.0
STOP_S: Final = 5.0
MAX_LINE_BYTES: Final = 256 * 1024
# All that it may do, so that who has taken it over can do no more.
GRANTS: Final = Grants(
    call=("http:authenticate", "http:configure", "http:connect", "system:describe", "system:hello"),
    scopes=("*",),
    subscribe=("http:key_revoked",),
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
        self._state: Literal["starting", "running", "down"] = "starting"
        self._why = ""

    async def run(self) -> None:
        """Run it until its end; raises then, to be started again."""
        async with self._process() as process:
            self._state = "running"
            async with asyncio.TaskGroup() as tasks:
                relay = tasks.create_task(relay_log(process, self._plugin.name), name="log")
                await process.wait()
                await asyncio.wait({relay}, timeout=0.5)  # its last words
                relay.cancel()
        self._state, self._why = "down", f"the HTTP server {explain_exit(process.returncode)}"
        raise Failed(self._why)

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start it; it reads its token from a pipe, and ends when its stdin does: with us."""
        token = self._plugin.issue_token(Principal("http", GRANTS), ttl_s=TTL_S)
        read, write = os.pipe()
        os.write(write, token.encode())  # fits into what a pipe holds
        os.close(write)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # whatever lies in the working directory is not to be imported
                "-m",
                "ksi_http",
                "--supervised",
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
        finally:
            os.close(read)
        try:
            yield process
        finally:
            await _end(process)

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether it runs."""
        if self._state == "down":
            return HealthChecked(health="degraded", why=self._why)
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
