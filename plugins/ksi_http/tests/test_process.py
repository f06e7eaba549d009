"""The server as a process: beside its daemon, after its daemon, and without one."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from ksi_client import AsyncClient, UnixTransport
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import DaemonProcess, read_log
from ksi_http import keys
from ksi_http.sidecar import app as application

LIMIT_S = 30.0
AGAIN_S = 0.02
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def settings(ksi_settings_of_postgres: list[str]) -> list[str]:
    """The settings of a daemon with what is needed here."""
    chosen = [*ksi_settings_of_postgres, "daemon.plugins=system,postgres,http", "http.port=0"]
    return [part for each in chosen for part in ("--set", each)]


def ports(home: Path) -> list[int]:
    """Return the ports that servers have told of, one after the other."""
    lines = read_log(home)
    return [line["port"] for line in lines if line["message"] == "requests are answered"]


def servers(pid: int) -> list[int]:
    """Return the processes of servers that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = stat.with_name("cmdline").read_bytes()
            if parent == pid and b"ksi_http" in command:
                found.append(int(stat.parent.name))
    return found


async def until(condition: Any) -> Any:
    """Return what a function returns, once that is true."""
    async with asyncio.timeout(LIMIT_S):
        while not (found := condition()):  # noqa: ASYNC110  nothing tells of another process
            await asyncio.sleep(AGAIN_S)
    return found


def is_gone(pid: int) -> bool:
    return not told_of(pid, "cmdline")


def told_of(pid: int, file: str) -> bytes:
    """Read what ``/proc`` tells of a process; nothing where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_bytes()
    return b""


@pytest.fixture
async def session(ksi_home: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=JSON) as made:
        yield made


async def get(session: aiohttp.ClientSession, url: str, key: str = "") -> tuple[int, Any]:
    async with session.get(url, headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status, await response.json()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it looks for processes")
async def test_the_daemon_s_server_is_started_again_and_ends_with_it(
    daemon_process: DaemonProcess, settings: list[str], session: aiohttp.ClientSession
) -> None:
    home = daemon_process.home
    daemon_process.start(*settings, "--set", "http.enabled=true")
    daemon = daemon_process.process
    assert daemon is not None
    (port,) = await until(lambda: ports(home))
    key = keys.home_key(home)
    assert key is not None

    ready = await get(session, f"http://127.0.0.1:{port}/readyz")
    (first,) = servers(daemon.pid)
    environ = told_of(first, "environ")
    async with AsyncClient(UnixTransport(daemon_process.socket)) as client:
        tokens = (await client.request("token:list"))["tokens"]
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(ports(home)) == 2)
    again = await get(session, f"http://127.0.0.1:{ports(home)[1]}/openapi.json", key)
    (second,) = servers(daemon.pid)
    daemon_process.kill()
    await until(lambda: is_gone(second))

    assert ready == (200, {"status": "ready"})
    assert again[0] == 200
    assert b"ksi_" not in environ.replace(b"ksi_http", b"")  # the token is in no environment
    (grants,) = [each["grants"] for each in tokens if each["name"] == "token:http"]
    assert grants["scopes"] == ["*"]
    assert not {"*", "system:shutdown"} & set(grants["call"])
    assert not grants.get("see_all")


async def test_a_daemon_that_goes_and_comes_is_told_and_waited_for(
    daemon_process: DaemonProcess, settings: list[str], session: aiohttp.ClientSession
) -> None:
    daemon_process.start(*settings)
    key = keys.home_key(daemon_process.home) or ""
    connecting = application.connected(lambda: UnixTransport(daemon_process.socket))
    async with connecting as app:
        app.settings = replace(app.settings, port=0, known_s=0.0)
        async with application.serving(app) as (_, port):
            url = f"http://127.0.0.1:{port}"
            before = await get(session, f"{url}/openapi.json", key)
            daemon_process.kill()
            await until(lambda: not app.connections.is_connected)
            away = await session.post(f"{url}/v1/system/health", headers={"x-api-key": key})
            told = await away.json()
            alive, ready = await get(session, f"{url}/healthz"), await get(session, f"{url}/readyz")
            daemon_process.start(*settings)
            await until(lambda: app.connections.is_connected)
            after = await session.post(f"{url}/v1/system/health", headers={"x-api-key": key})

    assert before[0] == 200
    assert (away.status, told["error"]["code"]) == (503, "unavailable")
    assert int(away.headers["Retry-After"]) >= 1
    assert str(daemon_process.home) not in told["error"]["message"]
    assert (alive[0], ready[0]) == (200, 503)
    assert after.status == 200


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class TestTaken:
    """A daemon in this process, whose server can't have its port."""

    @pytest.fixture
    def ksi_plugins(self, with_postgres: list[EntryPoint]) -> list[EntryPoint]:
        return with_postgres

    @pytest.fixture
    def ksi_settings(self, taken: int) -> list[str]:
        return ["http.enabled=true", f"http.port={taken}"]

    async def test_a_port_that_is_taken_is_told_with_the_setting(
        self, daemon: Daemon, client: AsyncClient, taken: int
    ) -> None:
        why = ""
        async with asyncio.timeout(LIMIT_S):
            while not why:
                report = await client.request("system:health")
                why = next(p.get("why", "") for p in report["plugins"] if p["plugin"] == "http")
                await asyncio.sleep(AGAIN_S)

        assert f"127.0.0.1:{taken}" in why
        assert "http.port" in why
        assert report["health"] == "degraded"
