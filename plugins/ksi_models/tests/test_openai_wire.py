import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from ksi_models.events import (
    FilePart,
    Message,
    ModelSettings,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSchema,
    Usage,
)
from ksi_models.fakes.openai_server import FakeOpenAI, Reply
from ksi_models.provider import Delta, ProviderError
from ksi_models.providers import openai_wire
from ksi_models.providers.openai_chunks import ChunkReader
from ksi_models.providers.openai_wire import OpenAIWire, Place
from ksi_models.providers.scripts import ScriptedCall
from ksi_models.tests.questions import ask, assistant, failing, keys, question, said, user

KEY = "sk-very-secret-0123456789"


@pytest.fixture
async def wire(fake_openai: FakeOpenAI) -> AsyncIterator[OpenAIWire]:
    made = OpenAIWire("fake", Place(base_url=fake_openai.url), keys())
    yield made
    await made.close()


async def collect(answer: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in answer]


def call(name: str, arguments: str, call_id: str = "") -> ScriptedCall:
    return ScriptedCall(name, Raw(msgspec.json.encode(arguments)), call_id)


# -- answers --------------------------------------------------------------------------------------


async def test_text_streams_and_ends_with_the_message_and_its_usage(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(Reply(text="Hello there, you!", chunks=4, cached_tokens=1, delay_s=0.005))

    deltas, end = await ask(wire, question("Say hello"))

    assert len(deltas) > 1
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "Hello there, you!"
    assert said(end) == "Hello there, you!"
    assert end.finish == "stop"
    assert end.usage == Usage(input_tokens=2, output_tokens=3, cache_read_tokens=1)
    assert end.served == "fake-large"


async def test_what_comes_in_one_read_leaves_as_one(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(Reply(thinking="a b c", text="one two three " * 50, chunks=500))

    deltas, end = await ask(wire, question())

    assert said(end) == "one two three " * 50
    assert len(deltas) < 500


async def test_what_comes_fast_is_gathered_and_none_of_it_lost(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    text = " ".join(map(str, range(200)))
    fake_openai.script(Reply(text=text, chunks=100, delay_s=0.001))

    deltas, end = await ask(wire, question("Count"))

    texts = [d.text for d in deltas if isinstance(d, TextDelta)]
    assert 1 < len(texts) < 60
    assert len(texts[0]) < len(text) / 20  # what comes first does not wait
    assert "".join(texts) == said(end) == text


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thinking_comes_apart_from_text(
    fake_openai: FakeOpenAI, wire: OpenAIWire, field: str
) -> None:
    fake_openai.script(Reply(thinking="Hm, well", thinking_field=field, text="Yes", chunks=3))

    deltas, end = await ask(wire, question())

    assert "".join(d.text for d in deltas if isinstance(d, ThinkingDelta)) == "Hm, well"
    assert end.message.parts == (ThinkingPart("Hm, well", f"openai-wire:{field}"), TextPart("Yes"))


async def test_thinking_goes_back_in_its_field_while_the_answer_goes_on(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    thought = Message(
        "assistant", (ThinkingPart("Hm", "openai-wire:reasoning"), ToolCallPart("1", "f", "{}"))
    )
    result = Message("tool", (ToolResultPart("1", "f", "r"),))

    await ask(wire, question("a", thought, result))
    await ask(wire, question("a", thought, result, "b"))

    first, second = (call.body["messages"] for call in fake_openai.calls)
    assert first[1]["reasoning"] == "Hm"
    assert "reasoning" not in second[1]


async def test_tool_calls_are_put_together_of_their_fragments(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    calls = (call("add", '{"a": 1, "b": 2}', "x"), call("now", "{}", "y"))
    fake_openai.script(Reply(text="Let me see", calls=calls, call_fragments=6))

    deltas, end = await ask(wire, question())

    fragments = [d for d in deltas if isinstance(d, ToolCallDelta)]
    assert "".join(d.arguments for d in fragments if d.index == 0) == '{"a": 1, "b": 2}'
    assert {(d.index, d.id, d.name) for d in fragments} == {(0, "x", "add"), (1, "y", "now")}
    assert end.message.parts[1:] == (
        ToolCallPart("x", "add", '{"a": 1, "b": 2}'),
        ToolCallPart("y", "now", "{}"),
    )
    assert end.finish == "tool_calls"


async def test_broken_arguments_are_handed_on_as_they_are(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(Reply(calls=(call("add", '{"a": 1, "b'),)))

    _, end = await ask(wire, question())

    assert end.message.parts == (ToolCallPart("call_fake_0", "add", '{"a": 1, "b'),)


def events(*deltas: dict[str, Any], finish: str = "tool_calls") -> str:
    chunks: list[Any] = [{"choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    lines = [b"data: " + msgspec.json.encode(chunk) for chunk in chunks]
    return b"\n\n".join([*lines, b"data: [DONE]", b""]).decode()


def fragment(index: int | None, call_id: str | None, name: str | None, arguments: Any) -> Any:
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": call_id, "function": function}]}


@pytest.mark.parametrize(
    "deltas",
    [
        [fragment(0, "1", "f", "{}"), fragment(0, "2", "g", "{}")],  # one index for all
        [fragment(None, "1", "f", "{}"), fragment(None, "2", "g", "{}")],  # none at all
        [fragment(None, "1", "f", ""), fragment(None, None, None, "{}"), fragment(1, "2", "g", {})],
        [fragment(0, "1", "f", "{"), fragment(0, "1", "f", "}"), fragment(1, "2", "g", "{}")],
        [fragment(0, "1", None, ""), fragment(0, "", "f", "{}"), fragment(1, "2", "g", "{}")],
        [fragment(3, "1", "f", "{}"), fragment(7, "2", "g", "{}")],
    ],
)
async def test_calls_are_told_apart_however_a_server_numbers_them(
    fake_openai: FakeOpenAI, wire: OpenAIWire, deltas: list[Any]
) -> None:
    reader = ChunkReader("fake", 1000)
    for payload in events(*deltas).encode().split(b"\n\n"):
        if payload:
            reader.read(payload.removeprefix(b"data: "))

    assert reader.end().message.parts == (
        ToolCallPart("1", "f", "{}"),
        ToolCallPart("2", "g", "{}"),
    )


async def test_a_server_that_does_not_stream_is_understood(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    reply = Reply(text="Hi", thinking="Hm", calls=(call("f", "{}", "1"),), stream=False)
    fake_openai.script(reply)

    deltas, end = await ask(wire, question("a"))

    assert deltas == [ThinkingDelta("Hm"), TextDelta("Hi"), ToolCallDelta(0, "1", "f", "{}")]
    assert end.usage is not None
    assert end.finish == "tool_calls"


async def test_without_usage_none_is_told(fake_openai: FakeOpenAI, wire: OpenAIWire) -> None:
    fake_openai.script(Reply(text="Hi", usage=False))

    _, end = await ask(wire, question())

    assert end.usage is None


@pytest.mark.parametrize(
    ("told", "finish"),
    [("length", "length"), ("content_filter", "content_filter"), ("odd", "other")],
)
async def test_why_an_answer_ended_is_told(
    fake_openai: FakeOpenAI, wire: OpenAIWire, told: str, finish: str
) -> None:
    fake_openai.script(Reply(text="Hi", finish=told))

    _, end = await ask(wire, question())

    assert end.finish == finish


# -- questions ------------------------------------------------------------------------------------


async def test_a_conversation_is_written_as_the_server_wants_it(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    tool = ToolSchema("add", "Adds.", {"type": "object"})
    asked = question(
        Message("user", (TextPart("See"), FilePart("image/png", b"\x89P", name="x.png"))),
        Message("assistant", (TextPart("Well"), ToolCallPart("1", "add", '{"a": 1'))),
        Message("tool", (ToolResultPart("1", "add", "broken", is_error=True),)),
        system="Be brief.",
        tools=(tool,),
        settings=ModelSettings(
            temperature=0.5, max_tokens=9, stop=("x",), tool_choice="required", extra={"user": "u"}
        ),
        output_schema={"type": "object"},
    )

    await ask(wire, asked)

    body = fake_openai.calls[0].body
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVA="}},
            ],
        },
        {
            "role": "assistant",
            "content": "Well",
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"invalid":"{\\"a\\": 1"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "broken"},
    ]
    assert body["tools"][0]["function"]["name"] == "add"
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.5, 9, ["x"])
    assert (body["tool_choice"], body["user"]) == ("required", "u")
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


async def test_what_a_server_refuses_is_left_out_from_then_on(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(
        Reply(status=400, error="unknown field stream_options"),
        Reply(status=400, error="use 'max_completion_tokens' instead"),
        Reply(text="Hi", times=2),
    )
    asked = question(settings=ModelSettings(max_tokens=5))

    await ask(wire, asked)
    await ask(wire, asked)

    assert len(fake_openai.calls) == 4
    assert "stream_options" not in fake_openai.calls[3].body
    assert fake_openai.calls[3].body["max_completion_tokens"] == 5


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=401, error="no"), "login"),
        (Reply(status=403, error="no"), "login"),
        (Reply(status=404, error="no"), "not_found"),
        (Reply(status=400, error="The model `x` does not exist"), "not_found"),
        (Reply(status=400, error="odd"), "invalid"),
        (Reply(status=400, error="maximum context length is 8192 tokens"), "too_long"),
        (Reply(status=400, error="x", error_code="context_length_exceeded"), "too_long"),
        (Reply(status=500, error="exceeds the available context size"), "too_long"),
        (Reply(status=413, error="x"), "too_long"),
        (Reply(status=400, error="blocked by our content policy"), "refused"),
        (Reply(status=402, error="x"), "refused"),
        (Reply(status=429, error="x"), "rate_limited"),
        (Reply(status=429, error="x", error_code="insufficient_quota"), "refused"),
        (Reply(status=500, error="x"), "server"),
        (Reply(status=503, error="x"), "overloaded"),
        (Reply(status=529, error="x"), "overloaded"),
        (Reply(status=502, body="<html>Bad gateway</html>"), "server"),
        (Reply(fault="cut", text="a b c", chunks=3), "cut_off"),
        (Reply(fault="reset", text="a b c", chunks=3), "cut_off"),
        (Reply(fault="malformed", text="a b c", chunks=3), "malformed"),
        (Reply(fault="invalid_utf8", text="a b c", chunks=3), "malformed"),
        (Reply(body='{"choices":', stream=False), "malformed"),
        (Reply(body="{}", stream=False), "cut_off"),
        (Reply(body="[" * 100_000, stream=False), "malformed"),
        (Reply(fault="page"), "invalid"),
        (Reply(fault="error_in_stream", error="Overloaded", text="a b"), "overloaded"),
        (Reply(fault="error_in_stream", error="Rate limit reached", text="a b"), "rate_limited"),
        (Reply(fault="error_in_stream", error="it broke", text="a b"), "server"),
        (Reply(status=200, body='{"error": {"message": "CUDA"}}'), "server"),
        (Reply(status=307, body=""), "invalid"),
    ],
)
async def test_each_fault_has_its_kind(
    fake_openai: FakeOpenAI, wire: OpenAIWire, reply: Reply, kind: str
) -> None:
    fake_openai.script(reply)

    error = await failing(wire, question())

    assert error.kind == kind
    assert "fake" in error.message


async def test_what_came_before_a_cut_was_streamed(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(Reply(fault="cut", text="one two three", chunks=3))
    answer = wire.stream(question())

    first = await anext(answer)
    with pytest.raises(ProviderError, match="broke its answer off"):
        await collect(answer)

    assert isinstance(first, TextDelta)


async def test_an_answer_that_says_why_it_ended_needs_no_more(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(Reply(fault="cut_at_end", text="Hi"))

    _, end = await ask(wire, question())

    assert said(end) == "Hi"


@pytest.mark.parametrize("told", ["7", "7.0"])
async def test_seconds_to_wait_are_told(
    fake_openai: FakeOpenAI, wire: OpenAIWire, told: str
) -> None:
    fake_openai.script(Reply(status=429, retry_after=told))

    assert (await failing(wire, question())).retry_after_s == 7.0


async def test_a_date_to_wait_for_is_told_in_seconds(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    then = datetime.now(UTC) + timedelta(seconds=60)
    fake_openai.script(Reply(status=429, retry_after=format_datetime(then, usegmt=True)))

    error = await failing(wire, question())

    assert error.retry_after_s is not None
    assert 50 < error.retry_after_s <= 60


@pytest.mark.parametrize("told", ["soon", "", "nan", "Fri, 99 Foo"])
async def test_a_time_to_wait_that_is_none_is_left_out(
    fake_openai: FakeOpenAI, wire: OpenAIWire, told: str
) -> None:
    fake_openai.script(Reply(status=429, retry_after=told))

    assert (await failing(wire, question())).retry_after_s is None


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        ("huge", "answer_too_long", "max_answer_bytes"),
        ("huge_line", "malformed", "more than"),
        ("endless_comments", "malformed", "more than"),
    ],
)
async def test_an_answer_without_end_is_ended(
    fake_openai: FakeOpenAI, fault: Any, kind: str, told: str
) -> None:
    place = Place(base_url=fake_openai.url, max_answer_bytes=200_000)
    wire = OpenAIWire("fake", place, keys())
    fake_openai.script(Reply(fault=fault, text="a b"))

    error = await failing(wire, question())
    await fake_openai.until_idle()

    assert error.kind == kind
    assert told in error.message
    await wire.close()


async def test_a_server_that_is_not_there_is_told(unused_port: int) -> None:
    wire = OpenAIWire("mine", Place(base_url=f"http://user:pw@127.0.0.1:{unused_port}/v1"), keys())

    error = await failing(wire, question())

    assert error.kind == "network"
    assert "does it run?" in error.message
    assert "pw" not in error.message
    await wire.close()


@pytest.mark.parametrize("url", ["not a url", "ftp://x/v1", "http://", "http://[::1"])
async def test_a_base_url_that_is_none_is_told(url: str) -> None:
    wire = OpenAIWire("mine", Place(base_url=url), keys())

    error = await failing(wire, question())

    assert error.kind in ("invalid", "network")
    await wire.close()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


# -- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["stall_first", "stall_middle"])
async def test_a_call_that_is_given_up_is_given_up_at_the_server(
    fake_openai: FakeOpenAI, wire: OpenAIWire, fault: Any
) -> None:
    fake_openai.script(Reply(fault=fault, text="a b c", chunks=3))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ask(wire, question())

    async with asyncio.timeout(5):
        await fake_openai.until_idle()
    assert (await ask(wire, question()))[1].finish == "stop"


async def test_closing_the_stream_ends_the_request(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(Reply(fault="stall_middle", text="a b c", chunks=3))

    async with aclosing(wire.stream(question())) as answer:
        await anext(answer)

    async with asyncio.timeout(5):
        await fake_openai.until_idle()


async def test_a_connection_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_wire, "END_TIMEOUT_S", 10.0)  # however busy the machine is
    opened = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        chunk = events({"content": "Hi"}, finish="stop").encode()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
                writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                await asyncio.sleep(0.002)  # the end comes in a packet of its own
                writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire = OpenAIWire("mine", Place(base_url=f"http://127.0.0.1:{port}/v1"), keys())

    for _ in range(3):
        await ask(wire, question())

    assert opened == 1
    await wire.close()
    server.close()


# -- keys -----------------------------------------------------------------------------------------


async def test_a_key_is_sent_and_never_told(fake_openai: FakeOpenAI) -> None:
    fake_openai.key = "another"
    wire = OpenAIWire(
        "openai", Place(base_url=fake_openai.url, key_of="openai"), keys(OPENAI_API_KEY=KEY)
    )

    error = await failing(wire, question())

    assert fake_openai.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert error.kind == "login"
    assert KEY not in str(error)
    assert "Incorrect API key" in error.message
    await wire.close()


async def test_a_key_that_nobody_knows_is_not_told_either(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    fake_openai.script(Reply(status=401, error="bad key sk-proj-abcdefgh12345 given"))

    assert "abcdefgh" not in (await failing(wire, question())).message


async def test_without_a_key_nothing_is_sent_where_one_is_needed(fake_openai: FakeOpenAI) -> None:
    place = Place(base_url=fake_openai.url, key_of="openai", needs_key=True)
    wire = OpenAIWire("openai", place, keys())

    error = await failing(wire, question())

    assert error.kind == "login"
    assert fake_openai.requests == []
    assert await wire.why_not() is not None


# -- what else there is ---------------------------------------------------------------------------


async def test_models_are_listed(fake_openai: FakeOpenAI, wire: OpenAIWire) -> None:
    assert [model.name for model in await wire.models()] == ["fake-large", "fake-small"]


async def test_texts_become_vectors_in_their_order(
    fake_openai: FakeOpenAI, wire: OpenAIWire
) -> None:
    vectors, usage = await wire.embed("fake-embed", ("aaa", "bbb ccc"))

    assert vectors[0][0] > vectors[1][0]
    assert usage == Usage(input_tokens=3)


async def test_a_script_in_a_message_is_followed(fake_openai: FakeOpenAI, wire: OpenAIWire) -> None:
    script = user('{"steps": [{"say": "one"}, {"say": "two"}]}')

    first = (await ask(wire, question(script)))[1]
    second = (await ask(wire, question(script, assistant("one"))))[1]

    assert (said(first), said(second)) == ("one", "two")
