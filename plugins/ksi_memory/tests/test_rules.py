"""What rules keep of what users write, and what they leave."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_memory.language import junk, rules
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


TRICKY = ("and ", "my ", "I ", "please ", "no-", "my wife ", "Anna ", "van ", "((", "remember ")


@pytest.mark.parametrize("piece", TRICKY)
def test_no_text_holds_the_rules_up(piece: str) -> None:
    text = piece * (junk.MAX_SENTENCE // len(piece))
    began = time.perf_counter()

    rules.find(text, WEDNESDAY)
    junk.why_junk(text)

    assert time.perf_counter() - began < 1.0


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    for finding in rules.find(f"My name is {text}. I live in {text}.", WEDNESDAY):
        assert finding.item.key
        assert len(finding.item.key) <= 1000
        assert not junk.is_secret(finding.item.body or "")
    junk.why_junk(text)


@given(st.lists(st.sampled_from([text for text, _ in KEPT]), min_size=1, max_size=5))
def test_the_latest_word_on_each_thing_counts(texts: list[str]) -> None:
    found = kept(" ".join(texts))

    assert len(found) <= rules.MAX_FINDINGS


def test_a_later_sentence_supersedes_an_earlier() -> None:
    assert kept("I live in Porto. Wait, I moved to Lisbon.") == {
        "user:home": "The user lives in Lisbon."
    }


def test_a_document_is_not_taken_for_talk() -> None:
    assert len(kept("\n".join(f"I love thing{n}." for n in range(1000)))) <= rules.MAX_FINDINGS
