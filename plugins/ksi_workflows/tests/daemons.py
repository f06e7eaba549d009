"""Daemons in processes of their own, which share a database, to be killed."""

import asyncio
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from ksi_client import AsyncClient, Unavailable, UnixTransport
from ksi_daemon.testing import DaemonProcess, memory_folder
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for

ENDED = ("finished", "failed", "cancelled", "quarantined")


class Fleet:
    """Starts daemons on one database, and looks at what they did there."""

    def __init__(self, logins: Logins, *settings: str) -> None:
        self.settings = [
            *settings_for(logins),
            "daemon.plugins=system,postgres,workflows,work",
            "daemon.shutdown_grace_s=1",
            "workflows.queue_poll_s=0.05",
            *settings,
        ]
        self.logins = logins

    @contextmanager
    def daemon(self, *settings: str) -> Iterator[DaemonProcess]:
        """A daemon in a home of its own, not yet started; continued and ended afterwards."""
        with tempfile.TemporaryDirectory(
            prefix="ksi-f-", dir=memory_folder(), ignore_cleanup_errors=True
        ) as folder:
            made = DaemonProcess(Path(folder))
            try:
                yield made
            finally:
                if made.process is not None and made.process.poll() is None:
                    made.process.send_signal(signal.SIGCONT)
                    made.kill()

    async def start(self, daemon: DaemonProcess, *settings: str) -> None:
        """Start a daemon, without standing still meanwhile."""
        await asyncio.to_thread(daemon.start, *self._arguments(*settings))

    def _arguments(self, *settings: str) -> list[str]:
        return [part for each in (*self.settings, *settings) for part in ("--set", each)]

    @asynccontextmanager
    async def client(self, daemon: DaemonProcess) -> AsyncIterator[AsyncClient]:
        """Yield a client of a daemon."""
        async with AsyncClient(UnixTransport(daemon.socket)) as client:
            yield client

    async def query(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        """Ask the database itself, as its superuser."""
        connection = await asyncpg.connect(self.logins.admin)
        try:
            found: list[asyncpg.Record] = await connection.fetch(sql, *args)
            return found
        finally:
            await connection.close()

    async def recorded(self, run_id: str) -> set[int]:
        """Return the numbers of the steps of a run whose outcome is recorded."""
        sql = "SELECT function_id FROM dbos.operation_outputs WHERE workflow_uuid = $1"
        return {row[0] for row in await self.query(sql, run_id)}

    async def until(self, sql: str, *args: Any) -> None:
        """Wait until the database answers a question with something true."""
        connection = await asyncpg.connect(self.logins.admin)
        try:
            while not await connection.fetchval(sql, *args):
                await connection.execute("SELECT pg_sleep(0.02)")
        finally:
            await connection.close()


class Traces:
    """What the steps of a run left in its file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def lines(self) -> list[str]:
        """Return the whole lines that are there."""
        return self.file.read_text().splitlines() if self.file.exists() else []

    def count(self, kind: str) -> dict[int, int]:
        """Return how often each step began, or had its effect."""
        counts: dict[int, int] = {}
        for line in self.lines():
            match = re.fullmatch(rf"{kind} (\d+) \d+", line)
            if match:
                counts[int(match[1])] = counts.get(int(match[1]), 0) + 1
        return counts

    def pids(self) -> set[int]:
        """Return who left them."""
        return {int(line.rpartition(" ")[2]) for line in self.lines()}


async def begun(traces: Traces, count: int) -> None:
    """Wait until that many steps have begun."""
    while len(traces.count("begin")) < count:  # noqa: ASYNC110  another process writes them
        await asyncio.sleep(0.002)


async def start_count(client: AsyncClient, file: Path, **args: Any) -> str:
    """Start a run that counts."""
    data = {"name": "count", "args": {"file": str(file), **args}}
    run_id: str = (await client.request("workflow:start", data))["run_id"]
    return run_id


async def outcome_of(client: AsyncClient, run_id: str, timeout_s: float = 40.0) -> Any:
    """Wait for a run's end, also while the daemon can't say."""
    while True:
        try:
            request = {"run_id": run_id, "timeout_s": timeout_s}
            return await client.request("workflow:result", request)
        except Unavailable as error:
            await asyncio.sleep(error.retry_after_s or 0.1)
