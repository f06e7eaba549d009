"""What calls took: rows, sums, and what happens to them when things go wrong."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import InvalidData, Unavailable
from ksi_models.events import ModelUsage, ModelUsed, Usage
from ksi_models.provider import Answered
from ksi_models.recorder import Recorder
from ksi_models.settings import ModelsSettings
from ksi_models.store import CallRow, Store
from ksi_models.tests.kit import (
    Acting,
    Bench,
    context,
    fail,
    running,
    said,
    say,
    stall,
    until,
)
from ksi_postgres.database import Database

Make = Callable[..., Bench]


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Make:
    """Make a bench with providers and settings."""

    def make(*providers: Any, **settings: Any) -> Bench:
        return Bench(database, tmp_path, ModelsSettings(**settings), *providers)

    return make


async def used(bench: Bench, *by: Any, **asked: Any) -> ModelUsed:
    """Ask what calls took."""
    with acting_as(asked.pop("context", context())):
        return await bench.handlers.usage(ModelUsage(by=by, **asked))


# -- sums -----------------------------------------------------------------------------------------


async def test_calls_are_summed_by_what_is_asked_for(bench: Make) -> None:
    made = bench(Acting("openai"), Acting("local"))
    for conversation in ("c1", "c1", "c2"):
        await made.call("openai:gpt-5-mini", context=context(conversation, "a", run="r1"))
    await made.call("local:x", context=context("c2", "b"), purpose="summary")

    by_model = await used(made, "model")
    by_two = await used(made, "agent", "conversation")
    one = await used(made, "purpose", conversation="c2")

    assert [row.by["model"] for row in by_model.rows] == ["openai:gpt-5-mini", "local:x"]
    first, second = by_model.rows
    assert (first.calls, first.input_tokens, first.output_tokens) == (3, 30, 15)
    assert first.cost_usd == pytest.approx(3 * (10 * 0.25 + 5 * 2) / 1e6)
    assert (second.cost_usd, second.unpriced_calls) == (0.0, 1)
    assert (by_model.total.calls, by_model.total.unpriced_calls) == (4, 1)
    assert {tuple(row.by.values()): row.calls for row in by_two.rows} == {
        ("a", "c1"): 2,
        ("a", "c2"): 1,
        ("b", "c2"): 1,
    }
    assert [row.by["purpose"] for row in one.rows] == ["chat", "summary"]
    assert one.total.calls == 2


async def test_failed_calls_are_counted_apart(bench: Make) -> None:
    made = bench(Acting("a", fail("login"), say("fine")))
    with pytest.raises(Exception, match="no"):
        await made.call("a:m")
    await made.call("a:m")

    total = (await used(made, "model")).total

    assert (total.calls, total.failed_calls) == (2, 1)


async def test_a_time_may_be_given(bench: Make) -> None:
    made = bench(Acting("a"))
    await made.call("a:m")
    now = datetime.now(UTC)

    assert (await used(made, since=now - timedelta(hours=1))).total.calls == 1
    assert (await used(made, since=now + timedelta(hours=1))).total.calls == 0
    assert (await used(made, "day", until=now + timedelta(hours=1))).rows[0].by == {
        "day": f"{now:%Y-%m-%d}"
    }
    with pytest.raises(InvalidData, match="time zone"):
        await used(made, since=datetime(2026, 1, 1))  # noqa: DTZ001  that is what is refused


async def test_nothing_is_a_sum_too(bench: Make) -> None:
    nothing = await used(bench(Acting("a")), "model")

    assert nothing.rows == ()
    assert (nothing.total.calls, nothing.total.cost_usd) == (0, 0.0)


async def test_a_tenant_sees_its_own_and_the_owner_by_tenant_all(bench: Make) -> None:
    made = bench(Acting("a"))
    for tenant, calls in (("x", 2), ("y", 1)):
        for _ in range(calls):
            await made.call("a:m", context=context(tenant=tenant))

    own = await used(made, "model", context=context(tenant="x"))
    everybody = await used(made, "tenant", context=context(tenant="y"))
    bearer = structs.replace(context(tenant="y"), origin="relay", principal="token:abc")
    by_token = await used(made, "tenant", context=bearer)

    assert own.total.calls == 2
    assert {row.by["tenant"]: row.calls for row in everybody.rows} == {"x": 2, "y": 1}
    assert everybody.total.calls == 3
    assert [row.by for row in by_token.rows] == [{"tenant": "y"}]
    assert by_token.total.calls == 1


# -- when things go wrong -------------------------------------------------------------------------


async def test_a_call_is_noted_when_it_begins_and_lost_if_nobody_ends_it(bench: Make) -> None:
    made = bench(Acting("openai", stall("begun")))

    async with running(made), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.call("openai:gpt-5-mini", context=context("c1")))
        async with asyncio.timeout(10):
            while not (rows := await made.rows()):  # noqa: ASYNC110  the database tells nobody
                await asyncio.sleep(0)
        begun = (rows[0]["outcome"], rows[0]["conversation"], (await used(made)).total.calls)
        lost = await made.store.lose(timedelta(0))
        after_loss = await used(made)
        task.cancel()

    assert begun == ("begun", "c1", 0)
    assert lost == 1
    assert (after_loss.total.failed_calls, after_loss.total.unpriced_calls) == (1, 1)
    await made.recorder.flush()
    assert [row["outcome"] for row in await made.rows()] == ["cancelled"]


async def test_a_row_that_is_told_twice_is_kept_once(bench: Make) -> None:
    made = bench(Acting("openai"))
    await made.call("openai:gpt-5-mini")
    kept = await made.rows()

    async with running(made):
        await until(lambda: not made.recorder.waiting)
        row = CallRow(**{**_columns(kept[0]), "outcome": "failed", "input_tokens": 99})
        await made.recorder.write(row)

    assert await made.rows() == kept


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    named = {**row, "user": row["on_behalf_of"]}
    return {name: named[name] for name in CallRow.__struct_fields__}


class Away(Store):
    """A store that can't be reached until it can."""

    is_away = True

    async def record(self, row: CallRow, timeout_s: float) -> None:
        if self.is_away:
            raise Unavailable("Postgres can't be reached")
        await super().record(row, timeout_s)


