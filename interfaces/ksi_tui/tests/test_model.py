"""What is known stays right and bounded, whatever comes and in whatever order."""

import unicodedata
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ksi_agents.events import Agent
from ksi_models.events import ModelCalled, Usage
from ksi_tui.model import texts
from ksi_tui.model.feed import SEVERITIES, Feed, Filter, Seen, Severity, severity_of
from ksi_tui.model.known import MAX_AGENT_LOADS, Known
from ksi_tui.model.series import KEPT_MINUTES, MINUTE_S, Series, bars
from ksi_tui.model.timeline import spans
from ksi_tui.model.trees import shown_phase, tree
from ksi_tui.widgets.rows import GAP, Column, fitted, widths

AT = datetime(2026, 1, 1, tzinfo=UTC)


def seen(number: int, name: str = "a:b", severity: Severity = "info") -> Seen:
    return Seen(at=AT + timedelta(seconds=number), name=name, id=str(number), severity=severity)


def settle(feed: Feed, number: int, severity: Severity) -> None:
    feed.settle(
        str(number),
        lambda: seen(number),
        outcome="ok" if severity == "info" else "failed",
        message=None,
        duration_s=0.1,
        severity=severity,
    )


# -- events ---------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(0, 50)),
        st.tuples(st.sampled_from(SEVERITIES), st.integers(0, 60)),
        st.tuples(st.just("frame"), st.just(0)),
        st.tuples(st.just("fill"), st.integers(0, 60)),
    ),
    max_size=120,
)


@given(STEPS)
def test_whatever_comes_in_whatever_order_the_feed_is_bounded_and_counts_right(
    steps: list[tuple[str, int]],
) -> None:
    feed, offered = Feed(kept=10, kept_a_frame=4), 0

    for what, number in steps:
        if what == "offer":
            feed.offer(str(number), partial(seen, number))
            offered += 1
        elif what == "frame":
            feed.frame()
        elif what == "fill":
            feed.fill([seen(number), seen(number + 1)])
        else:
            settle(feed, number, what)  # type: ignore[arg-type]  # one of the severities

        assert feed.seen == offered
        assert len(feed) <= 10
        assert feed.waiting <= 8
    feed.frame()
    assert len(list(feed.newest())) == len(feed)


def test_of_more_events_than_a_frame_has_room_for_an_even_sample_is_shown() -> None:
    feed = Feed(kept_a_frame=40)
    for number in range(1000):
        feed.offer(str(number), partial(seen, number))
    feed.frame()

    shown = [int(each.id) for each in feed.newest()]

    assert feed.seen == 1000
    assert len(shown) == round(1000 / feed.one_of)
    assert 20 <= len(shown) <= 40
    assert {first - second for first, second in pairwise(shown)} == {32}


def test_what_is_said_of_the_sample_is_about_the_last_frame_alone() -> None:
    feed = Feed(kept_a_frame=4)
    for number in range(100):
        feed.offer(str(number), partial(seen, number))
    feed.frame()
    feed.offer("x", lambda: seen(200))
    feed.frame()

    assert feed.one_of == 1


def test_an_event_that_went_wrong_is_shown_though_it_was_not_in_the_sample() -> None:
    feed = Feed(kept_a_frame=4)
    for number in range(100):
        feed.offer(str(number), partial(seen, number))
        settle(feed, number, "error" if number == 37 else "info")
    feed.frame()

    assert "37" in [each.id for each in feed.newest(Filter(least="error"))]


def test_an_event_is_settled_in_a_later_frame_and_keeps_the_worse_severity() -> None:
    feed = Feed()
    feed.offer("1", lambda: seen(1, "tool:doubted", "warning"))
    feed.frame()
    settle(feed, 1, "info")

    found = feed.find("1")

    assert found is not None
    assert (found.outcome, found.severity) == ("ok", "warning")


def test_what_was_recorded_comes_before_what_was_seen_since() -> None:
    feed = Feed()
    feed.offer("5", lambda: seen(5))
    feed.frame()
    feed.fill([seen(3), seen(4), seen(5, "x:y")])

    assert [each.id for each in feed.newest()] == ["5", "4", "3"]
    assert feed.find("5") == seen(5)


