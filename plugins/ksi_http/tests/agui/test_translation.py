"""What a turn says, as AG-UI has it: whole, cut anywhere and resumed, made anew in the middle."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ksi_client import turns as c
from ksi_daemon.protocol import InvalidData
from ksi_http.agui import events as a
from ksi_http.agui.translation import Place, Resumption, Sent, Translation, read_place
from ksi_http.tests.agui.protocol import check_event

RUN = "tenant:5fa2"
HISTORY = {"id": "u1", "role": "user", "content": "hello"}

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
texts = st.lists(st.tuples(st.sampled_from("tr"), words), max_size=4)
steps = st.tuples(texts, st.integers(0, 3))


class Client:
    """A front end: keeps the messages that it is told, and breaks where the protocol is broken."""

    def __init__(self) -> None:
        self.messages: dict[str, dict[str, Any]] = {"u1": dict(HISTORY)}
        self.open: dict[tuple[str, str], None] = {}
        self.last: Place | None = None

    def take(self, sent: Iterable[Sent]) -> None:
        for each in sent:
            event = json.loads(msgspec.json.encode(each.event))
            check_event(event)
            getattr(self, event["type"].lower(), self.passed)(event)
            if each.place is not None:
                self.last = read_place(str(each.place))

    def passed(self, event: dict[str, Any]) -> None:
        assert event["type"] in ("CUSTOM", "STATE_SNAPSHOT")

    def opened(self, kind: str, name: str) -> None:
        assert (kind, name) not in self.open
        self.open[kind, name] = None

    def closed(self, kind: str, name: str) -> None:
        del self.open[kind, name]

    def step_started(self, event: dict[str, Any]) -> None:
        self.opened("step", event["stepName"])

    def step_finished(self, event: dict[str, Any]) -> None:
        self.closed("step", event["stepName"])

    def text_message_start(self, event: dict[str, Any]) -> None:
        self.opened("text", event["messageId"])
        self.message(event["messageId"], event["role"])

    def text_message_content(self, event: dict[str, Any]) -> None:
        assert ("text", event["messageId"]) in self.open
        self.messages[event["messageId"]]["content"] += event["delta"]

    def text_message_end(self, event: dict[str, Any]) -> None:
        self.closed("text", event["messageId"])

    def reasoning_start(self, event: dict[str, Any]) -> None:
        self.opened("span", event["messageId"])

    def reasoning_message_start(self, event: dict[str, Any]) -> None:
        self.opened("reasoning", event["messageId"])
        self.message(event["messageId"], event["role"])

    def reasoning_message_content(self, event: dict[str, Any]) -> None:
        assert ("reasoning", event["messageId"]) in self.open
        self.messages[event["messageId"]]["content"] += event["delta"]

    def reasoning_message_end(self, event: dict[str, Any]) -> None:
        self.closed("reasoning", event["messageId"])

    def reasoning_end(self, event: dict[str, Any]) -> None:
        self.closed("span", event["messageId"])

    def tool_call_start(self, event: dict[str, Any]) -> None:
        self.opened("call", event["toolCallId"])
        bearer = self.message(event["parentMessageId"], "assistant")
        bearer.setdefault("toolCalls", []).append([event["toolCallId"], ""])

    def tool_call_args(self, event: dict[str, Any]) -> None:
        assert ("call", event["toolCallId"]) in self.open

    def tool_call_end(self, event: dict[str, Any]) -> None:
        self.closed("call", event["toolCallId"])

    def tool_call_result(self, event: dict[str, Any]) -> None:
        self.message(event["messageId"], "tool")["content"] = event["content"]

    def messages_snapshot(self, event: dict[str, Any]) -> None:
        self.messages = {each["id"]: each for each in event["messages"]}

    def message(self, name: str, role: str) -> dict[str, Any]:
        return self.messages.setdefault(name, {"id": name, "role": role, "content": ""})

    def seen(self) -> list[tuple[str, str, int]]:
        return told(self.messages.values())


def told(messages: Iterable[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """Return the messages without their ids; that a model said nothing is no message."""
    shown = [(each["role"], each["content"], len(each.get("toolCalls", ()))) for each in messages]
    return [each for each in shown if each[1] or each[2] or each[0] == "tool"]


def translation() -> Translation:
    """Make one whose snapshot is of all its own messages."""

    def snapshot() -> a.MessagesSnapshot:
        said = (each.as_input() for each in made.messages)
        return a.MessagesSnapshot(messages=(HISTORY, *said))

    made = Translation(RUN, snapshot)
    return made


def stream(said: list[tuple[list[tuple[str, str]], int]], attempts: list[int]) -> list[Any]:
    """Return a turn's stream, each text of it in one chunk."""
    chunks: list[Any] = []
    at = 0
    for number, (parts, calls) in enumerate(said):
        attempt = attempts[number]
        for kind, text in parts:
            made = c.TextChunk if kind == "t" else c.ThinkingChunk
            chunks.append(made(attempt=attempt, offset=at, text=text))
            at += len(text)
        ids = [f"{RUN}:{number + 1}:{index}" for index in range(calls)]
        for name in ids:
            chunks.append(
                c.ToolCallChunk(
                    attempt=attempt, offset=at, call_id=name, name="look", arguments="{}"
                )
            )
            at += 1
        chunks.append(
            c.StepChunk(
                attempt=attempt,
                offset=at,
                model="m",
                usage=c.TokenUsage(input_tokens=2),
                cost_usd=None,
            )
        )
        at += 1
        for name in ids:
            chunks.append(
                c.ToolResultChunk(
                    attempt=attempt, offset=at, call_id=name, name="look", content="seen"
                )
            )
            at += 1
    return chunks


