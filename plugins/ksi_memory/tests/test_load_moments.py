"""A load that changes something leaves one moment that tells of it."""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, NotFound
from ksi_daemon.testing import installed_plugins
from ksi_memory import events as e
from ksi_memory.loading.moments import MAX_GONE, MAX_LOADED, Came, LoadMoment
from ksi_memory.tests.loading import NEEDED, item, load, skipped

BEGAN = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[Any]:
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["memory.embedder=none"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with two notes."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "flat.md").write_text("# Flat\nThree rooms.\n")
    (folder / "rent.md").write_text("# Rent\nOn the first.\n")
    return folder


async def moments(client: AsyncClient, user: str | None = None) -> list[e.Item]:
    """Return the moments of loads, the oldest first."""
    context = {} if user is None else {"user": user}
    listed = await client.request("memory:moments", {"type": "upload"}, context=context)
    return [
        await client.request("memory:get", {"id": each["id"]}, context=context, result_type=e.Item)
        for each in reversed(listed["items"])
    ]


async def forget(client: AsyncClient, key: str, table: str) -> Any:
    return await client.request("memory:forget", {"id": (await item(client, key, table)).id})


def of(root: str) -> LoadMoment:
    return LoadMoment(root=root, owner="", began_at=BEGAN)


def body(moment: LoadMoment) -> str | None:
    return moment.item().body


async def test_a_directory_leaves_one_moment_that_names_its_files(
    client: AsyncClient, folder: Path
) -> None:
    before = datetime.now(UTC)
    await load(client, folder)

    (moment,) = await moments(client)

    assert moment.title == "Loaded 2 files from notes/"
    assert moment.body == "Loaded 2 files from notes/: flat.md, rent.md; 2 new."
    assert (moment.origin, moment.owner, moment.session) == ("derived", "", "notes")
    assert moment.starts_at is not None
    assert moment.ends_at is not None
    assert before <= moment.starts_at <= moment.ends_at <= datetime.now(UTC)
    files = [(await item(client, f"notes/{name}", "files")).id for name in ("flat.md", "rent.md")]
    assert [(each.item, each.version) for each in moment.sources] == [(id_, 1) for id_ in files]


async def test_where_nothing_has_changed_nothing_is_told(client: AsyncClient, folder: Path) -> None:
    await load(client, folder)
    await load(client, folder)
    await load(client, folder, again=True)
    await load(client, folder / "rent.md", name="notes/rent.md")
    (folder / "empty.md").write_text("")
    _, progress = await load(client, folder)

    assert skipped(progress) == {"notes/empty.md": "it is empty"}
    assert len(await moments(client)) == 1


async def test_what_has_changed_and_what_went_away_is_told(
    client: AsyncClient, folder: Path
) -> None:
    await load(client, folder)
    (folder / "rent.md").write_text("# Rent\nOn the third.\n")
    (folder / "tax.md").write_text("# Tax\nIn May.\n")
    (folder / "flat.md").unlink()
    await load(client, folder)
    (folder / "tax.md").unlink()
    await load(client, folder)

    first, second, third = await moments(client)

    assert first.version == 1
    assert second.body == (
        "Loaded 2 files from notes/: rent.md, tax.md; 1 new, 1 changed, 1 ended (flat.md)."
    )
    assert third.body == "1 file of notes/ ended: tax.md."
    assert third.sources[0].item is not None


async def test_a_load_of_several_transactions_is_one_moment(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(450):
        (folder / f"{number:03}.md").write_text(f"# Number {number}\n")
    await load(client, folder)

    (moment,) = await moments(client)

    assert moment.attributes["new"] == 450
    assert "000.md, 001.md," in moment.body
    assert moment.body.endswith("and 442 more; 450 new.")
    assert len(moment.sources) == MAX_LOADED
    assert moment.attributes["files"] == [f"many/{n:03}.md" for n in range(MAX_LOADED)]


async def test_files_that_are_refused_are_not_in_it(client: AsyncClient, folder: Path) -> None:
    (folder / "bad.md").write_text("---\n" + f"x: {'y' * 100_000}\n" + "---\n# Bad\n")
    _, progress = await load(client, folder)

    (moment,) = await moments(client)

    assert list(skipped(progress)) == ["notes/bad.md"]
    assert moment.body == "Loaded 2 files from notes/: flat.md, rent.md; 2 new."


async def test_what_a_user_uploads_is_told_to_that_user_alone(client: AsyncClient) -> None:
    data, context = b"# Rent\nOn the first.\n", {"user": "anna"}
    begin = e.ContentUpload(
        upload_id="u", name="rent.md", size_bytes=len(data), data=data,
        sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    await client.request("content:upload", begin, context=context)
    for _ in range(2):
        async for _chunk in client.stream("content:load", {"upload_id": "u"}, context=context):
            pass

    (moment,) = await moments(client, "anna")

    assert (moment.owner, moment.body) == ("anna", "Loaded rent.md, which is new.")
    assert await moments(client, "ben") == []


async def test_it_is_found_by_a_search_and_on_the_timeline(
    client: AsyncClient, folder: Path
) -> None:
    await load(client, folder)
    (moment,) = await moments(client)

    for question in ("TIMELINE", "TIMELINE notes", 'SEARCH "files loaded from notes" FROM moments'):
        found = await client.request("memory:query", {"text": question})

        assert [each["key"] for each in found["results"]] == [moment.key], question


async def test_it_goes_with_a_file_that_is_forgotten(client: AsyncClient, folder: Path) -> None:
    await load(client, folder)
    (folder / "flat.md").write_text("# Flat\nFour rooms.\n")
    await load(client, folder)
    (first, second) = await moments(client)

    gone = await forget(client, "notes/rent.md", "files")
    left = await moments(client)
    await load(client, folder)
    exported = [str(chunk) async for chunk in client.stream("memory:export", {})]

    assert first.id in gone["ids"]
    assert second.id not in gone["ids"]
    assert "rewritten" not in gone
    assert [each.key for each in left] == [second.key]
    assert [each.key for each in await moments(client)] == [second.key]
    assert "flat.md" in "".join(exported)
    assert "rent.md" not in "".join(exported)


async def test_what_was_forgotten_and_is_loaded_all_the_same_is_told_again(
    client: AsyncClient, folder: Path
) -> None:
    await load(client, folder / "rent.md")
    await forget(client, "rent.md", "files")
    await load(client, folder / "rent.md")
    between = await moments(client)
    await load(client, folder / "rent.md", even_forgotten=True)

    assert between == []
    assert [each.body for each in await moments(client)] == ["Loaded rent.md, which is new."]


async def test_a_moment_that_is_forgotten_takes_no_file_along(
    client: AsyncClient, folder: Path
) -> None:
    await load(client, folder)
    (moment,) = await moments(client)

    gone = await client.request("memory:forget", {"id": moment.id})
    await load(client, folder)

    assert gone["ids"] == [moment.id]
    assert (await item(client, "notes/rent.md", "files")).version == 1
    with pytest.raises(NotFound):
        await item(client, moment.key)


def test_a_file_alone_is_told_in_a_sentence() -> None:
    assert body(of("rent.md").with_loaded([("rent.md", "new")])) == "Loaded rent.md, which is new."
    assert (
        body(of("rent.md").with_loaded([("rent.md", "changed")]))
        == "Loaded rent.md, which has changed."
    )
    assert body(of("rent.md").with_loaded([("rent.md", "again")])) == "Loaded rent.md."


def test_a_text_is_bounded_whatever_names_there_are() -> None:
    long = "long and\n" * 100
    keys = [f"docs/{number:04} {long}.md" for number in range(3000)]
    files: list[tuple[str, Came]] = [(key, "new") for key in keys]

    made = of("docs/").with_loaded(files[:1500]).with_loaded(files[1500:]).with_gone(keys).item()

    assert made.body is not None
    assert len(made.body) < 1600
    assert "\n" not in made.body
    assert made.body.startswith("Loaded 3,000 files from docs/: …")


def test_whatever_file_a_text_names_is_a_source() -> None:
    loaded, gone = [f"docs/{n}.md" for n in range(100)], [f"docs/{n}.txt" for n in range(100)]

    made = of("docs/").with_loaded([(key, "new") for key in loaded]).with_gone(gone).item()

    assert len(made.sources) == MAX_LOADED + MAX_GONE
    assert made.attributes is not None
    assert made.body is not None
    listed = re.findall(r"\d+\.(?:md|txt)", made.body)
    named = [key for key in (*loaded, *gone) if key.removeprefix("docs/") in listed]
    assert len(named) == 16
    assert set(named) <= set(made.attributes["files"])


def test_each_load_has_a_key_of_its_own_that_fits() -> None:
    key = of("n" * 900 + "ü" * 900).with_gone(["a"]).item().key

    assert key.endswith("@2026-03-01T09:30:00.000000Z")
    assert len(key.encode()) < 300
    assert of("a").item().key == of("a").item().key != of("b").item().key
