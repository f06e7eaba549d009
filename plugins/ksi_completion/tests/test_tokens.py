"""Tests of how tokens are counted: by estimate, set right by what providers report."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_completion import tokens
from ksi_completion.messages import body_of, decode_parts, digest_of, encode_parts
from ksi_models.events import (
    FilePart,
    Part,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    ToolSchema,
)

PROSE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. However little known the feelings or views of such a man may be "
    "on his first entering a neighbourhood, this truth is so well fixed in the minds of the "
    "surrounding families, that he is considered as the rightful property of some one or other "
    "of their daughters."
)
SEAM = 25  # two halves of a text without words are seen as one when they meet


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_text_has_about_the_tokens_of_its_parts(first: str, second: str) -> None:
    whole = tokens.of_text(first + second)

    assert abs(whole - tokens.of_text(first) - tokens.of_text(second)) <= SEAM
    assert whole >= max(tokens.of_text(first), tokens.of_text(second)) - 1


@given(st.text(min_size=1, max_size=300))
def test_a_text_has_at_least_one_token_and_not_more_than_bytes(text: str) -> None:
    assert 1 <= tokens.of_text(text) <= len(text.encode())


def test_nothing_has_no_tokens() -> None:
    assert tokens.of_text("") == 0


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (PROSE, 65, 95),  # the vocabularies of OpenAI's newer models make 75 to 78 of it
        ("1234567890", 4, 4),
        ("def hello(name: str) -> None:\n    print(name)\n", 12, 20),
        ("深圳市是中国的城市", 6, 12),
        ("Donaudampfschifffahrt", 3, 8),
        ("\n" * 1000, 1, 20),
        ("aGVsbG8gd29ybGQgdGhpcyBpcyBzb21lIGJhc2U2NCB0ZXh0" * 10, 160, 320),
        ("😀" * 10, 10, 40),
    ],
)
def test_the_estimate_is_near_what_models_make_of_a_text(text: str, least: int, most: int) -> None:
    assert least <= tokens.of_text(text) <= most


def test_counting_keeps_up_with_a_megabyte() -> None:
    text = PROSE * 2000

    began = time.perf_counter()
    tokens.of_text(text)
    took_s = time.perf_counter() - began
    began = time.perf_counter()
    len(text.split())
    splitting_s = time.perf_counter() - began

    print(f"{len(text) / took_s / 1e6:.1f} MB/s")  # noqa: T201  the figure
    assert took_s < 60 * splitting_s


def test_every_kind_of_part_is_counted() -> None:
    word = tokens.of_text("hello world")

    assert tokens.of_part(TextPart("hello world")) == word
    assert tokens.of_part(ThinkingPart("hello world", "signature")) == word
    assert tokens.of_part(ToolCallPart("i", "look", "hello world")) > word
    assert tokens.of_part(ToolResultPart("i", "look", "hello world")) > word
    assert tokens.of_part(FilePart("image/png", b"x")) == tokens.IMAGE_TOKENS
    assert tokens.of_part(FilePart("text/plain", b"hello world")) >= word
    assert tokens.of_part(FilePart("application/pdf", b"x" * 30_000)) > 5000
    assert tokens.of_part(FilePart("application/pdf", url="https://x")) > 0
    schema = ToolSchema(
        "look", "looks", {"type": "object", "properties": {"a": {"type": "string"}}}
    )
    assert tokens.of_tools([schema]) > tokens.of_text("look looks object properties")


def test_what_providers_report_sets_the_estimate_right() -> None:
    calibration = tokens.Calibration()

    assert calibration.factor("m") == 1.0
    for _ in range(50):
        calibration.observe("m", 1000, 1300)

    assert calibration.factor("m") == pytest.approx(1.3, rel=0.01)
    assert calibration.factor("other") == 1.0


@pytest.mark.parametrize(
    ("estimated", "reported"), [(10, 20), (1000, 0), (1000, 10), (1000, 50_000), (0, 5)]
)
def test_a_report_of_something_else_teaches_nothing(estimated: int, reported: int) -> None:
    calibration = tokens.Calibration()

    calibration.observe("m", estimated, reported)

    assert calibration.factor("m") == 1.0


def test_only_so_many_models_are_remembered() -> None:
    calibration = tokens.Calibration()

    for number in range(tokens.MAX_MODELS + 10):
        calibration.observe(f"m{number}", 1000, 1500)

    assert calibration.factor("m0") == 1.0
    assert calibration.factor(f"m{tokens.MAX_MODELS + 9}") == 1.5


PARTS: st.SearchStrategy[Part] = st.one_of(
    st.builds(TextPart, st.text()),
    st.builds(ThinkingPart, st.text(), st.none() | st.text()),
    st.builds(ToolCallPart, st.text(), st.text(), st.text()),
    st.builds(ToolResultPart, st.text(), st.text(), st.text(), st.booleans()),
    st.builds(FilePart, st.text(), st.none() | st.binary(), st.none() | st.text()),
)


@given(st.lists(PARTS).map(tuple))
def test_parts_are_read_as_they_were_stored(parts: tuple[Part, ...]) -> None:
    stored = encode_parts(parts)

    assert decode_parts(stored) == parts
    assert "\n" not in stored
    assert "\0" not in stored + body_of(parts)


def test_the_hash_tells_messages_apart() -> None:
    first = digest_of([("user", "[1]"), ("user", "[2]")])

    assert first != digest_of([("user", "[1]\nuser [2]x")])
    assert first != digest_of([("user", "[2]"), ("user", "[1]")])
    assert first == digest_of(iter([("user", "[1]"), ("user", "[2]")]))
