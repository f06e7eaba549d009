"""Tests of what is sent where not all of a conversation fits."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_completion import tokens
from ksi_completion.fitting import (
    LEFT_OUT,
    NOTHING_LEFT,
    Item,
    TooLong,
    fit,
    shortened,
    water_level,
)
from ksi_models.events import (
    FilePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
)

IDS = st.sampled_from(["1", "2", "3"])
TEXTS = st.one_of(st.text(max_size=50), st.builds(lambda n: "some words " * n, st.integers(0, 800)))
PARTS: st.SearchStrategy[Part] = st.one_of(
    st.builds(TextPart, TEXTS),
    st.builds(ThinkingPart, TEXTS),
    st.builds(ToolCallPart, IDS, st.just("look"), TEXTS),
    st.builds(ToolResultPart, IDS, st.just("look"), TEXTS),
    st.builds(FilePart, st.sampled_from(["image/png", "text/plain"]), st.binary(max_size=200)),
)
MESSAGES = st.builds(
    Message,
    st.sampled_from(["user", "assistant", "tool"]),
    st.lists(PARTS, max_size=4).map(tuple),
)


def items_of(messages: list[Message], required: int = 1) -> list[Item]:
    """Number messages; the last of them are of the turn at hand."""
    first = len(messages) - required
    return [
        Item(
            number=place + 1,
            message=message,
            tokens=tokens.of_message(message),
            is_required=place >= first,
        )
        for place, message in enumerate(messages)
    ]


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def says(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


def unpaired(messages: tuple[Message, ...]) -> list[Any]:
    """Return the calls that are not answered right after them, and the results of no calls."""
    wrong: list[Any] = []
    waiting: list[str] = []
    for message in messages:
        if message.role != "tool":
            wrong += waiting
            waiting = []
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                waiting.append(part.id)
            elif isinstance(part, ToolResultPart):
                if message.role == "tool" and part.id in waiting:
                    waiting.remove(part.id)
                else:
                    wrong.append(part)
    return wrong + waiting


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGES, max_size=15), st.integers(0, 6), TEXTS, st.integers(60, 6000))
def test_whatever_was_said_what_is_sent_fits_and_is_sound(
    before: list[Message], after: int, asked: str, budget: int
) -> None:
    later = before[:after]
    messages = [*before, user(asked + "?"), *later]
    items = items_of(messages, required=len(later) + 1)

    try:
        fitted = fit(items, budget)
    except TooLong:
        assert budget < 1500  # with three calls of one message, and the notes in their place
        return

    assert fitted.tokens <= budget
    assert sum(map(tokens.of_message, fitted.messages)) <= fitted.tokens
    assert fitted.messages
    assert fitted.messages[0].role in ("user", "system")
    assert all(message.parts for message in fitted.messages)
    numbers = [unit.number for unit in fitted.units]
    assert numbers == sorted(set(numbers))
    users = [m for m in messages if m.role == "user" and any(map(_is_said, m.parts))]
    newest = max(n for n, m in enumerate(messages, 1) if m.role == "user" and m in users)
    assert newest in numbers
    same = not any(
        [p.id for p in m.parts if isinstance(p, ToolCallPart)].count(i) > 1
        for m in messages
        for i in "123"
    )
    if same:  # of two calls with one id nobody can tell which a result is of
        assert unpaired(fitted.messages) == []


def _is_said(part: Part) -> bool:
    return isinstance(part, TextPart | FilePart)


@settings(max_examples=100, deadline=None)
@given(st.lists(MESSAGES, max_size=10), st.integers(200, 4000))
def test_the_same_is_sent_for_the_same(before: list[Message], budget: int) -> None:
    items = items_of([*before, user("and now?")])

    assert fit(items, budget) == fit(items, budget)


def test_what_fits_is_sent_as_it_is() -> None:
    messages = [user("a"), says("b"), user("c")]

    fitted = fit(items_of(messages), 1000)

    assert fitted.messages == tuple(messages)
    assert fitted.trimmed == 0


def test_the_newest_are_kept() -> None:
    messages = [m for n in range(100) for m in (user(f"question {n}"), says("an answer " * 10))]

    fitted = fit(items_of([*messages, user("last")]), 400)

    assert fitted.messages[-1] == user("last")
    assert fitted.messages[-3] == user("question 99")
    assert fitted.messages[1:] == tuple([*messages, user("last")][-len(fitted.messages) + 1 :])
    assert 8 < len(fitted.messages) < 40


def test_one_oversized_message_is_shortened_and_leaves_room_for_others() -> None:
    messages = [user("first"), says("word " * 50_000), user("second"), says("ok"), user("third")]

    fitted = fit(items_of(messages), 2000)

    assert [m.role for m in fitted.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert fitted.trimmed == 1
    (part,) = fitted.messages[1].parts
    assert isinstance(part, TextPart)
    assert "characters left out" in part.text
    assert part.text.startswith("word word")
    assert part.text.endswith("word ")


def test_an_oversized_question_is_shortened_and_asked() -> None:
    fitted = fit(items_of([user("old"), user("begin " + "x y " * 50_000 + " end")]), 1000)

    (part,) = fitted.messages[-1].parts
    assert isinstance(part, TextPart)
    assert part.text.startswith("begin ")
    assert part.text.endswith(" end")
    assert 900 < fitted.tokens <= 1000


def test_a_turn_with_many_large_results_keeps_its_question_and_all_results_in_part() -> None:
    messages = [user("the question")]
    for n in range(20):
        messages.append(Message("assistant", (ToolCallPart(str(n), "look", "{}"),)))
        messages.append(Message("tool", (ToolResultPart(str(n), "look", "line\n" * 20_000),)))

    fitted = fit(items_of(messages, required=len(messages)), 8000)

    assert fitted.messages[0] == user("the question")
    assert len(fitted.messages) == 41
    assert fitted.tokens > 6000
    assert unpaired(fitted.messages) == []


def test_a_turn_of_very_many_steps_keeps_its_question_and_what_came_last() -> None:
    messages = [user("the question")]
    for n in range(500):
        messages.append(Message("assistant", (ToolCallPart(str(n), "look", "{}"),)))
        messages.append(Message("tool", (ToolResultPart(str(n), "look", "line\n" * 100),)))

    fitted = fit(items_of(messages, required=len(messages)), 4000)

    assert fitted.messages[0] == user("the question")
    assert fitted.messages[-1].parts[0].id == "499"  # type: ignore[union-attr]  # a result
    assert len(fitted.messages) > 10


def test_a_window_that_begins_in_the_middle_of_a_turn_says_so() -> None:
    messages = [user("word " * 300), says("b " * 30), says("c"), user("now")]

    fitted = fit(items_of(messages), 90)

    assert fitted.messages[0] == user(LEFT_OUT)
    assert fitted.messages[-1] == user("now")


def test_what_can_t_fit_is_told() -> None:
    with pytest.raises(TooLong):
        fit(items_of([user("much too long for that, and no part of it fits")]), 10)


def test_old_thoughts_are_not_sent_again_but_those_of_the_turn_are() -> None:
    thought = Message("assistant", (ThinkingPart("hm", "signature"), TextPart("so")))

    old = fit(items_of([user("a"), thought, user("b")]), 1000)
    new = fit(items_of([user("a"), thought], required=2), 1000)

    assert old.messages[1] == says("so")
    assert new.messages[1] == thought


def test_a_call_that_has_no_result_gets_one_that_says_so() -> None:
    asked = Message("assistant", tuple(ToolCallPart(i, "look", "{}") for i in "12"))
    one = Message("tool", (ToolResultPart("1", "look", "found"),))

    fitted = fit(items_of([user("a"), asked, one, user("b")]), 1000)

    added = fitted.messages[3]
    assert isinstance(added.parts[0], ToolResultPart)
    assert (added.parts[0].id, added.parts[0].is_error) == ("2", True)
    assert unpaired(fitted.messages) == []


@settings(max_examples=100, deadline=None)
@given(st.one_of(TEXTS, st.text(min_size=100, max_size=2000)), st.integers(3, 500))
def test_a_shortened_text_has_at_most_so_many_tokens(text: str, cap: int) -> None:
    short = shortened(text, cap)

    assert tokens.of_text(short) <= cap
    assert short in (text, NOTHING_LEFT) or "left out" in short


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(0, 5000))
def test_the_level_is_the_greatest_that_fits(sizes: list[int], budget: int) -> None:
    level = water_level(sizes, budget)

    assert sum(min(size, level) for size in sizes) <= budget
    if level < max(sizes):
        assert sum(min(size, level + 1) for size in sizes) > budget


def test_fitting_a_thousand_messages_takes_milliseconds() -> None:
    messages = [m for n in range(500) for m in (user(f"question {n}"), says("an answer " * 40))]
    items = items_of([*messages, user("last")])

    fitted = fit(items, 50_000)

    assert len(fitted.messages) > 500
    assert msgspec.json.encode(fitted.messages)
