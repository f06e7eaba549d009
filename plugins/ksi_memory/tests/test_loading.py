"""Files and directories become documents, chunks, rows and edges; whole, or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, Denied, InvalidData, NotFound
from ksi_daemon.daemon import Daemon
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import installed_plugins
from ksi_memory import events as e
from ksi_memory.tests.loading import NEEDED, item, load, skipped, told_new
from ksi_postgres.database import Database

NOTE = """---
title: The rent
description: What we pay, and when.
author: Ada Lovelace
tags: [home, money]
date: 2024-05-03
project: "[[flat]]"
weight: 2
---
# Rent

It is due on the first, see [the flat](flat.md) and [[people/bob|Bob]].

## Raises

There was one in 2023, says [the law](https://example.org/law).

```python
[[no link]]
```
"""


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[Any]:
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["memory.embedder=none"]


async def listed(client: AsyncClient, table: str) -> list[Any]:
    """Return what a table holds, by key."""
    found = await client.request("memory:list", {"table": table})
    return list(found["items"])


async def test_a_markdown_file_becomes_a_document_its_chunks_and_edges(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "rent.md").write_text(NOTE)
    (folder / "flat.md").write_text("# Flat\nThree rooms.\n")

    loaded, progress = await load(client, folder)

    assert (loaded.files, loaded.skipped_files, loaded.problems) == (2, 0, ())
    assert [each.path for each in progress] == ["notes/flat.md", "notes/rent.md"]
    assert [(each.files_done, each.files_found) for each in progress] == [(1, 2), (2, 2)]
    document = await item(client, "notes/rent.md", "ontologies")
    assert document.title == "The rent"
    assert document.body == "What we pay, and when."
    assert document.persons == ("ada lovelace",)
    assert document.starts_at is not None
    assert document.starts_at.isoformat() == "2024-05-03T00:00:00+00:00"
    assert document.attributes["tags"] == ["home", "money"]
    assert document.attributes["weight"] == 2
    assert {(each.relation, each.to) for each in document.edges} == {
        ("project", "notes/flat.md"),
        ("links_to", "notes/flat.md"),
        ("links_to", "people/bob"),
        ("links_to", "https://example.org/law"),
        ("has_section", "notes/rent.md#0"),
        ("has_section", "notes/rent.md#1"),
    }
    chunk = await item(client, "notes/rent.md#1", "ontologies")
    assert (chunk.session, chunk.place) == ("notes/rent.md", 1)
    assert chunk.attributes["headings"] == ["Rent", "Raises"]
    assert NOTE[chunk.attributes["offset"] :].startswith("## Raises")
    assert chunk.body == NOTE[chunk.attributes["offset"] :]
    file = await item(client, "notes/rent.md", "files")
    assert file.attributes["media_type"] == "text/markdown"
    assert file.attributes["size_bytes"] == len(NOTE)
    assert document.sources[0].item == file.id
    assert chunk.sources[0].item == document.id
    assert set(loaded.dangling) == {"people/bob", "https://example.org/law"}


async def test_rows_go_to_the_table_that_they_name_or_that_is_asked_for(
    client: AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "people.yaml").write_text(
        "- key: ada\n  title: Ada\n  born: 1815-12-10\n  edges: {knows: [charles], wrote: notes}\n"
        "- name: Charles\n  text: Built engines.\n  starts_at: 1791-12-26\n"
        "- title: nobody\n"
        "- key: bad\n  starts_at: 2024-02-30\n"
        "- just a text\n"
    )
    (tmp_path / "things.jsonl").write_text(
        '{"table": "entities", "key": "engine", "body": "of brass"}\n'
        "no json\n"
        '{"table": "facts", "key": "tea", "body": "at five"}\n'
    )
    (tmp_path / "more.json").write_text('{"facts": [{"key": "cake", "body": "at four"}]}')
    (tmp_path / "package.json").write_text('{"name": "not a row", "version": "1"}')

    people, _ = await load(client, tmp_path / "people.yaml", table="entities")
    things, _ = await load(client, tmp_path / "things.jsonl", table="entities")
    more, _ = await load(client, tmp_path / "more.json")
    package, _ = await load(client, tmp_path / "package.json")

    assert people.inserted == 3  # with the file
    assert [(each.place, each.key, each.why[:30]) for each in people.problems] == [
        (2, "people.yaml: row 2", "it has no key: name it in 'key"),
        (3, "people.yaml: bad", "starts_at: 2024-02-30 is no ti"),
        (4, "people.yaml: row 4", "it is no row: a row has fields"),
    ]
    ada = await item(client, "ada", "entities")
    assert ada.attributes == {"born": "1815-12-10"}
    assert {(each.relation, each.to) for each in ada.edges} == {
        ("knows", "charles"),
        ("wrote", "notes"),
    }
    charles = await item(client, "charles", "entities")
    assert (charles.title, charles.body) == ("Charles", "Built engines.")
    assert [each.why[:22] for each in things.problems] == ["line 2: it is no JSON:"]
    assert (await item(client, "tea", "entities")).body == "at five"
    assert (await item(client, "cake", "facts")).body == "at four"
    assert more.problems == ()
    assert (await item(client, "package.json", "resources")).attributes["chunks"] == 1
    assert package.problems == ()


async def test_only_what_changed_is_read_again_and_what_a_file_lost_ends(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# One\nfirst\n# Two\nsecond\n# Three\nthird\n")
    (folder / "b.md").write_text("# B\nsame\n")
    await load(client, folder)

    same, _ = await load(client, folder)
    again, _ = await load(client, folder, again=True)
    (folder / "a.md").write_text("# One\nfirst\n# Two\nchanged\n")
    changed, _ = await load(client, folder)
    other, _ = await load(client, folder, chunk_characters=100)

    assert (same.unchanged_files, same.inserted, same.updated) == (2, 0, 0)
    assert (again.unchanged_files, again.inserted, again.updated) == (0, 0, 0)
    assert again.unchanged == 8
    assert (changed.unchanged_files, changed.ended) == (1, 1)
    assert other.unchanged_files == 0
    with pytest.raises(NotFound):
        await item(client, "notes/a.md#2")
    assert (await item(client, "notes/a.md#1")).version == 2


async def test_a_row_that_a_file_has_no_more_ends(client: AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / "people"
    folder.mkdir()
    file, other = folder / "a.jsonl", folder / "b.yaml"
    row = '{{"table": "entities", "key": "{}", "body": "{}"}}\n'.format
    file.write_text("".join(row(key, "x") for key in ("ada", "bob", "cleo", "dan", "eve")))
    other.write_text("entities:\n- {key: bob, body: x}\n")
    first, _ = await load(client, folder)
    await client.request("memory:pin", {"key": "cleo"})
    await client.request("memory:correct", {"key": "dan", "body": "rather this"})
    source = {"kind": "item", "item": (await item(client, "people/a.jsonl", "files")).id}
    noted = {"key": "note", "body": "of that file", "sources": [source]}
    await client.request("memory:upsert", {"table": "facts", "items": [noted]})

    file.write_text(row("eve", "y") + "no json\n")
    broken, _ = await load(client, folder)
    file.write_text(row("eve", "y"))
    fewer, _ = await load(client, folder, again=True)
    left = await client.request("memory:list", {"table": "entities"})
    file.unlink()
    gone, _ = await load(client, folder)
    at_last = await client.request("memory:list", {"table": "entities"})

    assert first.problems == ()
    assert [each.why[:22] for each in broken.problems] == ["line 2: it is no JSON:"]
    assert broken.ended == 0  # the line may be any of them
    assert fewer.ended == 1
    assert [each["key"] for each in left["items"]] == ["bob", "cleo", "dan", "eve"]
    assert gone.ended == 2
    assert [each["key"] for each in at_last["items"]] == ["bob", "cleo", "dan"]
    assert (await item(client, "note")).body == "of that file"


async def test_what_a_file_was_before_ends_with_what_it_becomes(
    client: AsyncClient, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("- name: ada\n- name: bob\n")
    await load(client, file, table="entities")

    as_text, _ = await load(client, file, table="ontologies")
    text = [each["key"] for each in await listed(client, "ontologies")]
    moved, _ = await load(client, file, table="resources")
    as_rows, _ = await load(client, file, table="entities")

    assert as_text.ended == 2
    assert text == ["a.yaml", "a.yaml#0"]
    assert moved.ended == 2
    assert await listed(client, "ontologies") == []
    assert as_rows.ended == 2
    assert await listed(client, "resources") == []
    assert [each["key"] for each in await listed(client, "entities")] == ["ada", "bob"]
    assert len(await listed(client, "files")) == 1


async def test_a_row_that_is_refused_takes_no_other_along(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        f"entities:\n- {{key: ada}}\n- {{key: {'k' * 10_000}}}\n- {{key: big, x: {'y' * 70_000}}}\n"
        "- {key: ADA}\n- {key: bob}\n"
    )
    (folder / "b.yaml").write_text("entities:\n- {key: bob, body: later}\n")
    (folder / "c.yaml").write_text("nonsense:\n- {key: x}\n")
    (folder / "d.md").write_text("# D\n")

    loaded, progress = await load(client, folder)

    assert [(each.key[:20], each.why[:40]) for each in loaded.problems if "a.y" in each.key] == [
        ("rows/a.yaml: kkkkkkk", "the key has 10,000 bytes; at most 1,000 a"[:40]),
        ("rows/a.yaml: big", "its attributes have 70,008 bytes as JSON;"[:40]),
        ("rows/a.yaml: ADA", "it is a duplicate of number 0 of the same"[:40]),
    ]
    assert skipped(progress).keys() == {"rows/c.yaml"}
    assert "nonsense" in skipped(progress)["rows/c.yaml"]
    assert [each["key"] for each in await listed(client, "entities")] == ["ada", "bob"]
    assert (await item(client, "bob")).body == "later"
    assert (await item(client, "rows/d.md", "ontologies")).title == "D"


async def test_a_file_that_went_away_ends_with_all_its_parts(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# A\nalpha\n")
    (folder / "deep" / "b.md").write_text("# B\nbeta\n")
    (folder / "deep" / "c.md").write_text("# C\ngamma\n")
    await load(client, folder)
    (folder / "deep" / "b.md").unlink()
    (folder / ".ksiignore").write_text("c.md\n")

    loaded, _ = await load(client, folder)

    assert loaded.gone == ("notes/deep/b.md", "notes/deep/c.md")
    assert loaded.ended == 6
    for table in ("files", "ontologies"):
        with pytest.raises(NotFound):
            await item(client, "notes/deep/b.md", table)
    assert (await item(client, "notes/a.md", "ontologies")).version == 1
    (folder / "deep" / "b.md").write_text("# B\nbeta\n")
    back, _ = await load(client, folder)
    assert (back.inserted + back.updated, back.gone) == (3, ())


async def test_a_directory_is_ignored_where_git_would_and_no_link_leads_out(
    client: AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "secret.md").write_text("# Secret\n")
    folder = tmp_path / "repo"
    (folder / "build" / "deep").mkdir(parents=True)
    (folder / "src").mkdir()
    (folder / ".git").mkdir()
    (folder / ".git" / "x.md").write_text("no")
    (folder / ".env").write_text("PASSWORD=x")
    (folder / ".gitignore").write_text("build/\n*.log\n!keep.log\n" + "*a" * 50 + "b\n")
    (folder / "src" / ".gitignore").write_text("private.*\n")
    (folder / "src" / ".ksiignore").write_text("!private.md\n")
    for name in ("build/deep/x.md", "a.log", "keep.log", "src/private.py", "src/private.md",
                 "src/main.py"):  # fmt: skip
        (folder / name).write_text("x = 1\n")
    (folder / "loop").symlink_to(folder)
    (folder / "out.md").symlink_to(tmp_path / "secret.md")
    os.mkfifo(folder / "pipe.md")

    loaded, progress = await load(client, folder)

    assert [each.path for each in progress if not each.skipped] == [
        "repo/keep.log",
        "repo/src/main.py",
        "repo/src/private.md",
    ]
    assert skipped(progress) == {
        "repo/loop": "it is a link, which is not followed",
        "repo/out.md": "it is a link, which is not followed",
        "repo/pipe.md": "it is a pipe",
    }
    assert {each.key for each in loaded.problems} == set(skipped(progress))


async def test_bad_files_are_told_of_and_the_others_remembered(
    client: AsyncClient, database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    with (folder / "huge.md").open("wb") as huge:
        huge.truncate(2 * 1024**3)
    (folder / "binary.md").write_bytes(b"\x7fELF\x00\x01\x02" * 100)
    (folder / "latin.md").write_bytes("# Müller\n".encode("latin-1"))
    (folder / "front.md").write_text("---\ntitle: [unclosed\n---\n# x\n")
    (folder / "date.md").write_text("---\ndate: 2023-02-29\n---\n# x\n")
    (folder / "deep.md").write_text("---\nx: " + "[" * 100_000 + "\n---\n# x\n")
    (folder / "bomb.md").write_text(
        "---\n"
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n"
            for p, n in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "---\n# x\n"
    )
    (folder / "empty.md").write_text("")
    (folder / "blank.md").write_text(" \n\n")
    (folder / "fake.pdf").write_text("I am no PDF.")
    (folder / "fake.docx").write_bytes(b"PK\x03\x04 no zip")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "nul.txt").write_text("a\0b")
    (folder / ("n" * 240 + ".md")).write_text("# fine\n")
    deep = folder
    for _ in range(5):
        deep = deep / ("d" * 200)
    deep.mkdir(parents=True)
    (deep / "long.md").write_text("# too long a key\n")
    (folder / "emoji 👩‍👩‍👧.md").write_text("# שלום 👩‍👩‍👧\nمرحبا بالعالم\n")
    os.close(os.open(os.fsencode(folder) + b"/\xff\xfe.md", os.O_CREAT | os.O_WRONLY))
    unreadable = folder / "unreadable.md"
    unreadable.write_text("# x\n")
    if os.getuid():
        unreadable.chmod(0)
    else:
        unreadable.unlink()

    loaded, progress = await load(client, folder)

    why = {path.removeprefix("bad/"): reason for path, reason in skipped(progress).items()}
    assert "memory.max_file_bytes" in why.pop("huge.md")
    assert why.pop("binary.md") == "it is no text: its character 4 is a zero"
    assert why.pop("latin.md") == "it is not UTF-8: its byte 3 is 0xfc; convert it first"
    assert "front matter: it is no YAML: line" in why.pop("front.md")
    assert "2023-02-29 is no time that exists" in why.pop("date.md")
    assert "nested more than 50 deep" in why.pop("deep.md")
    assert "aliases come to more" in why.pop("bomb.md")
    assert why.pop("empty.md") == "it is empty"
    assert why.pop("blank.md") == "it holds no text"
    assert why.pop("fake.pdf") == "it is no PDF: it does not begin as one"
    assert why.pop("fake.docx").startswith("it is no DOCX: ")
    assert why.pop("picture.png").startswith("image/png is not read")
    assert "zero" in why.pop("nul.txt")
    assert "its name is not UTF-8" in why.pop("��.md")
    assert "its key would have" in why.pop("/".join(["d" * 200] * 5) + "/long.md")
    why.pop("unreadable.md", None)
    assert why == {}
    assert loaded.skipped_files == len(skipped(progress))
    assert (await item(client, "bad/emoji 👩‍👩‍👧.md", "ontologies")).title == "שלום 👩‍👩‍👧"
    kept = await client.request("memory:list", {"table": "files"})
    assert len(kept["items"]) == 2  # nothing of the others is half-stored
    everything = await client.request("memory:list", {"table": "ontologies"})
    assert len(everything["items"]) == 4


async def test_a_document_is_stored_whole_or_not_at_all(
    client: AsyncClient, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "long.md"
    file.write_text("".join(f"# Part {n}\ntext of part {n}\n" for n in range(1500)))
    other = tmp_path / "wide.md"
    other.write_text("---\n" + f"x: {'y' * 100_000}\n" + "---\n# W\n" + "z " * 5000)

    whole, _ = await load(client, file)
    refused, progress = await load(client, other)

    assert whole.inserted == 1502
    assert refused.inserted == 0
    assert "memory.max_attributes_bytes" in skipped(progress)["wide.md"]
    listed = await client.request("memory:list", {"table": "files"})
    assert [each["key"] for each in listed["items"]] == ["long.md"]


async def test_files_that_are_refused_take_no_other_of_their_batch_along(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.md").write_text(f"# Number {number}\n")
    (folder / "15.md").write_text("---\n" + f"x: {'y' * 100_000}\n" + "---\n# W\n")

    loaded, progress = await load(client, folder)

    assert list(skipped(progress)) == ["mixed/15.md"]
    assert (loaded.files, loaded.inserted) == (30, 29 * 3)


async def test_a_file_of_another_folder_is_not_overwritten_by_one_of_its_name(
    client: AsyncClient, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "notes").mkdir(parents=True)
        (tmp_path / folder / "notes" / "x.md").write_text(f"# {folder}\n")
    await load(client, tmp_path / "a" / "notes")

    loaded, progress = await load(client, tmp_path / "b" / "notes")
    named, _ = await load(client, tmp_path / "b" / "notes", name="other")
    shutil.rmtree(tmp_path / "a")
    moved, _ = await load(client, tmp_path / "b" / "notes")

    assert "is that of another file" in skipped(progress)["notes/x.md"]
    assert loaded.inserted == 0
    assert loaded.gone == ()
    assert named.inserted == 3
    assert moved.updated > 0


async def test_what_was_forgotten_is_not_loaded_again_unless_it_is_said_so(
    client: AsyncClient, tmp_path: Path
) -> None:
    file = tmp_path / "a.md"
    file.write_text("# One\nfirst\n# Two\nsecond\n")
    await load(client, file)
    await client.request("memory:forget", {"key": "a.md#1"})

    file.write_text("# One\nfirst, changed\n# Two\nsecond\n")
    part, _ = await load(client, file)
    await client.request("memory:forget", {"id": (await item(client, "a.md", "files")).id})
    whole, progress = await load(client, file)
    back, _ = await load(client, file, even_forgotten=True)

    assert (part.skipped_files, part.forgotten) == (0, 1)
    assert whole.inserted == 0
    assert "even_forgotten" in skipped(progress)["a.md"]
    assert (back.inserted, back.unchanged) == (4, 0)


async def test_what_a_person_corrected_stays_so_and_the_rest_is_loaded(
    client: AsyncClient, tmp_path: Path
) -> None:
    file = tmp_path / "a.md"
    file.write_text("# One\nfirst\n# Two\nsecond\n")
    await load(client, file)
    await client.request("memory:correct", {"key": "a.md#0", "body": "rather this"})

    file.write_text("# One\nfirst, again\n# Two\nchanged\n")
    loaded, progress = await load(client, file)

    assert skipped(progress) == {}
    assert [(each.key, each.why) for each in loaded.problems] == [
        ("a.md#0", "a person said otherwise")
    ]
    assert (await item(client, "a.md#0")).body == "rather this"
    assert (await item(client, "a.md#1")).body.endswith("changed\n")


async def test_a_path_is_for_the_owner_alone(
    client: AsyncClient, connect: Callable[..., Any], daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("# A\n")
    grants = Grants(call=("content:*", "memory:*"))
    made = await client.request(
        "token:create", {"name": "app", "grants": grants, "user": "ada", "ttl_s": 60}
    )
    other = await connect(token=made["token"])

    with pytest.raises(Denied, match="content:upload"):
        await load(other, tmp_path / "a.md")
    with pytest.raises(InvalidData, match="from the root on"):
        await load(client, Path("a.md"))
    with pytest.raises(InvalidData, match="can't be read"):
        await load(client, tmp_path / "nowhere.md")
    with pytest.raises(InvalidData, match="either a path or an upload_id"):
        await load(client)
    with pytest.raises(InvalidData, match="at most half"):
        await load(client, tmp_path, chunk_characters=200, overlap_characters=150)


async def test_a_load_that_is_given_up_leaves_whole_documents(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(400):
        (folder / f"{number:03}.md").write_text(f"# Number {number}\ntext\n## More\ntext\n")
    chunks = client.stream("content:load", {"path": str(folder)}, result_type=e.ContentChunk)
    async for _ in chunks:
        break
    await chunks.aclose()

    # What was being written then may yet be committed; a whole load after it finds all in order.
    loaded, _ = await load(client, folder)

    listed = await client.request("memory:stats")
    tables = {each["table"]: each["items"] for each in listed["tables"]}
    assert loaded.unchanged_files > 0
    assert tables.pop("moments") == len(await told_new(client))
    assert sum(await told_new(client)) == 400  # each file is told of once
    assert tables == {"files": 400, "ontologies": 1200}
