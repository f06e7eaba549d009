"""Uploads: pieces in any order, durable, checked, bounded, resumed after a kill."""

import asyncio
import base64
import hashlib
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_client import AsyncClient, Busy, Conflict, InvalidData, NotFound, Unavailable
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import installed_plugins
from ksi_memory.events import ContentUpload
from ksi_memory.loading.uploads import SQL, Uploads
from ksi_memory.settings import MemorySettings
from ksi_memory.tests.loading import NEEDED, item, load
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet

NOTE = b"# Rent\nIt is due in May.\n"


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[Any]:
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["memory.embedder=none", "memory.max_open_uploads=2", "memory.max_upload_bytes=1000"]


def beginning(data: bytes, upload_id: str = "u1", name: str = "rent.md") -> dict[str, Any]:
    return {
        "upload_id": upload_id,
        "name": name,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def piece(data: bytes, start: int, end: int, upload_id: str = "u1") -> dict[str, Any]:
    shown = base64.b64encode(data[start:end]).decode()
    return {"upload_id": upload_id, "offset": start, "data": shown}


async def test_a_file_is_uploaded_in_pieces_and_remembered(client: AsyncClient) -> None:
    begun = await client.request("content:upload", beginning(NOTE))
    late = await client.request("content:upload", piece(NOTE, 15, len(NOTE)))
    with pytest.raises(Conflict, match="not complete: 0 of 25 bytes"):
        await load(client, upload_id="u1")
    early = await client.request("content:upload", piece(NOTE, 0, 10))
    # What is there stays; of what overlaps, the rest is kept.
    repeated = await client.request("content:upload", {**piece(NOTE, 0, 10), "data": "AAAA"})
    whole = await client.request("content:upload", piece(NOTE, 5, 20))
    loaded, progress = await load(client, upload_id="u1")
    again, _ = await load(client, upload_id="u1")

    assert (begun["received_bytes"], begun["is_complete"]) == (0, False)
    assert (late["received_bytes"], early["received_bytes"]) == (0, 10)
    assert repeated["received_bytes"] == 10
    assert (whole["received_bytes"], whole["is_complete"]) == (25, True)
    assert (loaded.files, loaded.inserted, [each.path for each in progress]) == (1, 3, ["rent.md"])
    assert (again.unchanged_files, again.inserted) == (1, 0)
    assert (await item(client, "rent.md#0")).body == NOTE.decode()
    assert "path" not in (await item(client, "rent.md", "files")).attributes


async def test_content_that_is_known_is_told_by_its_key(client: AsyncClient) -> None:
    request = {**beginning(NOTE), "data": base64.b64encode(NOTE).decode()}
    first = await client.request("content:upload", request)
    await load(client, upload_id="u1")

    second = await client.request("content:upload", beginning(NOTE, "u2", "copy.md"))

    assert "known_as" not in first
    assert second["known_as"] == "rent.md"


async def test_an_upload_that_is_not_what_was_announced_is_gone(client: AsyncClient) -> None:
    wrong = {**beginning(NOTE), "sha256": "0" * 64, "data": base64.b64encode(NOTE).decode()}

    with pytest.raises(InvalidData, match="its sha256 differs"):
        await client.request("content:upload", wrong)

    with pytest.raises(NotFound, match="there is no upload u1"):
        await client.request("content:upload", {"upload_id": "u1"})


async def test_uploads_are_bounded(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match=r"memory\.max_upload_bytes"):
        await client.request("content:upload", beginning(b"x" * 1001))
    for upload_id in ("u1", "u2"):
        await client.request("content:upload", beginning(NOTE, upload_id))
    with pytest.raises(Busy, match=r"memory\.max_open_uploads"):
        await client.request("content:upload", beginning(NOTE, "u3"))
    with pytest.raises(InvalidData, match="reaches past"):
        await client.request("content:upload", piece(NOTE * 2, 20, 40))
    with pytest.raises(Conflict, match="another file"):
        await client.request("content:upload", beginning(NOTE + b"x"))
    with pytest.raises(NotFound):
        await client.request("content:upload", piece(NOTE, 0, 5, "nobody"))


async def test_nobody_sees_another_user_s_upload_or_file(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    users = {}
    for user in ("ada", "bob"):
        grants = Grants(call=("content:*", "memory:*"))
        request = {"name": user, "grants": grants, "user": user, "ttl_s": 60}
        made = await client.request("token:create", request)
        users[user] = await connect(token=made["token"])
    secret = {**beginning(NOTE), "data": base64.b64encode(NOTE).decode()}
    await users["ada"].request("content:upload", secret)

    with pytest.raises(NotFound):
        await users["bob"].request("content:upload", {"upload_id": "u1"})
    with pytest.raises(NotFound):
        await load(users["bob"], upload_id="u1")
    await load(users["ada"], upload_id="u1")
    own = await users["bob"].request("content:upload", beginning(NOTE, "u9"))

    assert (await item(users["ada"], "rent.md#0")).owner == "ada"
    assert "known_as" not in own
    with pytest.raises(NotFound):
        await item(users["bob"], "rent.md#0")


async def test_an_empty_file_is_complete_at_once_and_told_to_be_empty(client: AsyncClient) -> None:
    told = await client.request("content:upload", beginning(b""))
    loaded, progress = await load(client, upload_id="u1")

    assert told["is_complete"]
    assert [each.skipped for each in progress] == ["it is empty"]
    assert loaded.skipped_files == 1


async def test_what_nobody_goes_on_with_expires(database: Database) -> None:
    uploads = Uploads(database, MemorySettings(upload_keep_s=60))
    whose = Whose("default")
    await uploads.put(whose, ContentUpload(**beginning(NOTE)))

    assert await uploads.expire() == 0
    assert await database.fetchval(SQL["expire"], timedelta(0)) == 1
    with pytest.raises(NotFound):
        await uploads.put(whose, ContentUpload(upload_id="u1"))


@given(
    data=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 30)), max_size=15),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_pieces_of_any_size_and_order_make_up_the_file(
    database: Database, data: bytes, cuts: list[tuple[int, int]]
) -> None:
    uploads = Uploads(database, MemorySettings(max_open_uploads=10_000))
    whose, upload_id = Whose("default"), str(uuid.uuid4())
    await uploads.put(whose, ContentUpload(**beginning(data, upload_id)))
    there: set[int] = set()

    for start, length in [*((s % len(data), n) for s, n in cuts), (0, len(data))]:
        part = data[start : start + length]
        told = await uploads.put(whose, ContentUpload(upload_id=upload_id, offset=start, data=part))
        there |= set(range(start, start + len(part)))
        gap = next(at for at in range(len(data) + 1) if at not in there)
        assert told.received_bytes == gap

    assert (await uploads.read(whose, upload_id)).data == data


