"""Tests of ``ksi db``, with the daemon up and down."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_cli.testing import Finished, KsiCommand
from ksi_daemon import process
from ksi_daemon.home import Home
from ksi_postgres import leftovers
from ksi_postgres.place import Place
from ksi_postgres.tests.conftest import copied

PAGE_BYTES = 8192
PLUGINS = {"KSI_DAEMON_PLUGINS": "system,postgres"}


@pytest.fixture
def ksi(ksi_home: Path, tmp_path: Path) -> Iterator[KsiCommand]:
    command = KsiCommand(ksi_home, tmp_path, PLUGINS)
    yield command
    process.stop(Home(ksi_home), timeout_s=0)


@pytest.fixture(scope="session")
def model_home(model_folder: Path) -> Path:
    """A home whose database was made."""
    home = model_folder / "home"
    done = KsiCommand(home, model_folder, PLUGINS)("db", "migrate")
    assert done.code == 0, done.err
    return home


@pytest.fixture
def migrated(model_home: Path, ksi: KsiCommand) -> KsiCommand:
    """A home whose database is made, and whose daemon is down."""
    Home(ksi.home).prepare()
    copied(model_home / "pg", ksi.home / "pg")
    return ksi


def psql(ksi: KsiCommand, statement: str) -> str:
    done = ksi("db", "shell", "--", "-XAtq", "-v", "ON_ERROR_STOP=1", stdin=statement)
    assert done.code == 0, done.err
    return done.out.strip()


def error_of(done: Finished) -> str:
    assert done.code in (1, 4, 5, 6), done.out
    return done.err.removeprefix("ksi: ").strip()


def no_postgres_runs(home: Path) -> bool:
    return not leftovers.processes_on(Place(home / "pg"))


# -- the daemon is down -------------------------------------------------------------------------


def test_without_a_database_each_command_says_how_to_make_one(ksi: KsiCommand) -> None:
    for command in (["status"], ["size"], ["verify"], ["shell"], ["backup", "file"]):
        assert "make it: ksi db migrate" in error_of(ksi("db", *command))
    assert not (ksi.home / "pg" / "data").exists()


def test_migrate_makes_the_database_and_then_has_nothing_to_do(ksi: KsiCommand) -> None:
    first = ksi("db", "migrate", "--json").json
    second = ksi("db", "migrate")

    assert "0001_walls" in " ".join(first["applied"]["postgres"])
    assert second.out.strip() == "the schema is that of this version already"
    assert no_postgres_runs(ksi.home)


def test_status_tells_where_and_how_it_is_and_what_is_pending(migrated: KsiCommand) -> None:
    shown = migrated("db", "status")
    told = migrated("db", "status", "--json").json

    assert shown.code == 0
    assert told["embedded"] is True
    assert told["where"] == str(migrated.home / "pg")
    assert told["version"].startswith("18.")
    assert told["size_bytes"] > 1_000_000
    assert {"postgres"} <= {plugin["plugin"] for plugin in told["schema"]}
    assert not any(plugin["pending"] for plugin in told["schema"])
    assert max(map(len, shown.out.splitlines())) <= 80

    psql(migrated, "DELETE FROM ksi_postgres.migration WHERE plugin = 'postgres'")

    told = migrated("db", "status", "--json").json

    pending = {plugin["plugin"]: plugin["pending"] for plugin in told["schema"]}
    assert "0001_walls" in " ".join(pending["postgres"])


def test_a_command_ends_the_server_that_it_started(migrated: KsiCommand) -> None:
    assert psql(migrated, "SELECT current_user || ' ' || current_database()") == "postgres ksi"
    assert no_postgres_runs(migrated.home)
    failed = migrated("db", "shell", "--", "-c", "SELECT 1/0")
    assert failed.code == 1, "the exit code is that of psql"
    assert no_postgres_runs(migrated.home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_ends_its_server(
    migrated: KsiCommand, tmp_path: Path, number: signal.Signals
) -> None:
    fifo = tmp_path / "backup.part"
    os.mkfifo(fifo, 0o600)  # pg_dump waits here for somebody who reads
    running = migrated.begin("db", "backup", str(tmp_path / "backup"))
    reader = os.open(fifo, os.O_RDONLY)  # which waits for pg_dump to open it

    running.send_signal(number)
    running.communicate(timeout=30)
    os.close(reader)

    assert running.returncode == 130
    assert no_postgres_runs(migrated.home)
    assert migrated("db", "status").code == 0, "the home is still locked"


def test_no_process_of_a_command_shows_the_password(migrated: KsiCommand) -> None:
    """psql itself looks at what it was started with."""
    shown = psql(migrated, r"\! cat /proc/$PPID/environ /proc/$PPID/cmdline; env")
    secrets = Place(migrated.home / "pg").passwords().values()

    assert "PGPASSFILE" in shown
    assert not [secret for secret in secrets if secret in shown]


# -- backup and restore -------------------------------------------------------------------------


def fill(ksi: KsiCommand, value: int) -> None:
    psql(ksi, "CREATE TABLE IF NOT EXISTS public.kept (x int);\nTRUNCATE public.kept;\n"
              f"\\set value {value}\nINSERT INTO public.kept VALUES (:value)")  # fmt: skip


def kept(ksi: KsiCommand) -> str:
    return psql(ksi, "SELECT x FROM public.kept")


def test_a_backup_brings_back_what_there_was(migrated: KsiCommand, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    fill(migrated, 7)

    written = migrated("db", "backup", str(file), "--json").json
    fill(migrated, 8)
    restored = migrated("db", "restore", str(file), "--json").json

    assert written["bytes"] == file.stat().st_size > 1000
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept(migrated) == "7"
    assert restored["kept_as"] == "ksi_before_restore"
    assert psql(migrated, "\\c ksi_before_restore\nSELECT x FROM public.kept") == "8"
    assert migrated("db", "verify").code == 0

    # A second restore keeps the database before it alone.
    fill(migrated, 9)
    assert migrated("db", "restore", str(file)).code == 0
    names = psql(migrated, "SELECT datname FROM pg_database WHERE datname ~ '^ksi' ORDER BY 1")
    assert names.split() == ["ksi", "ksi_before_restore"]
    assert psql(migrated, "\\c ksi_before_restore\nSELECT x FROM public.kept") == "9"


def test_a_backup_is_restored_into_a_new_home(
    migrated: KsiCommand, ksi_home: Path, tmp_path: Path
) -> None:
    file, other = tmp_path / "backup", KsiCommand(ksi_home / "other", tmp_path)
    fill(migrated, 7)
    migrated("db", "backup", str(file))

    restored = other("db", "restore", str(file), "--json").json

    assert restored["kept_as"] is None
    assert kept(other) == "7"


def test_a_backup_replaces_no_file_unasked_nor_one_that_is_being_written(
    migrated: KsiCommand, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    file.write_text("precious")

    refused = migrated("db", "backup", str(file))
    with (tmp_path / "backup.part").open("w") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        second = migrated("db", "backup", str(file), "--force")
    nowhere = migrated("db", "backup", str(tmp_path / "no" / "folder"))

    assert "--force" in error_of(refused)
    assert "another backup is just being written" in error_of(second)
    assert "No such file or directory" in error_of(nowhere)
    assert file.read_text() == "precious"
    assert migrated("db", "backup", str(file), "--force").code == 0
    assert file.read_bytes().startswith(b"PGDMP")


def test_a_backup_without_room_leaves_nothing_behind(migrated: KsiCommand, tmp_path: Path) -> None:
    options = "size=64k,mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        (tmp_path / "ballast").write_bytes(bytes(60_000))

        told = error_of(migrated("db", "backup", str(tmp_path / "backup")))

        assert "No space left on device" in told
        assert told.endswith("make room on that disk")
        assert [file.name for file in tmp_path.iterdir()] == ["ballast"]
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_damaged_backup_is_refused_and_nothing_is_lost(
    migrated: KsiCommand, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    fill(migrated, 7)
    psql(migrated, "CREATE TABLE public.more AS "
                   "SELECT md5(x::text) FROM generate_series(1, 9999) x")  # fmt: skip
    migrated("db", "backup", str(file))
    content = file.read_bytes()
    middle = len(content) - 20_000
    no_backup, cut = b"no backup at all", content[:middle]
    altered = content[:middle] + bytes(100) + content[middle + 100 :]

    for damaged in (no_backup, cut, altered):
        file.write_bytes(damaged)
        assert str(file) in error_of(migrated("db", "restore", str(file)))

    assert kept(migrated) == "7"
    names = psql(migrated, "SELECT datname FROM pg_database WHERE datname ~ '^ksi'")
    assert names == "ksi"


def test_a_backup_of_a_newer_schema_is_refused_and_nothing_is_lost(
    migrated: KsiCommand, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    fill(migrated, 7)
    psql(migrated, "INSERT INTO ksi_postgres.migration (plugin, number, name, checksum, version, "
                   "duration_s) VALUES ('postgres', 999, 'later', 'x', '99.0', 0)")  # fmt: skip
    migrated("db", "backup", str(file))
    psql(migrated, "DELETE FROM ksi_postgres.migration WHERE number = 999")

    refused = migrated("db", "restore", str(file))

    assert "99.0" in error_of(refused)
    assert kept(migrated) == "7"


# -- verify and size ----------------------------------------------------------------------------


def test_verify_finds_nothing_wrong_with_a_sound_database(migrated: KsiCommand) -> None:
    done = migrated("db", "verify")
    told = migrated("db", "verify", "--json").json

    assert done.code == 0, done.out
    assert "nothing is wrong" in done.out
    assert told["tables"] > 50
    assert told["indexes"] > 50
    assert told["migrations"] >= 1
    extensions = psql(migrated, "SELECT string_agg(extname, ' ') FROM pg_extension")
    assert "amcheck" not in extensions


def found_damage(ksi: KsiCommand) -> dict[str, Any]:
    done = ksi("db", "verify", "--json")
    assert done.code == 1, done.out
    return {each["what"]: each["problem"] for each in done.json["damage"]}


def test_verify_finds_pages_that_the_disk_has_altered(migrated: KsiCommand) -> None:
    relations = ("kept", "kept_pkey")
    psql(migrated, "CREATE TABLE public.kept AS SELECT x FROM generate_series(1, 5000) x; "
                   "ALTER TABLE public.kept ADD CONSTRAINT kept_pkey PRIMARY KEY (x)")  # fmt: skip
    files = psql(migrated, ";".join(f"SELECT pg_relation_filepath('public.{name}')"
                                    for name in relations))  # fmt: skip
    for file in files.split():
        with (migrated.home / "pg" / "data" / file).open("r+b") as stream:
            stream.seek(3 * PAGE_BYTES + 5000)
            stream.write(b"\xff" * 20)

    damage = found_damage(migrated)
    assert ["invalid page" in damage[f"public.{name}"] for name in relations] == [True, True]


def test_verify_finds_a_migration_that_was_changed_and_a_table_without_walls(
    migrated: KsiCommand,
) -> None:
    psql(migrated, "UPDATE ksi_postgres.migration SET checksum = 'another' WHERE number = 1 "
                   "AND plugin = 'postgres'; "
                   "CREATE TABLE ksi_postgres.forgotten (tenant text)")  # fmt: skip

    damage = found_damage(migrated)
    assert [what for what in damage if "0001_walls" in what]
    assert "ksi_postgres" in damage


def test_size_tells_plugins_tables_and_tenants(migrated: KsiCommand) -> None:
    psql(migrated, "CREATE TABLE ksi_postgres.notes (tenant text NOT NULL, note text); "
                   "SELECT ksi_postgres.protect('ksi_postgres.notes'); "
                   "INSERT INTO ksi_postgres.notes SELECT 'acme', repeat('x', 500) "
                   "FROM generate_series(1, 3000); "
                   "INSERT INTO ksi_postgres.notes VALUES ('tiny', 'x')")  # fmt: skip

    shown = migrated("db", "size")
    told = migrated("db", "size", "--json").json

    table = next(table for table in told["tables"] if table["table"] == "notes")
    tenants = {tenant["tenant"]: tenant for tenant in told["tenants"]}
    assert table["plugin"] == "postgres"
    assert table["rows"] == 3001
    assert table["total_bytes"] >= 3000 * 500
    assert tenants["acme"]["rows"] == 3000
    assert tenants["acme"]["bytes"] >= 3000 * 500
    assert tenants["tiny"]["bytes"] < 100
    parts = sum(plugin["total_bytes"] for plugin in told["plugins"]) + told["other_bytes"]
    assert parts == told["database_bytes"]
    assert "acme" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


# -- somebody else's Postgres -------------------------------------------------------------------

RUNS_A_SERVER = """
    import asyncio, sys
    from pathlib import Path
    import asyncpg
    from ksi_postgres.embedded import EmbeddedServer

    async def main():
        server = EmbeddedServer(Path(sys.argv[1]), fsync=False)
        await server.start()
        try:
            await serve(server)
        finally:
            await server.stop()

    async def serve(server):
        connection = await asyncpg.connect(
            host=server.host, user="postgres", password=server.passwords["postgres"],
            database="postgres")
        await connection.execute("CREATE ROLE someone LOGIN CREATEDB CREATEROLE PASSWORD 'a:b'")
        await connection.execute("CREATE DATABASE theirs OWNER someone")
        await connection.close()
        connection = await asyncpg.connect(
            host=server.host, user="postgres", password=server.passwords["postgres"],
            database="theirs")
        await connection.execute("CREATE EXTENSION vector")
        await connection.close()
        print(f"postgresql://someone:a%3Ab@/theirs?host={server.host}", flush=True)
        print(f"postgresql://postgres:{server.passwords['postgres']}@/theirs?host={server.host}",
              flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.fixture
def elsewhere(ksi: KsiCommand) -> Iterator[KsiCommand]:
    """A home that uses a Postgres which is not its own, with a login that is no superuser's."""
    folder = ksi.home / "theirs"
    for home in (ksi.home, folder):  # from above: the server's user passes through both
        Home(home).prepare()
    command = [sys.executable, "-c", textwrap.dedent(RUNS_A_SERVER), str(folder / "pg")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    ksi.environ["KSI_DATABASE_URL"] = server.stdout.readline().strip()
    ksi.environ["SUPERUSERS_URL"] = server.stdout.readline().strip()
    yield ksi
    server.send_signal(signal.SIGINT)
    server.communicate()
    assert no_postgres_runs(folder)


def test_a_postgres_of_somebody_elses_is_used_with_the_rights_that_there_are(
    elsewhere: KsiCommand, tmp_path: Path
) -> None:
    made = elsewhere("db", "migrate")
    status = elsewhere("db", "status", "--json")
    checked = elsewhere("db", "verify", "--json").json
    size = elsewhere("db", "size")

    assert made.code == 0, made.err
    assert (status.json["embedded"], status.json["run_by"]) == (False, "somebody else")
    assert "a:b" not in status.out
    assert "a%3Ab" not in status.out
    assert (checked["damage"], checked["tables"]) == ([], 0)
    assert "superuser" in checked["skipped"]
    assert size.code == 0, size.err
    assert not (elsewhere.home / "pg" / "data").exists()


def test_a_login_that_is_no_superusers_backs_up_every_tenant_and_a_superuser_restores(
    elsewhere: KsiCommand, tmp_path: Path
) -> None:
    file, superuser = tmp_path / "backup", elsewhere.environ["SUPERUSERS_URL"]
    assert elsewhere("db", "migrate").code == 0
    psql(elsewhere, "SET ROLE ksi_owner; CREATE TABLE ksi_postgres.notes (tenant text, x int); "
                    "SELECT ksi_postgres.protect('ksi_postgres.notes'); "
                    "INSERT INTO ksi_postgres.notes VALUES ('one', 1), ('two', 2)")  # fmt: skip
    written = elsewhere("db", "backup", str(file))
    psql(elsewhere, "SET ROLE ksi_owner; TRUNCATE ksi_postgres.notes")

    refused = elsewhere("db", "restore", str(file))
    restored = elsewhere("db", "restore", str(file), KSI_DATABASE_URL=superuser)

    assert written.code == 0, written.err
    assert "with a superuser's KSI_DATABASE_URL" in error_of(refused)
    assert restored.code == 0, restored.err
    told = psql(elsewhere, "SET ROLE ksi_owner; SELECT tenant, x FROM ksi_postgres.notes")
    assert sorted(told.split()) == ["one|1", "two|2"]


def test_a_database_that_others_use_is_not_replaced(elsewhere: KsiCommand, tmp_path: Path) -> None:
    file, superuser = tmp_path / "backup", elsewhere.environ["SUPERUSERS_URL"]
    elsewhere("db", "migrate")
    elsewhere("db", "backup", str(file))
    other = elsewhere.begin("db", "shell", stdin=subprocess.PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write("SELECT 'connected';\n")
    other.stdin.flush()
    while "connected" not in other.stdout.readline():
        pass

    refused = elsewhere("db", "restore", str(file), KSI_DATABASE_URL=superuser)
    other.communicate()

    assert "others use the database" in error_of(refused)
    assert elsewhere("db", "status").code == 0


# -- the daemon is up ---------------------------------------------------------------------------


def test_with_the_daemon_up_its_own_server_is_asked(migrated: KsiCommand, tmp_path: Path) -> None:
    migrated("start")

    told = migrated("db", "status", "--json").json
    written = migrated("db", "backup", str(tmp_path / "backup"))
    restored = migrated("db", "restore", str(tmp_path / "backup"))

    assert "daemon" in told["run_by"]
    assert written.code == 0
    assert "first: ksi stop" in error_of(restored)
    assert migrated("db", "verify").code == 0
    assert migrated("status").code == 0


def test_a_daemon_does_not_start_while_a_command_has_the_server(
    migrated: KsiCommand, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "backup.part", 0o600)
    running = migrated.begin("db", "backup", str(tmp_path / "backup"))
    reader = os.open(tmp_path / "backup.part", os.O_RDONLY)
    try:
        command = [sys.executable, "-m", "ksi_daemon", "--home", str(migrated.home)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

        assert second.returncode != 0
        assert f"pid {running.pid}" in second.stderr + second.stdout
    finally:
        os.close(reader)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