def test_events_are_filtered_by_a_glob_or_words_and_by_severity() -> None:
    call = Seen(at=AT, name="model:call", id="1", agent="Clerk", severity="warning")

    assert Filter("model:*").wants(call)
    assert Filter("clerk").wants(call)
    assert Filter("MODEL").wants(call)
    assert Filter("", "warning").wants(call)
    assert not Filter("tool:*").wants(call)
    assert not Filter("", "error").wants(call)


def test_what_the_asker_did_wrong_is_no_error_of_the_daemon() -> None:
    assert severity_of("model:call", "failed") == "error"
    assert severity_of("model:call", "denied") == "warning"
    assert severity_of("workflow:failed", None) == "error"
    assert severity_of("tool:doubted", None) == "warning"
    assert severity_of("model:called", None) == "info"


# -- counts by the minute -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 20_000), st.integers(0, 9)), max_size=200))
def test_counts_are_right_and_bounded_in_whatever_order_they_come(
    added: list[tuple[float, int]],
) -> None:
    series = Series()
    for at, amount in added:
        series.add(at, amount)
    now = max((at for at, _ in added), default=0.0)

    minutes = series.minutes(now, 30)

    assert len(series) <= KEPT_MINUTES + MINUTE_S
    assert series.last_minute(now) == sum(n for at, n in added if int(at) > int(now) - MINUTE_S)
    first = now // MINUTE_S - 29
    assert sum(minutes) == sum(n for at, n in added if at // MINUTE_S >= first)


def test_a_day_of_counting_takes_no_more_room_than_two_hours() -> None:
    series = Series()
    for second in range(0, 86_400, 20):
        series.add(float(second))
    for second in range(600):
        series.add(86_400.0 + second)

    assert len(series) == KEPT_MINUTES + MINUTE_S
    assert series.last_minute(86_999.0) == MINUTE_S


def test_a_clock_that_was_set_back_does_not_stop_the_counting() -> None:
    series = Series()
    series.add(100_000.0)
    series.add(99_990.0)

    assert series.last_minute(100_000.0) == 2
    assert series.last_minute(99_990.0) == 1


@given(st.lists(st.floats(0, 1e9), max_size=40), st.integers(1, 5))
def test_every_value_above_nothing_can_be_seen_and_the_greatest_is_the_highest(
    values: list[float], height: int
) -> None:
    drawn = bars(values, height)

    assert [len(line) for line in drawn] == [len(values)] * height
    for at, value in enumerate(values):
        assert (drawn[-1][at] != " ") == (value > 0)
    if max(values, default=0) > 0:
        assert "█" in drawn[0]


def test_the_loads_of_agents_are_bounded() -> None:
    known = Known()
    call = ModelCalled(
        call_id="c",
        outcome="ok",
        model_asked="m",
        model="m",
        purpose="chat",
        usage=Usage(input_tokens=5, output_tokens=2),
        cost_usd=0.5,
    )

    for number in range(MAX_AGENT_LOADS + 5):
        known.called(1000.0, call, f"a{number}")

    assert known.tokens_of("a0", 1000.0) == 0
    assert known.tokens_of(f"a{MAX_AGENT_LOADS + 4}", 1000.0) == 7
    assert known.tokens.last_minute(1000.0) == 7 * (MAX_AGENT_LOADS + 5)
    assert known.cost.last_minute(1000.0) == 0.5 * (MAX_AGENT_LOADS + 5)


# -- agents, steps --------------------------------------------------------------------------------


def agent(name: str, parent: str | None = None, **more: str) -> Agent:
    fields = {"phase": "Ready", "desired": "running", **more}
    return Agent(name=name, definition="d", version=1, parent=parent, **fields)  # type: ignore[arg-type]  # they are its literals


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("abcdefghx"), max_size=8))
def test_every_agent_stands_in_the_tree_once_even_where_parents_run_in_a_circle(
    parents: dict[str, str],
) -> None:
    leaves = tree([agent(name, parent) for name, parent in parents.items()])

    assert sorted(leaf.agent.name for leaf in leaves) == sorted(parents)


