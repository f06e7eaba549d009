"""Tests of the days that a text speaks of."""

import itertools
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_memory.language.dates import MONTH_NAMES, resolved, spelled, spoken_of

AT = datetime(2023, 5, 8, 13, tzinfo=UTC)  # a Monday
DAY = timedelta(days=1)


def days(text: str, at: datetime | None = AT) -> list[str]:
    """Return the spans as text, the last day included."""
    return [f"{first}..{after - DAY}" for first, after in spoken_of(text, at)]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("yesterday", "2023-05-07..2023-05-07"),
        ("Last night we sang", "2023-05-07..2023-05-07"),
        ("the day before yesterday", "2023-05-06..2023-05-06"),
        ("see you tomorrow!", "2023-05-09..2023-05-09"),
        ("two days ago", "2023-05-06..2023-05-06"),
        ("in three days", "2023-05-11..2023-05-11"),
        ("last week", "2023-05-01..2023-05-07"),
        ("2 weeks ago", "2023-04-21..2023-04-27"),
        ("last weekend", "2023-05-06..2023-05-07"),
        ("next month", "2023-06-01..2023-06-30"),
        ("a month ago", "2023-04-01..2023-04-30"),
        ("last year", "2022-01-01..2022-12-31"),
        ("last summer", "2022-06-01..2022-08-31"),
        ("on Friday", "2023-05-05..2023-05-05"),
        ("I'll see her on Friday", "2023-05-12..2023-05-12"),
        ("last Monday", "2023-05-01..2023-05-01"),
        ("next Monday", "2023-05-15..2023-05-15"),
        ("this Sunday", "2023-05-14..2023-05-14"),
        ("in December", "2022-12-01..2022-12-31"),
        ("next December", "2023-12-01..2023-12-31"),
        ("last May", "2022-05-01..2022-05-31"),
        ("7 May 2023", "2023-05-07..2023-05-07"),
        ("the 7th of May, 2023", "2023-05-07..2023-05-07"),
        ("May 7, 2023", "2023-05-07..2023-05-07"),
        ("on Sept. 3rd 2021.", "2021-09-03..2021-09-03"),
        ("May 3-5, 2023", "2023-05-03..2023-05-05"),
        ("20 December", "2022-12-20..2022-12-20"),
        ("May 2023", "2023-05-01..2023-05-31"),
        ("late August 2022", "2022-08-21..2022-08-31"),
        ("2023", "2023-01-01..2023-12-31"),
        ("the 1990s", "1990-01-01..1999-12-31"),
        ("2023-05-07", "2023-05-07..2023-05-07"),
        ("2023-05-07T10:00:00Z", "2023-05-07..2023-05-07"),
        ("2023/05/07,", "2023-05-07..2023-05-07"),
        ("2023-05", "2023-05-01..2023-05-31"),
        ("29 February 2024", "2024-02-29..2024-02-29"),
        ("13/7/2023", "2023-07-13..2023-07-13"),
        ("7.5.2023", "2023-05-07..2023-05-07"),
    ],
)
def test_what_speaks_of_days_is_understood(text: str, span: str) -> None:
    assert days(text) == [span]


@pytest.mark.parametrize(
    "text",
    [
        "31 February 2023",
        "29 February 2023",
        "February 30, 2023",
        "2023-02-31",
        "2023-13-01",
        "45 May 2023",
        "31/31/2023",
        "9999-12-31",
        "0000-00-00",
        "it costs 2000$ or $2000",
        "the release 2.2023.1",
        "the path /2023/x2023/12023",
        "I may 2 times",
        "we may march on",
        "the meeting took 3 days",
        "he sat down, the sun rose",
        "within 3 days",
        "",
    ],
)
def test_what_is_no_day_or_does_not_exist_is_left_out(text: str) -> None:
    assert days(text) == []


def test_a_day_that_does_not_exist_does_not_become_its_year() -> None:
    assert days("31 February 2023, and then 3 March 2023") == ["2023-03-03..2023-03-03"]


def test_a_date_of_either_order_is_both_days() -> None:
    assert days("5/7/2023") == ["2023-05-07..2023-05-07", "2023-07-05..2023-07-05"]


