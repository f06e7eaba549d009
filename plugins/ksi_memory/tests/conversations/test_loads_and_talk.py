"""That something was loaded is told to nobody who did not ask: in no turn, and in no dream."""

from pathlib import Path

from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script
from ksi_memory.tests.conversations.test_dreaming import let_pass
from ksi_memory.tests.loading import load
from ksi_memory.tests.talking import remembered, talk
from ksi_postgres.logins import Logins


async def test_a_turn_is_told_what_was_loaded_and_not_that_it_was(
    client: AsyncClient, script: Script, tmp_path: Path
) -> None:
    folder = tmp_path / "tulips"
    folder.mkdir()
    for number in range(15):
        (folder / "tulips.md").write_text(f"# Tulips\nThey want a dry place, {number} times.\n")
        await load(client, folder)
    own = {"key": "planted", "category": "upload", "body": "The tulips were loaded and planted."}
    await client.request("memory:upsert", {"table": "moments", "items": [own]})

    await talk(client, "c1", "Which files of tulips were loaded from tulips?", user="anna")

    system = script.calls[0].system or ""
    assert len(await remembered(client, "moments")) == 16
    assert "- [tulips/tulips.md]" in system
    assert "- [planted]" in system
    assert "- [upload:" not in system


async def test_no_dream_goes_over_loads_or_begins_for_them(
    client: AsyncClient, database_logins: Logins, tmp_path: Path
) -> None:
    for text in ("# Tulips\nThey are red.\n", "# Tulips\nThey are yellow.\n"):
        (tmp_path / "tulips.md").write_text(text)
        await load(client, tmp_path / "tulips.md")
    await let_pass(database_logins, 2)

    dreamt = await client.request("memory:dream", {})

    assert len(await remembered(client, "moments")) == 2
    assert dreamt["did"] == []
    assert dreamt["read_items"] == 0