def test_agents_stand_below_those_that_spawned_them() -> None:
    leaves = tree([agent("b", "a"), agent("a"), agent("c", "b"), agent("d", "a"), agent("e")])

    assert [leaf.stem + leaf.agent.name for leaf in leaves] == ["a", "├ b", "│ └ c", "└ d", "e"]


def test_an_agent_says_that_it_is_paused_or_why_it_failed() -> None:
    assert shown_phase(agent("a", desired="paused")) == "Paused"
    assert shown_phase(agent("a", desired="paused", phase="Busy")) == "Busy"
    assert shown_phase(agent("a", phase="Failed", reason="CrashLoopBackOff")) == "CrashLoopBackOff"


SECONDS = st.one_of(st.none(), st.integers(-100, 100))


@given(st.lists(st.tuples(SECONDS, SECONDS), max_size=10), st.integers(0, 50))
def test_every_step_has_a_bar_that_stays_on_the_line(
    steps: list[tuple[int | None, int | None]], width: int
) -> None:
    times = [
        tuple(None if s is None else AT + timedelta(seconds=s) for s in step) for step in steps
    ]

    drawn = spans(times, AT, width)  # type: ignore[arg-type]  # of two each

    assert len(drawn) == len(steps)
    for (start, _), span in zip(steps, drawn, strict=True):
        assert span.before + len(span.bar) <= max(width, 1)
        assert bool(span.bar) == (start is not None and width > 0)


# -- what is shown --------------------------------------------------------------------------------


@given(st.text())
def test_no_text_steers_the_terminal_or_hides_in_it(text: str) -> None:
    for shown in (texts.plain(text), texts.lines(text).replace("\n", "")):
        assert not [each for each in shown if unicodedata.category(each) in {"Cc", "Cs"}]
        assert not set(shown) & set("\u061c\u200e\u200f\u202a\u202b\u202e\u2066\u2069\u2028\ufeff")


def test_what_steers_is_made_visible() -> None:
    assert texts.plain("a\x1b[31mb\x07") == "a\\x1b[31mb\\x07"
    assert texts.plain("exe.\u202egnp") == "exe.\\u202egnp"
    assert texts.plain("two\r\nlines\t.") == "two lines ."
    assert texts.lines("two\nlines\x9b") == "two\nlines\\x9b"
    assert texts.compact({"a": "\x1b"}, 100) == '{"a":"\\u001b"}'


def test_numbers_are_short() -> None:
    assert [texts.count(n) for n in (0, 950, 12_400, 3_100_000)] == ["0", "950", "12.4k", "3.1M"]
    assert [texts.money(n) for n in (0, 0.00012, 0.034, 12.5)] == [
        "$0",
        "$0.0001",
        "$0.034",
        "$12.50",
    ]
    assert [texts.took(n) for n in (None, 2e-5, 0.0123, 4.56, 300)] == [
        "", "20 µs", "12.3 ms", "4.56 s", "5m 0s",
    ]  # fmt: skip
    assert [texts.span(n) for n in (0, 42, 7800, 90_000)] == ["0s", "42s", "2h 10m", "1d 1h"]


COLUMNS = st.lists(
    st.builds(
        Column,
        title=st.just("t"),
        width=st.integers(0, 20),
        share=st.integers(1, 5),
        least=st.integers(0, 100),
    ),
    min_size=1,
    max_size=8,
)


@given(COLUMNS, st.integers(0, 200))
def test_columns_that_share_a_width_fill_it_and_no_more(columns: list[Column], room: int) -> None:
    found = widths(columns, room)

    shown = [column for column in columns if column.least <= room]
    fixed = sum(column.width for column in shown) + GAP * (len(shown) - 1)
    assert len(found) == len(columns)
    if any(not column.width for column in shown):
        assert sum(found) + GAP * (len(shown) - 1) == max(room, fixed)


def test_a_text_is_cut_by_what_it_takes_on_the_screen() -> None:
    assert fitted("漢字漢字", 5) == "漢字…"
    assert fitted("ab", 4) == "ab  "
    assert fitted("12", 4, at_the_right=True) == "  12"
