"""The lease: who holds it, who takes it over, and what it fences off."""

import asyncio
from pathlib import Path

import asyncpg
import msgspec
import pytest

from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_workflows.office import Fenced, boot_time, executor_of
from ksi_workflows.store import RunOptions, Store

LEASE_S = 0.05
TABLES = (
    "workflow_status",
    "workflow_input",
    "workflow_output",
    "operation_outputs",
    "notifications",
    "streams",
    "workflow_events",
    "queues",
)


async def in_office(database: Database, executor: str, lease_s: float = 60.0) -> Store:
    store = Store(database)
    await store.take_office(executor, lease_s)
    return store


async def start(store: Store, run: str, owner: str = "me", tenant: str = "default") -> str:
    attributes = f'{{"tenant":"{tenant}","name":"test","version":1}}'.encode()
    verdict, _ = await store.start_run(run, owner, attributes, b"{}", RunOptions())
    return verdict


async def expired(database: Database, executor: str) -> None:
    """Wait until an executor's lease has run out, by the database's clock."""
    sql = (
        "SELECT renewed_at < clock_timestamp() - make_interval(secs => lease_s) "
        "FROM ksi_workflows.executor WHERE id = $1"
    )
    while not await database.fetchval(sql, executor):
        await database.execute("SELECT pg_sleep(0.01)")


def test_a_home_keeps_its_executor_for_ever(tmp_path: Path) -> None:
    first = executor_of(tmp_path)

    assert executor_of(tmp_path) == first
    assert len(first) == 16
    assert [file.name for file in tmp_path.iterdir()] == ["executor"]


async def test_each_start_raises_the_epoch_and_fences_off_the_one_before(
    database: Database,
) -> None:
    old = await in_office(database, "a")
    await start(old, "r")
    new = await in_office(database, "a")

    assert new.lease.epoch == old.lease.epoch + 1
    with pytest.raises(Fenced):
        await old.renew()
    with pytest.raises(Fenced):
        await start(old, "other")
    with pytest.raises(Fenced):
        await old.begin_step("r", "me", 1, "step")
    with pytest.raises(Fenced):
        await old.end_step("r", "me", 1, "step", 1, output=b"1")
    with pytest.raises(Fenced):
        await old.end_run("r", "me", b"1", None)
    await new.renew()


async def test_a_lease_that_is_renewed_is_not_taken(database: Database) -> None:
    await in_office(database, "a")
    other = await in_office(database, "b")

    assert await other.take_over() == []


async def test_one_alone_takes_over_what_has_run_out(database: Database) -> None:
    dead = await in_office(database, "dead", LEASE_S)
    await start(dead, "r")
    others = [await in_office(database, name) for name in ("b", "c", "d")]
    await expired(database, "dead")

    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(each.take_over()) for each in others]

    taken = [row for task in made for row in task.result()]
    assert [(row["executor_id"], row["requeued"]) for row in taken] == [("dead", 1)]
    with pytest.raises(Fenced):
        await dead.renew()


async def test_a_takeover_waits_for_a_transaction_of_the_dead(
    database: Database, database_logins: Logins
) -> None:
    dead = await in_office(database, "dead", LEASE_S)
    other = await in_office(database, "b")
    await expired(database, "dead")
    connection = await asyncpg.connect(database_logins.app)
    try:
        async with connection.transaction():
            await connection.execute("SELECT ksi_workflows.hold('dead', $1)", dead.lease.epoch)
            assert await other.take_over() == []
        assert len(await other.take_over()) == 1
    finally:
        await connection.close()


async def test_what_ended_in_good_order_counts_no_attempt(database: Database) -> None:
    first = await in_office(database, "a")
    await start(first, "r")

    assert await first.leave_office() == 1

    attempts = await database.fetchval(
        "SELECT attempts FROM ksi_workflows.runs('default', "
        "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1)"
    )
    assert attempts == 0


async def test_runs_that_nobody_runs_are_given_back(database: Database) -> None:
    store = await in_office(database, "a")
    await start(store, "known")
    await start(store, "stray")

    assert await store.give_back_stray(["known"], 60.0) == 0
    assert await store.give_back_stray(["known"], -1.0) == 1

    rows = await store.runs("default", ids=["known", "stray"], limit=9)
    assert {row["run"]: row["status"] for row in rows} == {"known": "running", "stray": "queued"}


async def test_a_step_is_recorded_once_and_only_for_its_owner(database: Database) -> None:
    store = await in_office(database, "a")
    await start(store, "r", owner="me")

    assert await store.begin_step("r", "me", 1, "step") == ("run", None, None)
    assert await store.end_step("r", "me", 1, "step", 7, output=b"1") == "ok"
    assert await store.end_step("r", "me", 1, "step", 7, output=b"1") == "ok"  # told again
    assert await store.end_step("r", "me", 1, "step", 8, output=b"2") == "other"
    assert await store.begin_step("r", "me", 1, "step") == ("recorded", "1", None)
    assert (await store.begin_step("r", "you", 2, "step"))[0] == "lost"
    assert await store.end_step("r", "you", 2, "step", 9, output=b"1") == "lost"
    assert not await store.end_run("r", "you", b"1", None)
    assert await store.end_run("r", "me", b"1", None)
    assert await store.end_run("r", "me", b"1", None)


