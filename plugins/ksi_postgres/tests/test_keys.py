"""Keyed requests are done once, whichever daemon they reach and however one of them ends."""

import asyncio
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec import Raw

from ksi_client import AsyncClient, UnixTransport
from ksi_daemon.protocol import Busy, Conflict, Failed, KsiError, Unavailable
from ksi_daemon.testing import DaemonProcess, write_entry_points
from ksi_postgres.database import Database
from ksi_postgres.keys import Keys
from ksi_postgres.logins import Logins

KEY = ("t", "p", None, "k")
SOON_S = 20.0

WORK = textwrap.dedent(
    '''
    """A plugin that notes in a file how often it did something."""
    import asyncio, os
    from pathlib import Path
    from ksi_daemon.event_system import event_handler
    from ksi_daemon.protocol import Busy

    notes = Path(os.environ["KSI_TEST_NOTES"])

    @event_handler("work:do")
    async def do(data: dict) -> dict:
        with notes.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        if data.get("hang"):
            await asyncio.Event().wait()
        if data.get("busy") and len(notes.read_text().splitlines()) == 1:
            raise Busy("later", retry_after_s=0.1)
        return {"done": data, "by": os.getpid()}
    '''
)


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database, "boot-1", is_alone=False, in_doubt_after_s=60.0)


def another(database: Database, **changes: Any) -> Keys:
    options: dict[str, Any] = {"is_alone": False, "in_doubt_after_s": 60.0}
    return Keys(database, "boot-2", **{**options, **changes})


async def test_a_key_is_claimed_by_one_of_many(database: Database) -> None:
    claims = [Keys(database, f"b{n}", is_alone=False, in_doubt_after_s=60.0) for n in range(10)]

    async def claim(keys: Keys) -> object:
        try:
            return await keys.claim(KEY, b"d")
        except Busy as busy:
            return busy.code

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(claim(each)) for each in claims]

    assert sorted(str(each.result()) for each in asked) == ["None"] + ["busy"] * 9


@pytest.mark.parametrize("answer", [Raw(b'{"x":[1,null]}'), Raw(b"null")])
async def test_what_was_answered_is_answered_again(
    keys: Keys, database: Database, answer: Raw
) -> None:
    await keys.claim(KEY, b"d")
    await keys.keep(KEY, answer)

    again = await another(database).claim(KEY, b"d")

    assert isinstance(again, Raw)
    assert bytes(again) == bytes(answer)


async def test_an_error_is_an_answer_too(keys: Keys, database: Database) -> None:
    await keys.claim(KEY, b"d")
    await keys.keep(KEY, Failed("it broke", details={"a": 1}))

    again = await another(database).claim(KEY, b"d")

    assert isinstance(again, KsiError)
    assert (again.code, again.message, again.details) == ("failed", "it broke", {"a": 1})


async def test_a_key_with_another_request_is_a_conflict(keys: Keys) -> None:
    await keys.claim(KEY, b"d")

    with pytest.raises(Conflict, match="another request"):
        await keys.claim(KEY, b"e")


async def test_a_key_given_back_is_free_and_an_answered_one_stays(
    keys: Keys, database: Database
) -> None:
    await keys.claim(KEY, b"d")
    await keys.release(KEY)
    assert await another(database).claim(KEY, b"e") is None
    await keys.keep(KEY, Raw(b"1"))

    await keys.release(KEY)

    assert await keys.claim(KEY, b"e") is not None


@pytest.mark.parametrize(
    "key",
    [("u", "p", None, "k"), ("t", "q", None, "k"), ("t", "p", "x", "k"), ("t", "p", None, "l")],
)
async def test_keys_of_others_are_other_keys(
    keys: Keys, key: tuple[str, str, str | None, str]
) -> None:
    await keys.claim(KEY, b"d")

    assert await keys.claim(key, b"e") is None