def test_without_a_time_only_what_is_a_date_by_itself_is_understood() -> None:
    assert days("yesterday, on Friday, 7 May, last week", None) == []
    assert days("yesterday, on 7 May 2023", None) == ["2023-05-07..2023-05-07"]


def test_days_that_touch_are_one_span() -> None:
    assert days("7 May 2023, 8 May 2023 and 6 May 2023") == ["2023-05-06..2023-05-08"]


def test_relative_days_are_spelled_out_where_they_stand() -> None:
    assert (
        resolved("We met yesterday, and on 3 May 2021; next year we'll meet again.", AT)
        == "We met yesterday (7 May 2023), and on 3 May 2021; next year (2024) we'll meet again."
    )
    assert resolved("last week", AT) == "last week (1 May 2023 to 7 May 2023)"
    assert resolved("No days, no change.", AT) == "No days, no change."


def test_the_ends_of_the_calendar_are_no_trouble() -> None:
    text = "12 years ago, in 999 years, tomorrow, next week, last summer, on Friday, in May"
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)

    for at in (first, last):
        spoken_of(text, at)
        resolved(text, at)

    assert days("yesterday, this week", first) == ["0001-01-01..0001-01-07"]
    assert days("tomorrow, last week", last) == ["9999-12-20..9999-12-26"]


@given(st.text(max_size=300), st.datetimes())
def test_any_text_at_any_time_has_spans_in_order(text: str, at: datetime) -> None:
    spans = spoken_of(text, at)

    assert all(first < after for first, after in spans)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(spans))


WORDS = re.findall(
    r"\S+",
    "last next this in on ago may March 31 29 2023 two a few days week month year 5/7/2023 2023-02-"
    " Friday , . - yesterday 30th of to the 19 99 early autumn",
)


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.datetimes())
def test_any_row_of_such_words_can_be_read_and_spelled_out(words: list[str], at: datetime) -> None:
    text = " ".join(words)

    spans = spoken_of(text, at)
    told = resolved(text, at)

    assert all(first < after for first, after in spans)
    assert len(told) >= len(text)


WRITTEN = (
    "{0.day} {1} {0.year}",
    "the {0.day}th of {1}, {0.year}.",
    "{1} {0.day}, {0.year}",
    "{2} {0.day} {0.year}",
    "{0.year}-{0.month:02}-{0.day:02}",
    "({0.year}/{0.month}/{0.day})",
)


@given(
    st.dates(date(1000, 1, 1), date(2999, 12, 31)),
    st.sampled_from(WRITTEN),
    st.sampled_from([str.lower, str.upper, str]),
)
def test_every_day_is_found_in_every_way_to_write_it(
    day: date, written: str, case: Callable[[str], str]
) -> None:
    name = MONTH_NAMES[day.month - 1]
    text = case("We met on " + written.format(day, name, name[:3]))

    assert spoken_of(text, None) == [(day, day + DAY)]


@given(st.dates(date(1900, 1, 1), date(2099, 12, 31)), st.integers(1, 999))
def test_days_ago_are_counted_back(day: date, number: int) -> None:
    at = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)

    found = spoken_of(f"It was {number} days ago", at)

    assert found == [(day - number * DAY, day - (number - 1) * DAY)]


@given(
    st.dates(date(1000, 1, 1), date(2990, 12, 31)), st.dates(date(1000, 1, 1), date(2990, 12, 31))
)
def test_what_is_spelled_is_understood_again(one: date, two: date) -> None:
    first, last = min(one, two), max(one, two)

    found = spoken_of(spelled((first, last + DAY)), None)

    assert found[0][0] == first
    assert found[-1][1] == last + DAY


def test_a_long_text_is_read_in_time_that_grows_with_it() -> None:
    hostile = [
        "1 " * 50_000,
        "in a few " * 12_000,
        "may " * 25_000,
        "2023-" * 20_000,
        "last " * 20_000 + "week",
        " " * 100_000 + "may 2023",
        "3 to 4 to 5 to " * 7000 + "days ago May",
    ]

    for text in hostile:
        began = time.process_time()
        spoken_of(text, AT)
        assert time.process_time() - began < 2


def test_what_stands_very_far_behind_is_not_looked_at() -> None:
    assert spoken_of("x " * 60_000 + "7 May 2023", AT) == []
