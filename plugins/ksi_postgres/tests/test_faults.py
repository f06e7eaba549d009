"""Tests of what goes wrong under a store: each really done to a real Postgres."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ksi_daemon.protocol import Failed, InvalidData
from ksi_postgres import cluster
from ksi_postgres.embedded import EmbeddedServer

SMALL_DISK_BYTES = 300 * 1024 * 1024


@pytest.fixture
def small_disk(ksi_home: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = ksi_home / "disk"
    folder.mkdir()
    ksi_home.chmod(0o711)
    options = f"size={SMALL_DISK_BYTES},mode=0711"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Take all the room that there is."""
    file = folder / "ballast"
    with file.open("ab", buffering=0) as stream:
        try:
            for size in (1 << 20, 1 << 12):
                with_room = True
                while with_room:
                    try:
                        stream.write(bytes(size))
                    except OSError:
                        with_room = False
        finally:
            os.fsync(stream)
    return file


async def query(server: EmbeddedServer, statement: str) -> object:
    connection = await asyncpg.connect(
        host=server.host,
        user=server.superuser,
        password=server.passwords[server.superuser],
        database="postgres",
    )
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_room_again(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedServer(small_disk / "pg")
    await server.start()
    try:
        await query(server, "CREATE TABLE kept AS SELECT 7 AS x")
        ballast = await asyncio.to_thread(fill_up, small_disk)

        with pytest.raises((asyncpg.DiskFullError, asyncpg.PostgresIOError, ConnectionError)):
            await query(server, "CREATE TABLE big AS SELECT repeat(md5(x::text), 99) "
                                "FROM generate_series(1, 100000) x")  # fmt: skip
        if server.pid is not None:
            os.kill(server.pid, signal.SIGKILL)
        await server.wait_end()
        with monkeypatch.context() as patched:
            # What was not committed is gone again, as is what the dead one has left.
            patched.setattr(cluster, "remove_half_made", lambda place: fill_up(small_disk))
            with pytest.raises(Failed, match=r"(?s)No space left.*make room on that disk"):
                await server.start()

        ballast.unlink()
        await server.start()
        assert await query(server, "SELECT x FROM kept") == 7
    finally:
        await server.stop()


async def test_a_cluster_is_not_begun_where_it_has_no_room(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(SMALL_DISK_BYTES // 2))

    with pytest.raises(InvalidData, match=r"has 1\d\d MB free; make room, or set postgres\.data"):
        await EmbeddedServer(small_disk / "pg").start()
    assert not (small_disk / "pg" / "data").exists()


async def test_a_disk_that_fills_while_the_cluster_is_made_leaves_no_half_of_it(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "ballast").write_bytes(bytes(SMALL_DISK_BYTES - (20 << 20)))
    monkeypatch.setattr("ksi_postgres.cluster.MIN_FREE_BYTES", 0)

    with pytest.raises(Failed, match=r"(?s)initdb failed.*make room on that disk"):
        await EmbeddedServer(small_disk / "pg").start()

    (small_disk / "ballast").unlink()
    assert shutil.disk_usage(small_disk).used < 1 << 20, "it left something"
    again = EmbeddedServer(small_disk / "pg")
    await again.start()
    await again.stop()