async def test_what_an_ended_daemon_left_is_in_doubt_and_not_done_again(
    keys: Keys, database: Database
) -> None:
    await keys.claim(KEY, b"d")

    with pytest.raises(Busy):
        await another(database).claim(KEY, b"d")
    for after in (another(database, in_doubt_after_s=0.0), another(database, is_alone=True)):
        with pytest.raises(Conflict, match="whether it was done is not known") as caught:
            await after.claim(KEY, b"d")
        assert caught.value.details is not None
        assert caught.value.details["in_doubt"] is True


async def test_keys_are_forgotten_after_a_day(
    keys: Keys, database: Database, database_logins: Logins
) -> None:
    await keys.claim(KEY, b"d")
    await keys.claim(("t", "p", None, "young"), b"d")
    admin = await asyncpg.connect(database_logins.admin)
    await admin.execute(
        "UPDATE ksi_postgres.idempotency_key SET began_at = began_at - interval '25 h' "
        "WHERE key = 'k'"
    )

    await keys.forget()

    left = await admin.fetch("SELECT key FROM ksi_postgres.idempotency_key")
    await admin.close()
    assert [row["key"] for row in left] == ["young"]


async def test_without_postgres_nothing_is_claimed(database: Database, keys: Keys) -> None:
    await database.close()

    with pytest.raises(Unavailable) as caught:
        await keys.claim(KEY, b"d")

    assert caught.value.retry_after_s is not None


# -- whole daemons --------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def daemons(
    ksi_home: Path, tmp_path: Path, notes: Path, database_logins: Logins
) -> Iterator[list[DaemonProcess]]:
    """Two daemons on one store, with a plugin that works."""
    (tmp_path / "work_under_test.py").write_text(WORK, encoding="utf-8")
    write_entry_points(tmp_path, work="work_under_test")
    environ = {
        "PYTHONPATH": str(tmp_path),
        "KSI_TEST_NOTES": str(notes),
        "KSI_DATABASE_URL": database_logins.admin,
        "KSI_DATABASE_READER_URL": database_logins.reader or "",
    }
    made = []
    for name in ("one", "two"):
        (ksi_home / name).mkdir(mode=0o700)
        made.append(DaemonProcess(ksi_home / name, environ=environ))
    for each in made:
        each.start("--set", 'daemon.plugins=["system","postgres","work"]')
    yield made
    for each in made:
        each.stop()


async def ask(daemon: DaemonProcess, **data: bool) -> Any:
    async with AsyncClient(UnixTransport(daemon.socket)) as client:
        return await client.request("work:do", data, idempotency_key="k", timeout_s=SOON_S)


def times(notes: Path) -> int:
    return len(notes.read_text(encoding="utf-8").splitlines()) if notes.exists() else 0


async def test_two_daemons_do_a_keyed_request_once_also_after_a_kill(
    daemons: list[DaemonProcess], notes: Path
) -> None:
    first = await ask(daemons[0])
    second = await ask(daemons[1])
    daemons[0].kill()
    daemons[0].start("--set", 'daemon.plugins=["system","postgres","work"]')
    third = await ask(daemons[0])

    assert first == second == third
    assert times(notes) == 1


async def test_a_kill_in_the_middle_is_never_followed_by_a_second_time(
    daemons: list[DaemonProcess], notes: Path, database: Database
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(_code_of(ask(daemons[0], hang=True)))
        async with asyncio.timeout(SOON_S):
            while not times(notes):
                await database.fetchval("SELECT 1")
        daemons[0].kill()
        daemons[0].start("--set", 'daemon.plugins=["system","postgres","work"]')

    again = [await _code_of(ask(each, hang=True)) for each in daemons]

    assert asked.result() in ("busy", "unavailable")  # it may have asked again by itself
    assert again == ["busy", "busy"]
    assert times(notes) == 1


async def test_an_error_to_be_tried_again_is_tried_by_whoever_is_asked_next(
    daemons: list[DaemonProcess], notes: Path
) -> None:
    assert await _code_of(ask(daemons[0], busy=True)) == "busy"

    assert (await ask(daemons[1], busy=True))["done"] == {"busy": True}
    assert times(notes) == 2


async def _code_of(asked: Any) -> str:
    try:
        await asked
    except KsiError as error:
        return error.code
    return "done"