def cut(chunks: list[Any], sizes: Iterator[int]) -> Iterator[Any]:
    """Yield a stream in other pieces."""
    for chunk in chunks:
        if not isinstance(chunk, c.TextChunk | c.ThinkingChunk):
            yield chunk
            continue
        at, size = 0, next(sizes)
        while at < len(chunk.text):
            yield replace(chunk, text=chunk.text[at : at + size], offset=chunk.offset + at)
            at += size


def sizes_of(data: st.DataObject) -> Iterator[int]:
    while True:
        yield data.draw(st.integers(1, 12))


def whole(chunks: Iterable[Any]) -> list[Sent]:
    made = translation()
    return [sent for chunk in chunks for sent in made.feed(chunk)]


@given(said=st.lists(steps, max_size=4), data=st.data())
def test_a_stream_that_is_cut_anywhere_goes_on_without_a_gap(
    said: list[tuple[list[tuple[str, str]], int]], data: st.DataObject
) -> None:
    chunks = stream(said, [1] * len(said))
    sent = whole(cut(chunks, sizes_of(data)))
    client = Client()
    client.take(sent[: data.draw(st.integers(0, len(sent)))])

    resumption = Resumption(translation(), client.last or Place(0, 0))
    for chunk in cut(chunks, sizes_of(data)):
        client.take(resumption.feed(chunk))

    assert client.open == {}
    expected = Client()
    expected.take(whole(chunks))
    assert client.seen() == expected.seen()


@settings(max_examples=100)
@given(said=st.lists(steps, min_size=1, max_size=3), more=texts, data=st.data())
def test_what_is_made_anew_takes_the_place_of_what_is_void(
    said: list[tuple[list[tuple[str, str]], int]], more: list[tuple[str, str]], data: st.DataObject
) -> None:
    broken = data.draw(st.integers(0, len(said) - 1))  # the step in which the daemon died
    first = [*said[:broken], (more, 0)]
    before = stream(first, [1] * len(first))[:-1]  # no step that is void had an end
    base = sum(map(units_of, stream(said[:broken], [1] * broken)))
    after = stream(said, [1] * broken + [2] * (len(said) - broken))
    anew = [chunk for chunk in after if chunk.offset >= base]
    live = [*before, c.RestartedChunk(attempt=2, offset=base, why="it died"), *anew]
    sent = whole(cut(live, sizes_of(data)))
    client = Client()
    client.take(sent[: data.draw(st.integers(0, len(sent)))])

    resumption = Resumption(translation(), client.last or Place(0, 0))
    for chunk in cut(after, sizes_of(data)):
        client.take(resumption.feed(chunk))

    assert client.open == {}
    expected = Client()
    expected.take(whole(after))
    assert client.seen() == expected.seen()


def units_of(chunk: Any) -> int:
    return len(chunk.text) if isinstance(chunk, c.TextChunk | c.ThinkingChunk) else 1


def test_what_models_took_is_told_by_model() -> None:
    made = translation()
    for chunk in stream([([], 1), ([("t", "hi")], 0)], [1, 1]):
        list(made.feed(chunk))

    (usage,) = made.usage.values()
    assert usage == a.Usage(model="m", input_tokens=4, total_tokens=4)


def test_what_is_waited_for_is_told_in_passing() -> None:
    status = c.StatusChunk(waits_for="retry", message="the provider is away", delay_s=2.0)

    (sent,) = translation().feed(status)

    assert sent.place is None
    assert isinstance(sent.event, a.Custom)
    assert sent.event.value["waitsFor"] == "retry"


def test_what_a_sub_agent_says_bears_its_run() -> None:
    made = Translation(RUN, lambda: a.MessagesSnapshot(messages=()), owner="child")
    chunks = stream([([("r", "hm"), ("t", "hi")], 1)], [1])

    sent = [each.event for chunk in chunks for each in made.feed(chunk)]

    assert {each.subagent_run_id for each in sent} == {"child"}


@pytest.mark.parametrize(
    "text", ["", "7", "1.2.3", "1.2.3.~", "x.2.3.~run", "1.2.3.q1~run", "1.2.3.~a b", "1.2.3.~a\n"]
)
def test_a_place_that_was_never_sent_is_refused(text: str) -> None:
    with pytest.raises(InvalidData, match="begin without it"):
        read_place(text)
