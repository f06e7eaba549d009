"""The REM dialect: what is understood, what is not and where, and how it is written."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ksi_memory import tables
from ksi_memory.events import MemoryQuery
from ksi_memory.querying import rem
from ksi_memory.querying.rem import CLAUSES, COMMANDS, TAKEN, RemError, parse, written

NOW = datetime(2026, 5, 20, 12, 30, tzinfo=UTC)


def asked(text: str) -> MemoryQuery:
    return parse(text, NOW)


def question_or_error(text: str) -> MemoryQuery | RemError:
    try:
        return asked(text)
    except RemError as error:
        return error


def refused(text: str) -> RemError:
    with pytest.raises(RemError) as caught:
        asked(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("LOOKUP anna", {"mode": "lookup", "keys": ("anna",)}),
        ("lookup Anna Schmidt, notes/rent.md", {"keys": ("Anna Schmidt", "notes/rent.md")}),
        ('LOOKUP "a, b", c', {"keys": ("a, b", "c")}),
        ("LOOKUP a FROM entities, facts", {"keys": ("a",), "tables": ("entities", "facts")}),
        ("LOOKUP a as_of=2026-01-01", {"as_of": datetime(2026, 1, 1, tzinfo=UTC)}),
        ('SEARCH "rent" FROM moments LIMIT 5', {"query": "rent", "tables": ("moments",)}),
        ("search rent from moments limit 5", {"query": "rent", "limit": 5}),
        ("SeArCh rent LiMiT 5", {"query": "rent", "limit": 5}),
        ("SEARCH what's Anna's rent", {"query": "what's Anna's rent"}),
        ("SEARCH what's Anna's rent limit=5", {"query": "what's Anna's rent", "limit": 5}),
        ("SEARCH 'the rent' limit 5", {"query": "the rent", "limit": 5}),
        ("SEARCH 'tis the dogs' bone", {"query": "'tis the dogs' bone"}),
        ("SEARCH “the rent” LIMIT 5", {"query": "the rent", "limit": 5}),
        (r'SEARCH "say \"hi\" to C:\\"', {"query": 'say "hi" to C:\\'}),
        ('SEARCH 6" pipes', {"query": '6" pipes'}),
        ("SEARCH mail from anna", {"query": "mail from anna", "tables": ()}),
        ("SEARCH mail FROM anna", {"query": "mail", "tables": ("anna",)}),
        ("SEARCH what happened since then", {"query": "what happened since then"}),
        ("SEARCH rent since yesterday", {"since": datetime(2026, 5, 19, tzinfo=UTC)}),
        ("SEARCH rent SINCE 3d", {"since": NOW - timedelta(days=3)}),
        (
            "SEARCH rent UNTIL 2026-05-01 10:30 LIMIT 3",
            {"until": datetime(2026, 5, 1, 10, 30, tzinfo=UTC), "limit": 3},
        ),
        ("SEARCH rent UNTIL 2026-05", {"until": datetime(2026, 5, 1, tzinfo=UTC)}),
        (
            "SEARCH rent SINCE 2026-05-01T10:00+02:00",
            {"since": datetime(2026, 5, 1, 8, tzinfo=UTC)},
        ),
        ("SEARCH rent FIELD title", {"field": "title"}),
        ("SEARCH rent MIN_SIMILARITY .5 CATEGORY 'to pay'", {"category": "to pay"}),
        ('SEARCH rent category="to pay" limit=2', {"category": "to pay", "limit": 2}),
        ("SEARCH what does explain mean", {"query": "what does explain mean", "explain": False}),
        ("SEARCH what does explain", {"query": "what does explain", "explain": False}),
        ("SEARCH rent EXPLAIN", {"query": "rent", "explain": True}),
        ("SEARCH rent MAX_TOKENS 500", {"max_tokens": 500}),
        ("FUZZY shmidt threshold .4 limit 3", {"query": "shmidt", "threshold": 0.4, "limit": 3}),
        (
            'TRAVERSE "anna" DEPTH 2 TYPE knows, owns DIRECTION both LOAD',
            {"keys": ("anna",), "depth": 2, "relations": ("knows", "owns"), "load": True},
        ),
        ("traverse anna load", {"keys": ("anna",), "load": True}),
        ("TIMELINE", {"mode": "timeline", "subject": None}),
        ("TIMELINE limit 3", {"subject": None, "limit": 3}),
        ("timeline c_1 since 2026-01-01 limit 3", {"subject": "c_1", "limit": 3}),
        ("SQL SELECT 1 LIMIT ten ", {"mode": "sql", "query": "SELECT 1 LIMIT ten"}),
        ("sql\nWITH x AS (SELECT 1) SELECT * FROM x", {"mode": "sql"}),
        ("SQL COPY x TO '/tmp/x'", {"mode": "sql", "query": "COPY x TO '/tmp/x'"}),
        ("SELECT * FROM moments", {"mode": "search", "query": "SELECT * FROM moments"}),
        ("DROP TABLE item; --", {"mode": "search", "query": "DROP TABLE item; --"}),
        ("SQL injection, how does it work?", {"mode": "search"}),
        ("what is our rent? limit=5", {"mode": "search", "query": "what is our rent?", "limit": 5}),
        ("the limit is ten", {"mode": "search", "query": "the limit is ten"}),
        ('"the rent"', {"mode": "search", "query": "the rent"}),
        ("  \n what's up?\n", {"mode": "search", "query": "what's up?"}),
    ],
)
def test_what_is_written_is_understood(text: str, meant: dict[str, Any]) -> None:
    found = asked(text)

    assert {name: getattr(found, name) for name in meant} == meant


@pytest.mark.parametrize(
    ("text", "told", "pointed"),
    [
        ('SEARCH "rent" LIMIT ten', "expected a number after LIMIT, found 'ten'", "ten"),
        ("search rent limit ten", "expected a number after LIMIT, found 'ten'", "ten"),
        ("search rent limit=ten", "expected a number after LIMIT, found 'ten'", "ten"),
        ("rent limit=ten", "expected a number after LIMIT, found 'ten'", "ten"),
        ('SEARCH "x" LIMIT 5000', "a number from 1 to 1,000 after LIMIT, found '5000'", "5000"),
        ("SEARCH x MIN_SIMILARITY 2", "a number from 0 to 1", "2"),
        ("SEARCH x MIN_SIMILARITY nan", "a number from 0 to 1", "nan"),
        ("SEARCH x SINCE 2026-02-30", "found '2026-02-30': there is no such time", "2026-02-30"),
        ("search x since 2026-02-30", "there is no such time", "2026-02-30"),
        ("SEARCH x SINCE soon", "expected a time, such as", "soon"),
        ("SEARCH x FIELD tite", "expected title or body", "tite"),
        ('SEARCH "rent" LIMT 5', "did you mean LIMIT?", "LIMT"),
        ('SEARCH "rent" DEPTH 5', "SEARCH takes no DEPTH", "DEPTH"),
        ("SEARCH rent depth=5", "SEARCH takes no DEPTH", "depth=5"),
        ("SEARCH rent LIMIT 5 LIMIT 6", "LIMIT is there twice", "LIMIT"),
        ("SEARCH rent FROM 5tables", "the name of a table", "5tables"),
        ('SEARCH "rent', "expected the end of the text in quotes", '"'),
        ("LOOKUP a,,b", "expected a key after LOOKUP", ","),
        ("LOOKUP limit=5, b", "expected a key after LOOKUP", "l"),
        ("TRAVERSE a, b", "TRAVERSE takes one key", ","),
        ("TRAVERSE a DIRECTION up", "expected out, in or both", "up"),
        ('LOOKUP " "', "found an empty one", '" "'),
        (f"LOOKUP {'k' * 1001}", "a key has at most 1,000 characters", None),
        ("SEARCH a\0b", "no zero byte", "\0"),
    ],
)
def test_what_is_wrong_is_said_and_pointed_at(text: str, told: str, pointed: str | None) -> None:
    error = refused(text)

    assert told in error.message
    assert error.details is not None
    start, length = error.details["position"], error.details["length"]
    if pointed is not None:
        assert text[start : start + length].startswith(pointed)


@pytest.mark.parametrize(
    ("text", "at"),
    [("", 0), ("   ", 0), ("SEARCH", 6), ("SEARCH x SINCE", 14), ("LOOKUP a, ", 9), ("SQL", 3)],
)
def test_where_something_is_missing_is_pointed_at(text: str, at: int) -> None:
    error = refused(text)

    assert error.details is not None
    assert error.details["position"] == at
    assert "found nothing" in error.message


def test_the_caret_stands_below_what_is_wrong() -> None:
    error = refused('SEARCH "rent" LIMIT ten')

    assert error.message.splitlines() == [
        "expected a number after LIMIT, found 'ten'",
        '  SEARCH "rent" LIMIT ten',
        "                      ^^^",
    ]


def test_the_caret_stands_below_it_in_wide_letters_and_long_lines() -> None:
    wide, long = refused('SEARCH "日本" LIMIT x'), refused(f'SEARCH "{"rent " * 900}" LIMIT x')

    for error, columns in ((wide, 22), (long, None)):
        _, line, caret = error.message.splitlines()
        assert caret.count("^") == 1
        if columns is not None:
            assert caret.index("^") == columns
        assert len(line) < 120
        assert line.rstrip("…").endswith("x")


def test_an_error_in_a_later_line_tells_which() -> None:
    error = refused('SEARCH "rent"\n  LIMIT ten')

    assert error.details == {"position": 22, "length": 3, "line": 2, "column": 9}
    assert "  LIMIT ten" in error.message


def test_the_tables_are_those_that_are_there() -> None:
    assert set(rem.TABLES) == set(tables.TABLES)


# -- whatever is written --------------------------------------------------------------------------

WORDS = (
    *COMMANDS,
    *CLAUSES,
    *(name.lower() for name in (*COMMANDS, *CLAUSES)),
    *(f"{name.lower()}=" for name in CLAUSES),
    *("5", "0.5", "ten", "rent", "Anna's", "moments", "title", "out", "yesterday", "2026-02-30"),
    *(
        '"',
        "'",
        '"a b"',
        "'a b'",
        "“x”",
        ",",
        "=",
        "\\",
        "\n",
        " ",
        "…",
        "日本",
        "\0",
        "SELECT",
        "-1",
    ),
)
SOUP = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.lists(
    st.sampled_from(WORDS), max_size=12
).map("".join)


@settings(max_examples=300, deadline=None)
@given(SOUP | st.text(max_size=80))
@example("SEARCH limit limit limit 5")
@example("SEARCH x FROM a=b")
@example('SEARCH "a"b" limit 5')
@example("SEARCH x EXPLAIN=no")
def test_what_is_read_is_written_so_that_the_same_is_read(text: str) -> None:
    found = question_or_error(text)
    if isinstance(found, RemError):
        assert found.details is not None
        assert 0 <= found.details["position"] <= len(text)
        assert "^" in found.message.splitlines()[-1]
        return

    again = written(found)

    assert asked(again) == found
    assert written(asked(again)) == again


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
).filter(lambda text: text.strip())
TIMES = st.integers(-(10**9), 10**10).map(lambda second: datetime.fromtimestamp(second, UTC))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "tables": st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), max_size=3).map(
        tuple
    ),
    "field": st.sampled_from([None, "title", "body"]),
    "limit": st.none() | st.integers(1, 1000),
    "min_similarity": st.none() | st.floats(0, 1),
    "threshold": st.none() | st.floats(0, 1),
    "category": st.none() | TEXTS,
    "since": st.none() | TIMES,
    "until": st.none() | TIMES,
    "as_of": st.none() | TIMES,
    "depth": st.none() | st.integers(0, 100),
    "relations": st.lists(TEXTS, max_size=3).map(tuple),
    "direction": st.sampled_from(["out", "in", "both"]),
    "load": st.booleans(),
    "max_tokens": st.none() | st.integers(1, 10**6),
    "explain": st.booleans(),
}


@st.composite
def questions(draw: st.DrawFn) -> MemoryQuery:
    mode = draw(st.sampled_from([each for each in COMMANDS.values() if each != "sql"]))
    fields = {CLAUSES[name].field for name in TAKEN[mode]}
    values = {field: draw(VALUES[field]) for field in sorted(fields)}
    if mode == "lookup":
        values["keys"] = draw(st.lists(TEXTS, min_size=1, max_size=4).map(tuple))
    elif mode == "traverse":
        values["keys"] = (draw(TEXTS),)
    elif mode == "timeline":
        values["subject"] = draw(st.none() | TEXTS)
    else:
        values["query"] = draw(TEXTS)
    return MemoryQuery(mode=mode, **values)


@settings(max_examples=300, deadline=None)
@given(questions())
def test_every_question_by_its_mode_can_be_written(question: MemoryQuery) -> None:
    assert asked(written(question)) == question


@pytest.mark.parametrize(
    "text",
    [
        "SEARCH " + "limit 5 " * 6000,
        "SEARCH " + "limit " * 8000,
        "SEARCH " + "' " * 25000,
        "SEARCH " + '"a' * 25000,
        "LOOKUP " + "a," * 900 + "a",
        "SEARCH " + "x from a,b," * 4000,
        "SEARCH x FROM " + "a, " * 10000 + "a",
        "\u202e" * 50000,
        "SEARCH " + "a=" * 25000,
        "SEARCH x " + "category=" * 5000,
    ],
)
def test_the_time_it_takes_grows_with_the_length_alone(text: str) -> None:
    began = time.process_time()

    found = question_or_error(text)

    assert time.process_time() - began < 3
    assert not isinstance(found, RemError) or len(found.message) < 1000
