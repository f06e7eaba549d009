"""What members answer is read, however a model writes it."""

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_orchestration.answers import (
    chosen,
    field_of,
    is_pass,
    items_in,
    json_in,
    says,
    voted,
)
from ksi_orchestration.templates import fill, is_name, names_in


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("one\n\n two \n", ["one", "two"]),
        ('["one", 2, {"a": 1}, ""]', ["one", "2", '{"a":1}']),
        ('{"why": "x", "parts": ["one", "two"]}', ["one", "two"]),
        ('Here:\n```json\n["one"]\n```\nDone.', ["one"]),
        ("Parts:\n\n1. one\n2) two\n(3) three\n\nThat is all.", ["one", "two", "three"]),
        ("- one\n  - of it\n  more\n* two", ["one\n- of it\nmore", "two"]),
        ("  - one\n- two\n    three", ["one", "two\nthree"]),
        ("- one\n\nAnd so on.\n  not of it", ["one"]),
        ("3.14 is pi", ["3.14 is pi"]),
        ("", []),
    ],
)
def test_a_list_is_found_as_json_as_markdown_or_as_lines(text: str, items: list[str]) -> None:
    assert items_in(text) == items


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("vote: Red", "red"),
        ("I think red is nicer.\n\n**Vote:** `dark blue`.", "dark blue"),
        ("vote: red\nno, wait\nVOTE = blue", "blue"),
        ("Red is what I choose", "red"),
        ("dark blue", "dark blue"),
        ("I am for dark blue.", "dark blue"),
        ("not red, but blue", None),
        ("vote: green", None),
        ("redder", None),
        ('{"vote": "red"}', "red"),
        ('```json\n{"vote": 2}\n```', "blue"),
        ("vote: 3", "dark blue"),
        ("2", "blue"),
        ("vote: 2. blue", "blue"),
        ("vote: 9", None),
        ("vote: 0", None),
        ("", None),
    ],
)
def test_a_vote_is_read_by_name_or_number(text: str, choice: str | None) -> None:
    assert voted(text, "vote", ("red", "blue", "dark blue")) == choice


def test_what_is_no_vote_is_none_even_if_an_option_is_in_it() -> None:
    prose = "I am no language model: I can only quote what was said here, and nothing else at all."

    assert voted(prose, "vote", ("yes", "no")) is None
    assert voted("No.\nBut who knows?", "vote", ("yes", "no")) is None
    assert voted(f"{prose}\nvote: no ({prose[2:]})", "vote", ("yes", "no")) == "no"


def test_an_option_that_is_a_number_is_meant_by_it() -> None:
    assert voted("vote: 1", "vote", ("3", "2", "1")) == "1"


def test_who_is_next_is_called_by_name_and_not_by_number() -> None:
    assert chosen("next: 1", "next", ("ann", "bob")) is None
    assert chosen("Ann has not spoken: next: Bob", "next", ("ann", "bob")) is None
    assert chosen("Ann has not spoken.\nNext:Bob (he knows)", "next", ("ann", "bob")) == "bob"


@pytest.mark.parametrize("text", ["pass", " PASS. ", "**Pass!**", '"pass"'])
def test_a_pass_is_that_one_word(text: str) -> None:
    assert is_pass(text)


@pytest.mark.parametrize("text", ["", "I pass", "passing", "pass the salt"])
def test_what_has_other_words_is_no_pass(text: str) -> None:
    assert not is_pass(text)


def test_a_phrase_is_found_as_words_of_their_own() -> None:
    assert says("So:\n**decision:**   accept", "Decision: accept")
    assert says("NO MORE\nQUESTIONS", "no more questions")
    assert not says("Decision: acceptable", "Decision: accept")
    assert not says("disagreed", "agreed")


def test_a_field_is_found_where_it_is() -> None:
    value = json_in('Well: {"a": {"b": [1]}} so')

    assert field_of(value, "a.b") == [1]
    assert field_of(value, "a.b.c") is None
    assert field_of(None, "a") is None


def test_json_that_is_nested_too_deep_is_none() -> None:
    assert json_in("[" * 20_000 + "]" * 20_000) is None


@settings(deadline=None)  # it says nothing of how busy the machine is
@given(st.text(max_size=300))
def test_whatever_is_answered_it_is_read(text: str) -> None:
    assert all(item.strip() for item in items_in(text))
    assert voted(text, "vote", ("a", "b")) in ("a", "b", None)
    says(text, text or "x")


@pytest.mark.parametrize(
    "text",
    ["\n", " ", "`", "```\n", "{", "{}", "[", "vote\n", "*\n", "- ", "dark ", "1", "!\n", "\nvot"],
)
def test_what_is_long_and_odd_is_read_as_fast_as_anything(text: str) -> None:
    long = text * (100_000 // len(text))
    begun = time.process_time()

    for read in (items_in, json_in, is_pass):
        read(long)
    voted(long, "vote", ("red", "dark blue"))
    says(long, "dark blue sky")

    assert time.process_time() - begun < 5  # what takes the square of its length takes minutes


# -- templates ------------------------------------------------------------------------------------


def test_names_are_filled_in_once_and_what_is_filled_in_is_data() -> None:
    found = fill("{{a}} and {{ b.c }} {{ b.c }}", {"a": "{{ b.c }}", "b.c": r"\1"}.get)

    assert found == r"{{ b.c }} and \1 \1"


def test_a_line_of_names_alone_goes_where_nothing_is_known_of_them() -> None:
    values = {"a": "", "b": " ", "c": "C\n\n\nC"}

    assert fill("x\n{{ a }}{{ b }}\ny\n\n{{ a }}\n\nz {{ a }}\n{{ c }}", values.get) == (
        "x\ny\n\nz \nC\n\n\nC"
    )


def test_what_is_no_name_is_seen() -> None:
    found = names_in('{{ ok }} {{ a + b }} {{}} {"x": {"y": 1}} {% if %}')

    assert found == ("ok", "a + b", "")
    assert [is_name(each) for each in found] == [True, False, False]


@settings(deadline=None)
@given(st.text(max_size=100), st.text(max_size=20))
def test_a_value_stands_as_it_is_in_a_line(before: str, value: str) -> None:
    line = before.replace("{", "").replace("}", "").replace("\n", " ")
    line = " ".join(line.splitlines()).strip() or "x"

    assert fill(f"{line} {{{{ name }}}}.", lambda name: value) == f"{line} {value}."


def test_json_is_read_as_msgspec_reads_it() -> None:
    assert json_in(msgspec.json.encode({"a": [1.5, None, "ü"]}).decode()) == {"a": [1.5, None, "ü"]}
