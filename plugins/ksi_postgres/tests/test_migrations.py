"""Migrations: what is found, what is refused, what stays when one fails, and many at once."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from importlib.metadata import EntryPoint
from pathlib import Path

import asyncpg
import pytest

from ksi_daemon.protocol import Conflict, Failed, InvalidData, KsiError
from ksi_daemon.testing import DaemonProcess, write_entry_points
from ksi_postgres import migrations
from ksi_postgres.logins import Logins
from ksi_postgres.migrations import Migration, find_migrations, in_order, migrate, read_folder
from ksi_postgres.testing import TestServer, drop_database, fresh_database

TABLE = "CREATE TABLE thing (tenant text NOT NULL, n int); SELECT ksi_postgres.protect('thing');"


def step(sql: str, number: int = 1, plugin: str = "shop", version: str = "1.0") -> Migration:
    return Migration(plugin, number, f"step_{number}", sql, version)


@pytest.fixture
async def admin(database_logins: Logins) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_logins.admin)
    yield connection
    await connection.close()


@pytest.fixture
async def empty(postgres_server: TestServer) -> AsyncIterator[Logins]:
    """A database that nothing was ever done to."""
    logins = await fresh_database(postgres_server, "template0")
    yield logins
    await drop_database(postgres_server, logins)


# -- what is found --------------------------------------------------------------------------------


def test_every_installed_plugin_s_files_are_well_named_and_without_a_gap() -> None:
    found = find_migrations(sorted(migrations.installed_plugins()))
    numbers: dict[str, list[int]] = {}
    for each in found:
        numbers.setdefault(each.plugin, []).append(each.number)

    assert numbers["postgres"][0] == 1
    assert all(n == list(range(1, len(n) + 1)) for n in numbers.values())
    assert all(each.version for each in found)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["0001_a.sql", "0003_b.sql"], "the next number is 0002"),
        (["0002_a.sql"], "the next number is 0001"),
        (["0001_a.sql", "0001_b.sql"], "the next number is 0002"),
        (["1_a.sql"], "is named NNNN"),
        (["0001-a.sql"], "is named NNNN"),
        (["0001_A.sql"], "is named NNNN"),
        (["0001_.sql"], "is named NNNN"),
    ],
)
def test_a_wrong_name_is_told_with_its_file(tmp_path: Path, names: list[str], why: str) -> None:
    for name in names:
        (tmp_path / name).touch()

    with pytest.raises(InvalidData, match=why) as caught:
        read_folder("shop", tmp_path, "1.0")

    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("plugin", ["Shop", "a-b", "1a", "", 'x"; DROP', "read", "x" * 60])
def test_a_plugin_whose_name_makes_no_schema_of_its_own_is_refused(
    tmp_path: Path, plugin: str
) -> None:
    with pytest.raises(InvalidData, match="named like a schema"):
        read_folder(plugin, tmp_path, "1.0")


def test_what_is_no_sql_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text("SELECT 1", encoding="utf-8")
    (tmp_path / "README.md").touch()

    assert [each.title for each in read_folder("shop", tmp_path, "1.0")] == ["shop 0001_a"]


def test_somebody_else_s_migrations_come_from_the_folder_sql_of_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "shop_under_test"
    (package / "sql").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sql" / "0001_things.sql").write_text(TABLE, encoding="utf-8")
    write_entry_points(tmp_path, shop="shop_under_test.plugin")
    monkeypatch.syspath_prepend(tmp_path)

    found = find_migrations(["shop"])

    assert [(each.title, each.version) for each in found] == [("shop 0001_things", "1.0")]


def test_a_plugin_of_one_module_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("json", "json.tool", "ksi")
    monkeypatch.setattr(migrations, "installed_plugins", lambda: {"json": point})

    assert find_migrations(["json"]) == []


@pytest.mark.parametrize(
    ("requires", "order"),
    [
        ({"b": ("a",), "a": ()}, ["a", "b"]),
        ({"a": ("postgres",), "postgres": ()}, ["postgres", "a"]),
        ({"a": ("c",), "b": (), "c": ("b",)}, ["b", "c", "a"]),
        ({"a": ("b",), "b": ("a",)}, ["b", "a"]),
        ({"a": ("gone",)}, ["a"]),
    ],
)
def test_a_plugin_comes_after_those_that_it_requires(
    requires: dict[str, tuple[str, ...]], order: list[str]
) -> None:
    assert in_order(requires) == order


# -- what is applied ------------------------------------------------------------------------------


async def test_each_is_applied_once_in_a_schema_of_its_plugin(admin: asyncpg.Connection) -> None:
    known = [step(TABLE), step("ALTER TABLE thing ADD m int", 2)]

    counts = [await migrate(admin, known) for _ in range(2)]

    assert counts == [2, 0]
    assert await admin.fetchval("SELECT count(m) FROM ksi_shop.thing") == 0
    owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'ksi_shop.thing'::regclass"
    assert await admin.fetchval(owner) == "ksi_owner"


async def test_a_row_of_a_young_table_is_found_by_its_key_however_many_its_tenant_has(
    admin: asyncpg.Connection,
) -> None:
    table = """
        CREATE TABLE thing (tenant text, id text, n bigint NOT NULL, gone_at timestamptz,
                            PRIMARY KEY (tenant, id));
        CREATE INDEX newest ON thing (tenant, n);
        CREATE INDEX living ON thing (tenant) WHERE gone_at IS NULL;
        SELECT ksi_postgres.protect('thing');
    """
    await migrate(admin, [step(table)])

    for query in (
        "SELECT * FROM ksi_shop.thing t WHERE (t.tenant, t.id) = ('a', 'b')",
        "SELECT * FROM ksi_shop.thing t WHERE (t.tenant, t.id) = ('a', 'b') AND t.gone_at IS NULL",
    ):
        plan = "\n".join(row[0] for row in await admin.fetch(f"EXPLAIN {query}"))
        assert " thing_pkey " in plan, plan


async def test_nothing_stays_of_the_role_and_the_path_that_a_migration_ran_with(
    admin: asyncpg.Connection,
) -> None:
    before = await admin.fetchrow("SELECT current_user::text, current_setting('search_path')")

    await migrate(admin, [step(TABLE)])

    after = await admin.fetchrow("SELECT current_user::text, current_setting('search_path')")
    assert after == before


async def test_a_changed_file_is_refused_before_anything_is_done(
    admin: asyncpg.Connection,
) -> None:
    await migrate(admin, [step(TABLE)])

    with pytest.raises(Conflict, match="shop 0001_step_1 has changed since it was applied"):
        await migrate(admin, [step(TABLE + " "), step("CREATE SCHEMA ksi_never", 2)])

    assert await admin.fetchval("SELECT to_regnamespace('ksi_never')") is None


async def test_a_database_newer_than_the_code_names_the_version_that_knows_it(
    admin: asyncpg.Connection,
) -> None:
    await migrate(admin, [step(TABLE), step("SELECT 1", 2, version="9.7.5")])

    with pytest.raises(Conflict, match=r"newer than this code.*shop 0002_step_2.*9\.7\.5"):
        await migrate(admin, [step(TABLE)])


async def test_what_is_no_longer_installed_disturbs_nobody(admin: asyncpg.Connection) -> None:
    await migrate(admin, [step(TABLE)])

    assert await migrate(admin, [step("SELECT 1", plugin="other")]) == 1


async def test_a_failing_one_is_rolled_back_and_those_before_it_stay(
    admin: asyncpg.Connection,
) -> None:
    fails = step("CREATE TABLE half (n int); SELECT 1 / 0;", 2)

    with pytest.raises(Failed, match=r"shop 0002_step_2 failed.*division by zero"):
        await migrate(admin, [step(TABLE), fails])

    assert await admin.fetchval("SELECT to_regclass('ksi_shop.half')") is None
    assert await admin.fetchval("SELECT to_regclass('ksi_shop.thing')") is not None
    mended = step("SELECT 1", 2)
    assert await migrate(admin, [step(TABLE), mended]) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "ROLLBACK",
        "COMMIT AND CHAIN",
        "END",
        "ABORT",
        "DO $$ BEGIN COMMIT; END $$",
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$; CALL p()",
    ],
)
async def test_one_that_ends_its_own_transaction_is_refused_and_nothing_stays(
    admin: asyncpg.Connection, statement: str
) -> None:
    with pytest.raises(Failed, match="shop 0001_step_1 failed and was rolled back"):
        await migrate(admin, [step(f"{TABLE} {statement}; CREATE TABLE ksi_shop.later (n int)")])

    assert await admin.fetchval("SELECT to_regnamespace('ksi_shop')") is None
    assert not admin.is_in_transaction()


async def test_a_lost_connection_is_no_fault_of_the_migration(
    admin: asyncpg.Connection, database_logins: Logins
) -> None:
    with pytest.raises(KsiError) as caught:
        await migrate(admin, [step("SELECT pg_terminate_backend(pg_backend_pid())")])

    # It needs a superuser's right, which no migration has: so it is somebody else who ends it.
    assert caught.value.code == "failed"
    other = await asyncpg.connect(database_logins.admin)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(_outcome(admin, step("SELECT pg_sleep(100)")))
        while not running.done() and not await other.fetchval(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE pid = $1 AND wait_event = 'PgSleep'",
            admin.get_server_pid(),
        ):
            pass
    await other.close()
    assert running.result() == "unavailable"


async def _outcome(connection: asyncpg.Connection, migration: Migration) -> str:
    try:
        await migrate(connection, [migration])
    except KsiError as error:
        return error.code
    return "done"


WORKER = textwrap.dedent(
    """
    import asyncio, sys
    from ksi_postgres import migrations, store
    from ksi_postgres.logins import Logins
    from ksi_postgres.settings import PostgresSettings

    url = sys.stdin.readline().strip()
    print("here", flush=True)
    sys.stdin.readline()
    known = migrations.find_migrations(["postgres", "workflows"])
    logins = Logins(app=url, direct=url, admin=url, reader=url)
    ready = asyncio.run(store.make_ready(logins, PostgresSettings(), known))
    print(ready.migrated, flush=True)
    """
)


async def test_ten_daemons_at_once_migrate_an_empty_database_once(empty: Logins) -> None:
    workers = [
        subprocess.Popen(  # noqa: ASYNC220  it does not wait for them
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{empty.admin}\n")
        worker.stdin.flush()
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "here\n"

    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate() for worker in workers]

    assert [worker.returncode for worker in workers] == [0] * 10, answers
    known = find_migrations(["postgres", "workflows"])
    assert sum(int(out) for out, _ in answers) >= len(known)
    connection = await asyncpg.connect(empty.admin)
    applied = await connection.fetchval("SELECT count(*) FROM ksi_postgres.migration")
    await connection.close()
    assert applied == len(known)


# -- in a daemon ----------------------------------------------------------------------------------


async def test_a_daemon_whose_migration_fails_does_not_run_and_says_why(
    tmp_path: Path,
    ksi_home: Path,
    database_logins: Logins,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    package = tmp_path / "shop_under_test"
    (package / "sql").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from ksi_daemon.hookspecs import PluginInfo, hookimpl\n"
        "@hookimpl\n"
        "def ksi_plugin(): return PluginInfo(requires=('postgres',))\n",
        encoding="utf-8",
    )
    (package / "sql" / "0001_things.sql").write_text("SELECT 1 / 0", encoding="utf-8")
    write_entry_points(tmp_path, shop="shop_under_test")
    daemon = DaemonProcess(
        ksi_home,
        environ={
            "PYTHONPATH": str(tmp_path),
            "KSI_DATABASE_URL": database_logins.admin,
            "KSI_DATABASE_READER_URL": database_logins.reader or "",
        },
    )

    with pytest.raises(AssertionError, match="did not start"):
        daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(20) != 0

    told = capfd.readouterr().err + (ksi_home / "log" / "daemon.log").read_text(encoding="utf-8")
    assert "shop 0001_things failed and was rolled back: division by zero" in told
    assert database_logins.admin not in told
