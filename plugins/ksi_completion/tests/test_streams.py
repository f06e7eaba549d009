"""What turns say, in memory: offsets, restarts, and followers of any speed."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from ksi_completion.events import (
    StreamRestarted,
    StreamStatus,
    StreamStep,
    StreamText,
    StreamThinking,
    StreamToolResult,
)
from ksi_completion.following import passed_on
from ksi_completion.streams import Live, Position
from ksi_models.events import Usage

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.text("abc", min_size=1, max_size=5)),
        st.tuples(st.just("thinking"), st.text("xyz", min_size=1, max_size=5)),
        st.tuples(st.just("single"), st.just("")),
        st.tuples(st.just("restart"), st.just("")),
        st.tuples(st.just("step"), st.just("")),
        st.tuples(st.just("read"), st.just("")),
    ),
    max_size=60,
)


class Reader:
    """A follower that keeps what it was told, as a client would."""

    def __init__(self) -> None:
        self.position = Position()
        self.units: list[Any] = []
        self.attempts: list[int] = []

    def take(self, chunk: Any) -> None:
        """Take a chunk, and check that it fits what came before."""
        if isinstance(chunk, StreamStatus):
            return
        self.attempts.append(chunk.attempt)
        if isinstance(chunk, StreamRestarted):
            assert chunk.offset < len(self.units)
            del self.units[chunk.offset :]
            return
        assert chunk.offset == len(self.units)
        if isinstance(chunk, StreamText | StreamThinking):
            self.units += list(chunk.text)
        else:
            self.units.append(type(chunk))


def result_at(live: Live) -> StreamToolResult:
    return StreamToolResult(
        attempt=live.attempt, offset=live.end, call_id="c", name="n", content=""
    )


def apply(live: Live, kept: list[Any], what: str, text: str) -> None:
    """Do something to a stream, and to the list of units that it should be."""
    if what in ("text", "thinking"):
        live.say(StreamText if what == "text" else StreamThinking, text)
        kept += list(text)
    elif what == "single":
        live.add(result_at(live))
        kept.append(StreamToolResult)
    elif what == "restart":
        del kept[live.base :]
        live.restart(live.attempt + 1, "it broke off")
    elif what == "step":
        live.open_step(live.end, live.attempt)


@given(OPERATIONS)
@example(
    [
        *(("text", "a"), ("read", ""), ("restart", ""), ("text", "a")),
        *(("step", ""), ("restart", ""), ("read", "")),
    ]
)
def test_a_follower_has_in_the_end_what_was_said_whenever_it_reads(
    operations: list[tuple[str, str]],
) -> None:
    live, reader, late = Live("r", 1_000_000), Reader(), Reader()
    kept: list[Any] = []

    for what, text in operations:
        apply(live, kept, what, text)
        if what == "read":
            for chunk in live.read(reader.position):
                reader.take(chunk)
    for each in (reader, late):
        for chunk in live.read(each.position):
            each.take(chunk)

    assert reader.units == late.units == kept
    assert reader.attempts == sorted(reader.attempts)
    assert live.end == len(kept)


@given(OPERATIONS, st.data())
def test_what_another_daemon_hands_on_comes_to_the_same_from_any_offset(
    operations: list[tuple[str, str]], data: st.DataObject
) -> None:
    live = Live("r", 1_000_000)
    kept: list[Any] = []
    handed: list[Any] = []
    relay = Position()
    for what, text in operations:
        apply(live, kept, what, text)
        handed += live.read(relay)
    reader = Reader()
    if live.attempt == 1:  # where something was void, who joins late reads the conversation first
        reader.units = list(kept[: data.draw(st.integers(0, len(kept)))])
        reader.position = Position(len(reader.units), 1)

    for chunk in handed:
        for passed in passed_on(chunk, reader.position):
            reader.take(passed)

    assert reader.units == kept


def test_only_what_is_in_the_conversation_is_forgotten() -> None:
    live = Live("r", 10)
    for _ in range(3):
        live.say(StreamText, "0123456789")
        live.add(StreamStep(attempt=1, offset=live.end, model="m", usage=Usage(), cost_usd=None))
        live.open_step(live.end, 1)
    live.say(StreamText, "x" * 100)

    assert live.first > 0
    assert live.first <= live.base
    (chunk,) = list(live.read(Position(live.base)))
    assert isinstance(chunk, StreamText)
    assert chunk.text == "x" * 100


def test_text_that_gathers_is_one_chunk() -> None:
    live, position = Live("r", 1000), Position()
    for word in ("one ", "two ", "three"):
        live.say(StreamText, word)

    (chunk,) = list(live.read(position))

    assert chunk == StreamText(attempt=1, offset=0, text="one two three")
    assert list(live.read(position)) == []