async def ask(client: AsyncClient, event: str, data: Any) -> Any:
    while True:
        try:
            return await client.request(event, data)
        except (Unavailable, Busy, NotFound) as error:
            if isinstance(error, NotFound) and "nothing answers" not in error.message:
                raise
            await asyncio.sleep(0.1)


async def test_an_upload_goes_on_after_its_daemon_was_killed(database_logins: Logins) -> None:
    plugins = "daemon.plugins=" + ",".join(("system", *NEEDED))
    fleet = Fleet(database_logins, plugins, "memory.embedder=none")
    data = b"".join(b"# Part %d\ntext %d\n" % (number, number) for number in range(3000))
    step = 10_000
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            await ask(client, "content:upload", beginning(data))
            for offset in range(0, 40_000, step):
                told = await ask(client, "content:upload", piece(data, offset, offset + step))
            assert told["received_bytes"] == 40_000
        await asyncio.to_thread(daemon.kill)
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            told = await ask(client, "content:upload", {"upload_id": "u1"})
            assert told["received_bytes"] == 40_000
            for offset in range(told["received_bytes"], len(data), step):
                told = await ask(client, "content:upload", piece(data, offset, offset + step))
            assert told["is_complete"]
            # Killed in the middle of remembering, it is remembered whole by whoever asks again.
            chunks = client.stream("content:load", {"upload_id": "u1"})
            loading = asyncio.create_task(anext(chunks))  # noqa: TID251  it is to be cut off
            await fleet.until(
                "SELECT count(*) > 0 FROM pg_stat_activity "
                "WHERE query LIKE '%upsert_items%' AND pid <> pg_backend_pid()"
            )
            await asyncio.to_thread(daemon.kill)
            with pytest.raises((Unavailable, StopAsyncIteration)):
                await loading
        found = await fleet.query("SELECT count(*) FROM ksi_memory.item")
        assert found[0][0] in (0, 3003)
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            await ask(client, "content:upload", {"upload_id": "u1"})
            await load(client, upload_id="u1")
            found = await fleet.query(
                "SELECT kind, count(*) FROM ksi_memory.item WHERE valid_to IS NULL "
                "GROUP BY kind ORDER BY kind"
            )
            assert [tuple(row) for row in found] == [
                ("files", 1),
                ("moments", 1),
                ("ontologies", 3001),
            ]