async def test_a_run_is_accepted_once(database: Database) -> None:
    store = await in_office(database, "a")

    assert await start(store, "r", owner="me") == "new"
    assert await start(store, "r", owner="me") == "new"  # told again
    assert await start(store, "r", owner="you") == "again"
    assert await start(store, "r", owner="you", tenant="other") == "other"


@pytest.mark.parametrize("table", TABLES)
async def test_the_engines_tables_show_nothing_to_other_connections(
    database: Database, table: str
) -> None:
    store = await in_office(database, "a")
    await start(store, "r")
    await store.end_step("r", "me", 1, "step", 7, output=b"1")

    assert await database.fetch(f"SELECT * FROM dbos.{table}") == []  # noqa: S608  one of ours


async def test_other_connections_can_neither_write_the_engines_tables_nor_change_them(
    database: Database,
) -> None:
    insert = "INSERT INTO dbos.workflow_status (workflow_uuid, status) VALUES ('x', 'PENDING')"

    for statement in (insert, "DROP TABLE dbos.workflow_status", "CREATE TABLE dbos.mine (id int)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await database.execute("UPDATE ksi_workflows.executor SET epoch = 0")


async def test_the_engines_own_connections_are_fenced(
    database: Database, database_logins: Logins
) -> None:
    old = await in_office(database, "a")
    epoch = str(old.lease.epoch)
    connection = await asyncpg.connect(
        database_logins.app, server_settings={"ksi.executor": "a", "ksi.epoch": epoch}
    )
    insert = "INSERT INTO dbos.workflow_status (workflow_uuid, status) VALUES ($1, 'PENDING')"
    try:
        await connection.execute(insert, "before")
        await in_office(database, "a")

        for statement in (
            "INSERT INTO dbos.workflow_status (workflow_uuid, status) VALUES ('after', 'PENDING')",
            "UPDATE dbos.workflow_status SET status = 'SUCCESS'",
            "DELETE FROM dbos.workflow_status",
            "INSERT INTO dbos.operation_outputs (workflow_uuid, function_id) VALUES ('before', 1)",
        ):
            with pytest.raises(asyncpg.PostgresError, match="does not hold epoch"):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_every_table_of_the_engine_is_fenced_and_walled(database: Database) -> None:
    bare = await database.fetch(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'dbos'::regnamespace "
        "AND c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND EXISTS "
        "(SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'ksi_fence'))"
    )

    assert bare == []


async def test_a_lease_is_fresh_only_so_long(database: Database) -> None:
    store = await in_office(database, "a", 60.0)
    assert store.lease.is_fresh

    store.lease.renewed_at = boot_time() - 61.0
    assert not store.lease.is_fresh

    store.lease.renewed(boot_time())
    assert store.lease.is_fresh
    assert boot_time() - store.lease.held_since < 1.0


async def ended_long_ago(store: Store, logins: Logins, run: str, parent: str | None = None) -> None:
    """Leave a run with a step that ended a month ago."""
    attributes = msgspec.json.encode(
        {"tenant": "default", "name": "test", "version": 1, "parent": parent}
    )
    await store.start_run(run, "me", attributes, b"{}", RunOptions())
    await store.end_step(run, "me", 1, "step", 1, output=b"1")
    await store.end_run(run, "me", b"1", None)
    await as_admin(
        logins,
        "UPDATE dbos.workflow_status SET created_at = created_at - 2678400000, "
        "updated_at = updated_at - 2678400000 WHERE workflow_uuid = $1",
        run,
    )


async def test_what_ended_long_ago_is_forgotten_with_all_that_belongs_to_it(
    database: Database, database_logins: Logins
) -> None:
    store = await in_office(database, "a")
    await ended_long_ago(store, database_logins, "old")
    await start(store, "running")
    await start(store, "new")
    await store.end_run("new", "me", b"1", None)

    assert await store.forget_runs(30 * 86_400.0) == 1

    left = await as_admin(
        database_logins,
        "SELECT string_agg(DISTINCT workflow_uuid, ' ') FROM ("
        "SELECT workflow_uuid FROM dbos.workflow_status "
        "UNION ALL SELECT workflow_uuid FROM dbos.workflow_input "
        "UNION ALL SELECT workflow_uuid FROM dbos.workflow_output "
        "UNION ALL SELECT workflow_uuid FROM dbos.operation_outputs) AS each",
    )
    assert left == "new running"


async def test_a_child_is_kept_while_its_parent_goes_on(
    database: Database, database_logins: Logins
) -> None:
    store = await in_office(database, "a")
    await start(store, "parent")
    await ended_long_ago(store, database_logins, "child", parent="parent")

    assert await store.forget_runs(30 * 86_400.0) == 0
    await store.end_run("parent", "me", b"1", None)
    assert await store.forget_runs(30 * 86_400.0) == 1


async def as_admin(logins: Logins, sql: str, *arguments: object) -> object:
    connection = await asyncpg.connect(logins.admin)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()
