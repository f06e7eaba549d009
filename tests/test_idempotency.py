"""Requests with an idempotency key: done once, whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ksi_client import AsyncClient, Busy, Cancelled, Conflict, Failed, InvalidData, TimedOut
from ksi_daemon import idempotency
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_handler
from ksi_daemon.idempotency import Ledger
from ksi_daemon.loader import EntryPoint
from ksi_daemon.principals import Principal
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import Wire, module_plugin

MakeWire = Callable[[], Awaitable[Wire]]
MakeClient = Callable[..., Awaitable[AsyncClient]]


class Work:
    """Handlers that count how often they are called."""

    def __init__(self) -> None:
        self.count = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.ended = asyncio.Event()

    @event_handler("work:plain")
    def plain(self, data: Any) -> Any:
        self.count += 1
        return {"count": self.count, "data": data}

    @event_handler("work:slow")
    async def slow(self, data: Any) -> Any:
        self.count += 1
        count = self.count
        self.started.set()
        try:
            await self.go.wait()
        finally:
            self.ended.set()
        return {"count": count, "data": data}

    @event_handler("work:timely", timeout_s=0.1)
    async def timely(self) -> None:
        self.count += 1
        await self.slow({})

    @event_handler("work:fails")
    async def fails(self, data: str) -> None:
        self.count += 1
        raise {"busy": Busy("later"), "conflict": Conflict("no"), "bug": ZeroDivisionError()}[data]

    @event_handler("work:streams")
    async def streams(self) -> AsyncIterator[int]:
        yield 1

    # Two events whose names begin with the same sixteen characters.
    @event_handler("completion:async")
    def complete(self) -> str:
        return "completed"

    @event_handler("completion:async_cancel")
    def cancel(self) -> str:
        return "cancelled"


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def ksi_plugins(work: Work) -> list[EntryPoint]:
    names = ("plain", "slow", "timely", "fails", "streams", "complete", "cancel")
    return [module_plugin("work", **{name: getattr(work, name) for name in names})]


async def test_a_keyed_request_is_done_once(client: AsyncClient, work: Work) -> None:
    answers = [await client.request("work:plain", {"a": 1}, idempotency_key="k") for _ in range(3)]

    assert answers == [{"count": 1, "data": {"a": 1}}] * 3
    assert work.count == 1


async def test_two_at_once_with_one_key_get_the_same_answer(
    client: AsyncClient, connect: MakeClient, work: Work
) -> None:
    other = await connect()

    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(each.request("work:slow", {"a": 1}, idempotency_key="k"))
            for each in (client, other)
        ]
        await work.started.wait()
        work.go.set()

    assert [task.result() for task in asked] == [{"count": 1, "data": {"a": 1}}] * 2


@pytest.mark.parametrize(
    ("event", "data"), [("work:plain", {"a": 2}), ("work:slow", {"a": 1}), ("work:plain", None)]
)
async def test_a_key_with_another_request_is_a_conflict(
    client: AsyncClient, event: str, data: Any
) -> None:
    await client.request("work:plain", {"a": 1}, idempotency_key="k")

    with pytest.raises(Conflict, match="idempotency key"):
        await client.request(event, data, idempotency_key="k")


async def test_events_with_names_alike_are_different_requests(client: AsyncClient) -> None:
    assert await client.request("completion:async", idempotency_key="k") == "completed"

    with pytest.raises(Conflict):
        await client.request("completion:async_cancel", idempotency_key="k")


async def test_the_same_payload_written_otherwise_is_the_same_request(
    wire: MakeWire, work: Work
) -> None:
    mine = await wire()

    for payload in (b'{"a":1,"b":2}', b'{ "b": 2, "a": 1 }'):
        mine.send(b'{"id":1,"event":"work:plain","idempotency_key":"k","data":' + payload + b"}\n")
        assert (await mine.receive())["result"]["count"] == 1


@pytest.mark.parametrize("key", ["", "k" * 201])
async def test_a_key_has_a_bounded_length(client: AsyncClient, key: str) -> None:
    with pytest.raises(InvalidData, match="idempotency key"):
        await client.request("work:plain", idempotency_key=key)


async def test_a_stream_takes_no_key(wire: MakeWire) -> None:
    mine = await wire()

    refusal = await mine.ask("work:streams", idempotency_key="k")

    assert refusal["error"]["code"] == "invalid_data"


@pytest.mark.parametrize(("failure", "times"), [("busy", 2), ("conflict", 1), ("bug", 1)])
async def test_only_an_error_that_may_pass_is_tried_again(
    wire: MakeWire, work: Work, failure: str, times: int
) -> None:
    mine = await wire()

    answers = [await mine.ask("work:fails", failure, idempotency_key="k") for _ in range(2)]

    assert work.count == times
    codes = {answer["error"]["code"] for answer in answers}
    assert codes == {"failed" if failure == "bug" else failure}


async def test_tenants_and_principals_have_keys_of_their_own(
    daemon: Daemon, client: AsyncClient, connect: MakeClient, work: Work
) -> None:
    grants = Grants(call=("work:*",))
    principals = [
        Principal("one", grants),
        Principal("two", grants),
        Principal("one", grants, tenant="other"),
    ]
    tokens = [daemon.tokens.issue(each, ttl_s=60) for each in principals]
    others = [await connect(token=token) for token in tokens]

    counts = [
        (await each.request("work:plain", idempotency_key="k"))["count"]
        for each in (client, *others, client, *others)
    ]

    assert counts == [1, 2, 3, 4, 1, 2, 3, 4]


async def test_users_for_whom_one_principal_speaks_have_keys_of_their_own(
    client: AsyncClient,
) -> None:
    counts = [
        (await client.request("work:plain", idempotency_key="k", context={"user": user}))["count"]
        for user in ("ann", "bob", "ann", "bob")
    ]

    assert counts == [1, 2, 1, 2]


async def test_keyed_work_goes_on_when_its_asker_has_gone(
    wire: MakeWire, work: Work, client: AsyncClient
) -> None:
    mine = await wire()
    mine.send({"id": 1, "event": "work:slow", "data": {"a": 1}, "idempotency_key": "k"})
    await work.started.wait()

    await mine.close()
    async with asyncio.timeout(5):
        while (await client.request("system:stats"))["connections"] > 1:
            pass
    assert not work.ended.is_set()
    work.go.set()
    answer = await client.request("work:slow", {"a": 1}, idempotency_key="k")

    assert answer["count"] == 1


@pytest.mark.parametrize("keyed", [True, False])
async def test_its_asker_can_cancel_it(client: AsyncClient, work: Work, keyed: bool) -> None:
    with pytest.raises(TimedOut):
        await client.request("work:slow", timeout_s=0.05, idempotency_key="k" if keyed else None)

    async with asyncio.timeout(5):
        await work.ended.wait()
    work.go.set()
    again = await client.request("work:slow", idempotency_key="k")
    assert again["count"] == 2


async def test_the_clock_can_stop_it(client: AsyncClient, work: Work) -> None:
    with pytest.raises(TimedOut):
        await client.request("work:timely", idempotency_key="k")

    assert work.ended.is_set()


async def test_who_waits_for_cancelled_work_is_told(
    client: AsyncClient, wire: MakeWire, work: Work
) -> None:
    mine = await wire()
    mine.send({"id": 1, "event": "work:slow", "data": {}, "idempotency_key": "k"})
    await work.started.wait()

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_outcome(client, "k"))
        await client.request("system:hello")
        mine.send({"id": 1, "cancel": True})

    assert isinstance(waiting.result(), Cancelled)


async def _outcome(client: AsyncClient, key: str) -> Exception:
    with pytest.raises(Cancelled) as caught:
        await client.request("work:slow", {}, idempotency_key=key)
    return caught.value


# -- the ledger itself ----------------------------------------------------------------------------


async def _value(value: Any) -> Any:
    return value


async def test_a_key_is_forgotten_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    # A clock of its own: what other modules take for the time stays the time.
    monkeypatch.setattr(idempotency, "time", SimpleNamespace(monotonic=lambda: now))
    async with asyncio.TaskGroup() as tasks:
        ledger = Ledger(tasks)
        await ledger.once(("t", "p", None, "k"), b"d", lambda: _value(1))
        now += 24 * 3600 + 1
        await ledger.once(("t", "p", None, "other"), b"d", lambda: _value(1))

        answer = await ledger.once(("t", "p", None, "k"), b"d", lambda: _value(2))

    assert bytes(answer) == b"2"


async def test_past_their_number_the_oldest_keys_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS", 3)
    async with asyncio.TaskGroup() as tasks:
        ledger = Ledger(tasks)
        for number in range(10):
            await ledger.once(("t", "p", None, f"k{number}"), b"d", lambda: _value(1))

        assert len(ledger) == 3
        kept = await ledger.once(("t", "p", None, "k9"), b"d", lambda: _value(2))

    assert bytes(kept) == b"1"


async def test_past_their_size_the_oldest_answers_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEPT_BYTES", 1000)
    async with asyncio.TaskGroup() as tasks:
        ledger = Ledger(tasks)
        for number in range(100):
            await ledger.once(("t", "p", None, f"k{number}"), b"d", lambda: _value("x" * 300))

        assert len(ledger) <= 5


async def test_work_that_runs_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS", 3)
    go = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        ledger = Ledger(tasks)
        first = tasks.create_task(ledger.once(("t", "p", None, "first"), b"d", go.wait))
        await asyncio.sleep(0)
        for number in range(10):
            await ledger.once(("t", "p", None, f"k{number}"), b"d", lambda: _value(1))
        again = tasks.create_task(ledger.once(("t", "p", None, "first"), b"d", lambda: _value(2)))
        await asyncio.sleep(0)
        go.set()

    assert first.result() == again.result()


async def test_an_answer_without_a_json_form_is_a_failure_each_time() -> None:
    async with asyncio.TaskGroup() as tasks:
        ledger = Ledger(tasks)
        for _ in range(2):
            with pytest.raises(Failed):
                await ledger.once(("t", "p", None, "k"), b"d", lambda: _value(object()))
