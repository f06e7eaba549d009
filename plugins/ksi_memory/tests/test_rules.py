"""What rules keep of what users write, and what they leave."""

from datetime import UTC, datetime

import pytest

from ksi_memory import rules
from ksi_memory.tests.turns_under_test import DROPPED, KEPT, Expected

WEDNESDAY = datetime(2026, 3, 4, 12, tzinfo=UTC)


def kept(text: str) -> dict[str, str]:
    return {each.item.key: each.item.body or "" for each in rules.find(text, WEDNESDAY)}


def test_there_are_more_than_a_hundred_turns() -> None:
    assert len(KEPT) + len(DROPPED) > 100


@pytest.mark.parametrize(("text", "expected"), KEPT, ids=[text[:50] for text, _ in KEPT])
def test_what_is_worth_it_is_kept(text: str, expected: Expected) -> None:
    found = kept(text)

    assert found.keys() == expected.keys()
    assert [key for key, said in expected.items() if said not in found[key]] == []


@pytest.mark.parametrize("text", DROPPED, ids=[text[:50] for text in DROPPED])
def test_what_is_not_is_left(text: str) -> None:
    assert kept(text) == {}
