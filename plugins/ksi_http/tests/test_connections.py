"""The connections to the daemon: as whom they are made, and how many there are."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ksi_client import AsyncClient, UnixTransport
from ksi_daemon.daemon import Daemon
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Busy, InvalidData, Unavailable
from ksi_daemon.protocol.events import Grants
from ksi_http.sidecar import connections
from ksi_http.sidecar.connections import Connections


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FULL", 1)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)


@pytest.fixture
async def pool(daemon: Daemon) -> AsyncIterator[Connections]:
    async with Connections(lambda: UnixTransport(daemon.home.socket)) as made:
        yield made


async def principal(client: AsyncClient) -> str:
    name: str = (await client.request("system:hello"))["principal"]
    return name


async def test_a_token_from_a_pipe_is_every_connection_s(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = daemon.tokens.issue(Principal("http", Grants(call=("system:*",))), ttl_s=60)
    read, write = os.pipe()
    os.write(write, token.encode())
    os.close(write)
    monkeypatch.setenv("KSI_TOKEN_FILE", f"/dev/fd/{read}")

    pool = Connections(lambda: UnixTransport(daemon.home.socket))
    async with pool, pool.taken() as first, pool.taken() as second, pool.taken() as third:
        names = [await principal(each) for each in (first, second, third)]
        assert first is not second

    os.close(read)
    assert names == ["token:http"] * 3  # a connection without a token would be the owner's


@pytest.mark.parametrize("content", [b"", b"\n", None])
def test_a_token_that_can_not_be_read_does_not_make_an_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("KSI_TOKEN_FILE", str(file))

    with pytest.raises(InvalidData, match="KSI_TOKEN_FILE"):
        Connections(lambda: None)


async def test_connections_are_made_when_they_are_needed_and_used_again(pool: Connections) -> None:
    async with pool.taken() as first, pool.taken() as second:
        assert first is not second
        assert pool.in_flight == 2
    async with pool.taken() as again:
        assert again is first
    assert pool.in_flight == 0


async def test_there_is_a_bound_on_what_is_under_way(pool: Connections) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(pool.taken())
        with pytest.raises(Busy):
            await stack.enter_async_context(pool.taken())


async def test_without_a_daemon_nobody_is_kept_waiting(pool: Connections, daemon: Daemon) -> None:
    await pool.close()

    with pytest.raises(Unavailable):
        async with pool.taken():
            pass