async def test_an_answer_that_can_t_be_recorded_is_not_given_and_its_row_is_written_later(
    bench: Make, database: Database
) -> None:
    made = bench(Acting("openai"))
    store = Away(database)
    made.calls._recorder = made.recorder = Recorder(store, 0.05)

    with pytest.raises(Unavailable, match=r"models\.record_timeout_s"):
        await made.call("openai:gpt-5-mini")
    assert (made.recorder.waiting, await made.rows()) == (1, [])
    store.is_away = False
    async with running(made):
        await until(lambda: not made.recorder.waiting)

    assert [row["outcome"] for row in await made.rows()] == ["ok"]


async def test_an_answer_waits_for_postgres_as_long_as_it_may(
    bench: Make, database: Database
) -> None:
    made = bench(Acting("openai"))
    store = Away(database)
    made.calls._recorder = made.recorder = Recorder(store, 30.0)

    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(made.answer("openai:gpt-5-mini"))
        await asyncio.sleep(0)
        store.is_away = False

    assert call.result().usage.input_tokens == 10
    assert len(await made.rows()) == 1


async def test_old_rows_are_forgotten(bench: Make, database: Database) -> None:
    made = bench(Acting("a"))
    await made.call("a:m")

    kept = await made.store.forget(timedelta(days=1))
    gone = await made.store.forget(timedelta(0))

    assert (kept, gone, await made.rows()) == (0, 1, [])


# -- what can't be written as it is ------------------------------------------------------------


async def test_no_row_keeps_others_from_being_written(bench: Make) -> None:
    def odd(served: str, tokens: int) -> Any:
        async def act(question: Any) -> Any:
            yield Answered(
                message=said("hi").message,
                finish="stop",
                usage=Usage(input_tokens=tokens, output_tokens=1),
                served=served,
            )

        return act

    made = bench(Acting("a", odd("m\x00", 1), odd("m\ud800", 2), odd("m", 10**30), say("fine")))
    async with running(made), asyncio.timeout(20):
        for _ in range(4):
            await made.call("a:m\x00", context=context("c1"), purpose="chat")

    rows = await made.rows()
    assert [row["outcome"] for row in rows] == ["ok"] * 4
    assert [row["input_tokens"] for row in rows] == [1, 2, 10**12, 10]
    assert (await used(made)).total.input_tokens == 10**12 + 13
    assert made.recorder.waiting == 0


async def test_a_call_that_is_cancelled_after_its_answer_has_a_row(bench: Make) -> None:
    answered = asyncio.Event()

    async def act(question: Any) -> Any:
        try:
            yield said("paid for")
        finally:
            answered.set()
            await asyncio.Event().wait()

    made = bench(Acting("a", act))
    async with running(made), asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.call("a:m"))
        await answered.wait()
        task.cancel()
        await until(lambda: made.called)
        await until(lambda: not made.recorder.waiting)

    (row,) = await made.rows()
    assert (row["outcome"], row["input_tokens"], row["output_tokens"]) == ("cancelled", 10, 5)


async def test_a_row_that_is_refused_is_lost_loudly_and_alone(
    bench: Make, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    class Choosy(Store):
        async def record(self, row: CallRow, timeout_s: float) -> None:
            if row.model == "a:odd":
                raise ValueError("no such row")
            await super().record(row, timeout_s)

    made = bench(Acting("a", say("hi")))
    made.calls._recorder = made.recorder = Recorder(Choosy(database), 5.0)
    async with running(made), asyncio.timeout(20):
        with pytest.raises(ValueError, match="no such row"):
            await made.call("a:odd")
        await made.call("a:even")
        await until(lambda: not made.recorder.waiting)

    assert made.recorder.dropped == 1
    outcomes = {row["model"]: row["outcome"] for row in await made.rows()}
    assert outcomes == {"a:even": "ok", "a:odd": "begun"}
    assert "a call's row is lost" in caplog.text
