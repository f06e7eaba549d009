"""Calls: what is tried again, what is streamed, what each leaves."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import (
    Busy,
    Denied,
    Failed,
    InvalidData,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_models.events import (
    MessageRange,
    ModelEmbed,
    ModelResponse,
    ModelRestarted,
    ModelSettings,
    ModelWaiting,
    TextDelta,
    ToolSchema,
    Usage,
)
from ksi_models.provider import Provider
from ksi_models.settings import ModelsSettings
from ksi_models.tests.kit import (
    Acting,
    Bench,
    context,
    fail,
    question,
    running,
    say,
    stall,
    text_of,
    until,
)
from ksi_postgres.database import Database

QUICK: dict[str, Any] = {"retry_first_s": 0.001, "retry_max_s": 0.01, "circuit_failures": 0}
Make = Callable[..., Bench]


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Make:
    """Make a bench with providers and settings."""

    def make(*providers: Provider, **settings: Any) -> Bench:
        return Bench(database, tmp_path, ModelsSettings(**{**QUICK, **settings}), *providers)

    return make


# -- the plain way --------------------------------------------------------------------------------


async def test_an_answer_is_streamed_and_ends_with_what_it_took(bench: Make) -> None:
    made = bench(Acting("openai"))

    chunks = await made.call("openai:gpt-5-mini")

    end = chunks[-1]
    assert text_of(chunks) == "hello world"
    assert isinstance(end, ModelResponse)
    assert (end.model_asked, end.model, end.attempts) == (
        "openai:gpt-5-mini",
        "openai:gpt-5-mini",
        1,
    )
    assert end.usage == Usage(input_tokens=10, output_tokens=5)
    assert end.cost_usd == pytest.approx((10 * 0.25 + 5 * 2) / 1e6)
    assert end.first_token_ms is not None
    assert end.first_token_ms <= end.latency_ms


async def test_the_provider_is_told_its_own_name_for_the_model(bench: Make) -> None:
    provider = Acting("local")
    made = bench(provider)

    await made.call("local:qwen3:8b", system="be brief", context=context("c1", run="r1"))

    asked = provider.asked[0]
    assert (asked.model, asked.system) == ("qwen3:8b", "be brief")
    assert (asked.conversation, asked.run, asked.tenant) == ("c1", "r1", "default")


async def test_no_call_gives_its_provider_tools_that_nobody_holds(bench: Make) -> None:
    provider = Acting("local")
    made = bench(provider)
    tools = {"tools": [{"type": "mcp", "server_url": "http://x"}], "web_search_options": {}}

    with pytest.raises(InvalidData, match="tools, web_search_options can't be passed on") as error:
        await made.call("local:qwen3", settings=ModelSettings(extra=tools))
    await made.call("local:qwen3", settings=ModelSettings(extra={"top_k": 9}))

    assert error.value.details == {"setting": "models.extra"}
    assert [asked.settings.extra for asked in provider.asked] == [{"top_k": 9}]


async def test_what_the_settings_allow_is_passed_on(bench: Make) -> None:
    provider = Acting("local")
    made = bench(provider, extra=("priority",))

    await made.call("local:qwen3", settings=ModelSettings(extra={"priority": 1}))
    with pytest.raises(InvalidData, match="did you mean priority"):
        await made.call("local:qwen3", settings=ModelSettings(extra={"priorty": 1}))

    assert len(provider.asked) == 1


async def test_each_call_leaves_a_row_before_its_answer_is_complete(bench: Make) -> None:
    made = bench(Acting("openai"))
    seen = MessageRange(conversation_id="c1", first=3, last=9, sha256="ab")
    rows = []

    with acting_as(context("c1", "helper", run="r1", user="ann")):
        call = made.calls.call(question("openai:gpt-5-mini", seen=seen, purpose="summary"))
        async with aclosing(call) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, ModelResponse):
                    rows = await made.rows()

    row = rows[0]
    assert (row["outcome"], row["model"], row["served"]) == ("ok", "openai:gpt-5-mini", "served-1")
    assert (row["conversation"], row["agent"], row["run"]) == ("c1", "helper", "r1")
    assert (row["on_behalf_of"], row["purpose"]) == ("ann", "summary")
    assert (row["input_tokens"], row["output_tokens"]) == (10, 5)
    assert (row["seen_conversation"], row["seen_first"], row["seen_last"]) == ("c1", 3, 9)
    assert row["seen_sha256"] == "ab"
    assert "hello" not in str(row)


async def test_messages_that_are_no_conversation_s_are_told_by_their_hash(bench: Make) -> None:
    made = bench(Acting("test"))

    for text in ("one", "two", "one"):
        await made.call("test/a", text=text)

    hashes = [row["seen_sha256"] for row in await made.rows()]
    assert hashes[0] == hashes[2] != hashes[1]
    assert len(hashes[0]) == 64


async def test_a_price_that_is_not_known_is_none_and_not_zero(bench: Make) -> None:
    made = bench(Acting("local"))

    end = await made.answer("local:qwen3")

    assert end.cost_usd is None
    assert (await made.rows())[0]["cost_usd"] is None


async def test_tokens_that_nobody_counted_are_estimated_and_said_to_be(bench: Make) -> None:
    made = bench(Acting("openai", say("x" * 400, usage=None)))

    end = await made.answer("openai:gpt-5-mini", text="y" * 4000)

    assert end.is_estimated
    assert end.usage.output_tokens == 100
    assert 1000 <= end.usage.input_tokens <= 1100


# -- trying again ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["rate_limited", "overloaded", "server", "network", "cut_off", "malformed"]
)
async def test_what_passes_with_time_is_tried_again(bench: Make, kind: str) -> None:
    provider = Acting("test", fail(kind), fail(kind), say("at last"))
    made = bench(provider)

    chunks = await made.call("test/a")

    assert text_of(chunks) == "at last"
    waits = [chunk for chunk in chunks if isinstance(chunk, ModelWaiting)]
    assert [wait.reason for wait in waits] == ["retry", "retry"]
    assert isinstance(chunks[-1], ModelResponse)
    assert chunks[-1].attempts == 3
    assert len(await made.rows()) == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("login", Denied),
        ("not_found", NotFound),
        ("too_long", InvalidData),
        ("refused", InvalidData),
        ("invalid", InvalidData),
    ],
)
async def test_what_does_not_pass_is_not_tried_again(
    bench: Make, kind: str, error: type[KsiError]
) -> None:
    provider = Acting("test", fail(kind, message="because"))
    made = bench(provider)

    with pytest.raises(error, match="test/a: because") as caught:
        await made.call("test/a")

    assert caught.value.details == {"kind": kind, "model": "test/a", "attempts": 1}
    assert len(provider.asked) == 1
    assert [(row["outcome"], row["error"]) for row in await made.rows()] == [("failed", kind)]


async def test_it_is_tried_so_often_and_no_more(bench: Make) -> None:
    provider = Acting("test", fail("server", message="broken"))
    made = bench(provider, max_attempts=3)

    with pytest.raises(Unavailable, match=r"broken \(after 3 attempts\)"):
        await made.call("test/a")

    assert len(provider.asked) == 3


async def test_waits_double_up_to_a_bound_and_are_drawn_by_lot(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        drawn.append((least, most))
        return most / 1000

    monkeypatch.setattr("random.uniform", draw)
    made = bench(Acting("test", fail("server")), max_attempts=6, retry_first_s=0.5, retry_max_s=3.0)

    with pytest.raises(Unavailable, match="6 attempts"):
        await made.call("test/a")

    assert drawn == [(0, 0.5), (0, 1.0), (0, 2.0), (0, 3.0), (0, 3.0)]


async def test_what_was_streamed_is_void_before_it_is_tried_again(bench: Make) -> None:
    made = bench(Acting("test", fail("cut_off", "half an ", "ans"), say("a whole answer")))

    chunks = await made.call("test/a")

    kinds = [type(chunk).__name__ for chunk in chunks]
    assert kinds == [
        "TextDelta",
        "TextDelta",
        "ModelRestarted",
        "ModelWaiting",
        "TextDelta",
        "ModelResponse",
    ]
    assert chunks[2] == ModelRestarted(2, "no")


async def test_what_a_broken_answer_took_is_counted_too(bench: Make) -> None:
    made = bench(Acting("openai", fail("cut_off", "x" * 400), say("fine")))

    end = await made.answer("openai:gpt-5-mini", text="y" * 4000)

    assert end.is_estimated
    assert end.usage.output_tokens == 105
    assert end.usage.input_tokens >= 1010


async def test_a_provider_s_wish_to_be_left_alone_is_heard_by_all_callers(bench: Make) -> None:
    provider = Acting("test", fail("rate_limited", after=0.2), say("now"))
    made = bench(provider)
    loop = asyncio.get_running_loop()
    started = loop.time()

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(made.call("test/a", context=context("a")))
        await until(lambda: made.lanes.of("test").slots.delay()[1])
        second = tasks.create_task(made.call("test/a", context=context("b")))

    assert loop.time() - started >= 0.2
    assert [c.delay_s for c in first.result() if isinstance(c, ModelWaiting)][:1] == [0.2]
    reasons = [c.reason for c in second.result() if isinstance(c, ModelWaiting)]
    assert reasons == ["rate"]


async def test_a_wish_that_is_too_long_is_passed_on_to_the_caller(bench: Make) -> None:
    made = bench(Acting("test", fail("rate_limited", after=3600.0)), retry_after_max_s=60.0)

    with pytest.raises(Busy) as caught:
        await made.call("test/a")

    assert caught.value.retry_after_s == 3600.0


async def test_what_a_provider_s_library_raises_is_told_without_its_text(
    bench: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(_: Any) -> AsyncGenerator[Any]:
        raise RuntimeError("key sk-secret-123 was refused")
        yield

    made = bench(Acting("test", act), providers={})
    made.keys._remember("sk-secret-123")

    with pytest.raises(Failed, match="failed with RuntimeError") as caught:
        await made.call("test/a")

    assert "sk-secret-123" not in str(caught.value.body)
    assert "sk-secret-123" not in str([record.__dict__ for record in caplog.records])
    assert "a provider broke" in caplog.text


# -- fall-backs -----------------------------------------------------------------------------------


async def test_the_next_model_is_asked_where_one_can_t_answer(bench: Make) -> None:
    made = bench(
        Acting("a", fail("login", message="no key")),
        Acting("b", say("from b")),
        aliases={"smart": ("a:one", "b:two")},
    )

    chunks = await made.call("smart")

    end = chunks[-1]
    assert isinstance(end, ModelResponse)
    assert (end.model_asked, end.model, end.attempts) == ("smart", "b:two", 2)
    waits = [chunk for chunk in chunks if isinstance(chunk, ModelWaiting)]
    assert [(wait.reason, wait.message) for wait in waits] == [
        ("fallback", "asking b:two: a:one: no key")
    ]


async def test_a_model_that_stands_in_and_calls_no_tools_is_offered_none(bench: Make) -> None:
    first, second = Acting("a", fail("login")), Acting("builtin")
    made = bench(first, second, fallbacks={"a:one": "builtin/extractive"})
    tools = (ToolSchema("look", "Look.", {"type": "object"}),)

    await made.call("a:one", tools=tools)
    await made.call("builtin/extractive", tools=tools)

    assert first.asked[0].tools == tools
    assert [question.tools for question in second.asked] == [(), tools]


async def test_one_that_fails_for_a_time_is_tried_before_the_next(bench: Make) -> None:
    first, second = Acting("a", fail("server")), Acting("b")
    made = bench(first, second, max_attempts=2, fallbacks={"a:one": "b:two"})

    await made.call("a:one")

    assert (len(first.asked), len(second.asked)) == (2, 1)


# -- time -----------------------------------------------------------------------------------------


async def test_a_first_token_that_does_not_come_names_its_setting(bench: Make) -> None:
    provider = Acting("test", stall())
    made = bench(provider, first_token_timeout_s=0.02, max_attempts=2)

    with pytest.raises(TimedOut, match="first_token_timeout_s") as caught:
        await made.call("test/a")

    assert caught.value.details is not None
    assert caught.value.details["kind"] == "stalled"
    assert (provider.closed, provider.running) == (2, 0)


async def test_a_pause_in_the_middle_has_a_limit_of_its_own(bench: Make) -> None:
    made = bench(
        Acting("test", stall("begun")),
        idle_timeout_s=0.02,
        first_token_timeout_s=60.0,
        max_attempts=1,
    )

    with pytest.raises(TimedOut, match="idle_timeout_s"):
        await made.call("test/a")


async def test_one_that_stalls_once_is_asked_again(bench: Make) -> None:
    made = bench(Acting("test", stall("half"), say("whole")), idle_timeout_s=0.02)

    chunks = await made.call("test/a")

    assert text_of(chunks) == "halfwhole"
    assert [type(chunk) for chunk in chunks[1:3]] == [ModelRestarted, ModelWaiting]


async def test_a_reader_that_takes_its_time_is_no_stall(bench: Make) -> None:
    made = bench(Acting("test", say("a", "b", "c")), idle_timeout_s=0.01)
    texts = []

    with acting_as(context()):
        async with aclosing(made.calls.call(question("test/a"))) as chunks:
            async for chunk in chunks:
                texts.append(chunk)
                await asyncio.sleep(0.03)

    assert isinstance(texts[-1], ModelResponse)
    assert texts[-1].attempts == 1


async def test_a_call_s_own_time_is_over_though_something_comes(bench: Make) -> None:
    async def drip(_: Any) -> AsyncGenerator[Any]:
        while True:
            yield TextDelta("drop")
            await asyncio.sleep(0.005)

    made = bench(Acting("test", drip))

    with pytest.raises(TimedOut, match="timeout_s"):
        await made.call("test/a", timeout_s=0.05)

    rows = await made.rows()
    assert [(row["outcome"], row["error"]) for row in rows] == [("failed", "call_timeout")]


# -- being cancelled ------------------------------------------------------------------------------


async def test_a_cancelled_call_ends_the_provider_s_work_and_leaves_a_row(bench: Make) -> None:
    provider = Acting("test", stall("begun"))
    made = bench(provider)

    async with running(made):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(made.call("test/a"))
            await provider.begun.wait()
            task.cancel()
        await until(lambda: not made.recorder.waiting)
    rows = await made.rows()

    assert (provider.running, provider.closed) == (0, 1)
    assert [row["outcome"] for row in rows] == ["cancelled"]
    assert made.lanes.of("test").slots.running == 0


async def test_a_reader_that_goes_away_ends_the_provider_s_work(bench: Make) -> None:
    provider = Acting("test", stall("begun"))
    made = bench(provider)

    with acting_as(context()):
        async with aclosing(made.calls.call(question("test/a"))) as chunks:
            assert await anext(chunks) == TextDelta("begun")

    assert provider.running == 0
    assert made.lanes.of("test").slots.running == 0
    assert [told.outcome for told in made.called] == ["cancelled"]
    assert made.called[0].is_estimated


# -- bounds ---------------------------------------------------------------------------------------


async def test_an_answer_that_does_not_end_is_broken_off(bench: Make) -> None:
    async def flood(_: Any) -> AsyncGenerator[Any]:
        while True:
            yield TextDelta("x" * 100)

    provider = Acting("test", flood)
    made = bench(provider, max_answer_bytes=1000)

    with pytest.raises(Failed, match="max_answer_bytes"):
        await made.call("test/a")

    assert provider.running == 0


async def test_a_stream_without_an_end_is_one_that_broke_off(bench: Make) -> None:
    async def unfinished(_: Any) -> AsyncGenerator[Any]:
        yield TextDelta("and")

    made = bench(Acting("test", unfinished), max_attempts=1)

    with pytest.raises(Unavailable, match="broke off"):
        await made.call("test/a")


async def test_a_call_without_messages_is_refused(bench: Make) -> None:
    made = bench(Acting("test"))

    with pytest.raises(InvalidData, match="messages"):
        await made.call("test/a", messages=())


# -- the circuit ----------------------------------------------------------------------------------


async def test_a_provider_that_fails_time_and_again_is_left_alone_until_a_probe_finds_it(
    bench: Make,
) -> None:
    provider = Acting("test", *[fail("server")] * 3, say("back"))
    made = bench(provider, circuit_failures=3, circuit_open_s=0.1, max_attempts=10)

    results = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            call = made.call("test/a", context=context(f"c{number}"))
            results.append(tasks.create_task(call))

    reasons = [c.reason for r in results for c in r.result() if isinstance(c, ModelWaiting)]
    assert "circuit" in reasons
    assert {type(r.result()[-1]) for r in results} == {ModelResponse}
    assert made.lanes.of("test").circuit.state == "closed"


async def test_while_one_is_left_alone_the_next_model_is_asked_at_once(bench: Make) -> None:
    first, second = Acting("a", fail("server")), Acting("b")
    made = bench(
        first,
        second,
        circuit_failures=2,
        circuit_open_s=60.0,
        max_attempts=2,
        fallbacks={"a:one": "b:two"},
    )
    await made.call("a:one")

    chunks = await made.call("a:one")

    assert (len(first.asked), len(second.asked)) == (2, 2)
    assert isinstance(chunks[0], ModelWaiting)
    assert chunks[0].reason == "fallback"


async def test_nobody_waits_for_ever_for_one_that_is_left_alone(bench: Make) -> None:
    made = bench(
        Acting("test", fail("server", message="down")),
        circuit_failures=1,
        circuit_open_s=60.0,
        circuit_timeout_s=0.02,
        max_attempts=1,
    )
    with pytest.raises(Unavailable, match="down"):
        await made.call("test/a")

    with pytest.raises(Unavailable, match=r"models\.circuit_timeout_s") as caught:
        await made.call("test/a")

    assert caught.value.retry_after_s == pytest.approx(60.0, abs=5.0)


# -- vectors --------------------------------------------------------------------------------------


async def test_texts_become_vectors_and_leave_a_row(bench: Make) -> None:
    made = bench(Acting("test"), embed_model="test/small")

    with acting_as(context()):
        answer = await made.calls.embed(ModelEmbed(texts=("a", "bcd")))

    assert answer.vectors == ((1.0,), (3.0,))
    assert answer.model == "test/small"
    assert [(r["purpose"], r["input_tokens"]) for r in await made.rows()] == [("embed", 2)]


async def test_texts_that_are_too_long_together_are_refused(bench: Make) -> None:
    made = bench(Acting("test"), embed_model="test/small", max_embed_bytes=5)

    with acting_as(context()), pytest.raises(InvalidData, match="max_embed_bytes"):
        await made.calls.embed(ModelEmbed(texts=("äää",)))
