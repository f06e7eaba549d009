"""Ids are always the same for a key, and never the same for keys that the store tells apart."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_memory.items.ids import folded, item_id
from ksi_postgres.database import Database

FOLDED = "SELECT ksi_memory.folded(given) FROM unnest($1::text[]) AS given"


def test_case_accents_and_blanks_are_of_no_account() -> None:
    assert len({item_id("facts", key) for key in ("Café ", "cafe", "CAFÉ", "Cafe\u0301")}) == 1


def test_tables_owners_and_keys_are_told_apart() -> None:
    made = [
        item_id("facts", "a"),
        item_id("moments", "a"),
        item_id("facts", "b"),
        item_id("facts", "a", "anna"),
        item_id("facts", "й"),
        item_id("facts", "и"),
        item_id("facts", "कि"),
        item_id("facts", "क"),
    ]

    assert len(set(made)) == len(made)


def test_ids_are_what_they_were() -> None:
    assert str(item_id("facts", "Tea", "anna")) == "ee752e01-8ad2-5730-bfe0-98cd983bb01a"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    keys=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
        min_size=1,
        max_size=200,
    )
)
async def test_keys_that_are_one_are_one_in_the_store(database: Database, keys: list[str]) -> None:
    kept = [row[0] for row in await database.fetch(FOLDED, keys)]

    by_python: dict[str, set[str]] = {}
    for key, name in zip(keys, kept, strict=True):
        by_python.setdefault(folded(key), set()).add(name)

    assert {key: names for key, names in by_python.items() if len(names) > 1} == {}


async def test_every_letter_that_is_one_is_one_in_the_store(database: Database) -> None:
    letters = [chr(code) for code in range(1, 0x11000) if not 0xD800 <= code < 0xE000]
    kept = [row[0] for row in await database.fetch(FOLDED, letters)]

    by_python: dict[str, set[str]] = {}
    for letter, name in zip(letters, kept, strict=True):
        by_python.setdefault(folded(letter), set()).add(name)

    assert {key: names for key, names in by_python.items() if len(names) > 1} == {}
