"""The router: who answers, who sees, who stands in between, and who adds their share."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_client import AsyncClient, Denied, Failed, NotFound, TimedOut, Unavailable, UnixTransport
from ksi_daemon.bus import LocalBus
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import (
    event_contributor,
    event_handler,
    event_interceptor,
    event_observer,
)
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Event, KsiError
from ksi_daemon.testing import module_plugin, read_log, running_daemon

Proceed = Callable[[Event], Awaitable[Any]]


class Order(msgspec.Struct):
    dish: str
    portions: int = 1


@event_handler("my:custom:event")
async def handle_custom_event(data):  # type: ignore[no-untyped-def]  # as it is published
    return {"received": data}


@event_handler("count:up")
async def count_up(data: dict[str, int]) -> AsyncIterator[int]:
    for number in range(data["to"]):
        yield number


@event_handler("order:take")
def take_order(order: Order) -> dict[str, Any]:
    return {"dish": order.dish, "portions": order.portions, "class": type(order).__name__}


@event_handler("order:nothing")
def nothing() -> None:
    return None


class Kitchen:
    """Interceptors, observers and contributors, and what they saw."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.hold = asyncio.Event()
        self.seen: asyncio.Queue[Event] = asyncio.Queue()

    @event_interceptor("gated:*", order=10)
    async def inner_gate(self, event: Event, proceed: Proceed) -> Any:
        self.log.append("inner in")
        result = await proceed(event)
        self.log.append("inner out")
        return result

    @event_interceptor("gated:*", order=-10)
    async def outer_gate(self, event: Event, proceed: Proceed) -> Any:
        self.log.append("outer in")
        result = await proceed(event)
        self.log.append("outer out")
        return result

    @event_interceptor("gated:changed")
    async def change(self, event: Event, proceed: Proceed) -> Any:
        order = msgspec.structs.replace(event.data, portions=7)
        result = await proceed(msgspec.structs.replace(event, data=order))
        return {**result, "changed": True}

    @event_interceptor("gated:denied")
    async def deny(self, event: Event, proceed: Proceed) -> Any:
        raise Denied("the kitchen is closed", details={"opens": "tomorrow"})

    @event_interceptor("gated:broken")
    async def broken(self, event: Event, proceed: Proceed) -> Any:
        raise ZeroDivisionError

    @event_interceptor("gated:short")
    async def short(self, event: Event, proceed: Proceed) -> Any:
        return "from the gate"

    @event_interceptor("gated:stream")
    async def double(self, event: Event, proceed: Proceed) -> AsyncGenerator[int]:
        chunks = await proceed(event)

        async def doubled() -> AsyncGenerator[int]:
            async for chunk in chunks:
                yield chunk * 2
            yield -1

        return doubled()

    def _answer(self, order: Order) -> dict[str, Any]:
        self.log.append("handler")
        return {"portions": order.portions}

    @event_handler("gated:changed")
    def changed(self, order: Order) -> dict[str, Any]:
        return self._answer(order)

    @event_handler("gated:denied")
    def denied(self, order: Order) -> dict[str, Any]:
        return self._answer(order)

    @event_handler("gated:broken")
    def breaking(self, order: Order) -> dict[str, Any]:
        return self._answer(order)

    @event_handler("gated:short")
    def shortened(self, data: Any) -> str:
        self.log.append("handler")
        return "from the handler"

    @event_handler("gated:stream")
    async def stream(self) -> AsyncIterator[int]:
        for number in range(3):
            yield number

    @event_handler("open:plain")
    def plain(self) -> str:
        return "plain"

    @event_observer("open:*")
    async def slow_observer(self, event: Event) -> None:
        await self.hold.wait()

    @event_observer("open:*", outcomes=True)
    def outcome_observer(self, event: Event) -> None:
        self.seen.put_nowait(event)

    @event_handler("open:fails")
    async def fails(self) -> None:
        raise NotFound("nothing there")

    @event_contributor("menu:ask", order=2)
    def soup(self) -> str:
        return "soup"

    @event_contributor("menu:ask", order=1)
    async def late(self) -> str:
        await self.hold.wait()
        return "too late"

    @event_contributor("menu:ask", order=3)
    async def burnt(self) -> str:
        raise ValueError("burnt")

    @event_contributor("menu:ask", order=4)
    async def refused(self) -> str:
        raise Denied("not on Mondays")


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


@pytest.fixture
def ksi_plugins(kitchen: Kitchen) -> list[EntryPoint]:
    names = [name for name in vars(Kitchen) if not name.startswith("_")]
    return [
        module_plugin("mine", a=handle_custom_event, b=count_up, c=take_order, d=nothing),
        module_plugin("kitchen", **{name: getattr(kitchen, name) for name in names}),
    ]


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["daemon.contributor_timeout_s=0.2", "daemon.observer_queue_events=10"]


# -- handlers -------------------------------------------------------------------------------------


async def test_the_smallest_plugin_answers_with_plain_data(client: AsyncClient) -> None:
    answer = await client.request("my:custom:event", {"a": 1})

    assert answer == {"received": {"a": 1}}


async def test_a_misspelt_event_is_answered_with_the_nearest_name(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="did you mean my:custom:event"):
        await client.request("my:custom:evnt")


async def test_an_async_generator_answers_with_a_stream(client: AsyncClient) -> None:
    chunks = [chunk async for chunk in client.stream("count:up", {"to": 3})]

    assert chunks == [0, 1, 2]


async def test_a_daemon_in_a_test_is_ready_when_the_test_starts(daemon: Daemon) -> None:
    assert daemon.state == "ready"


async def test_a_payload_is_decoded_into_its_class_with_its_defaults(client: AsyncClient) -> None:
    answer = await client.request("order:take", {"dish": "soup"})

    assert answer == {"dish": "soup", "portions": 1, "class": "Order"}


async def test_a_handler_may_take_and_return_nothing(client: AsyncClient) -> None:
    assert await client.request("order:nothing", {"ignored": True}) is None


async def test_a_second_handler_of_a_name_fails_its_plugin_and_no_other(ksi_home: Any) -> None:
    second = module_plugin("second", a=take_order)
    first = module_plugin("first", a=take_order, b=nothing)
    async with (
        running_daemon(ksi_home / "other", first, second) as daemon,
        AsyncClient(daemon.home.socket) as client,
    ):
        plugins = (await client.request("system:plugins"))["plugins"]
        answer = await client.request("order:take", {"dish": "soup"})

    states = {plugin["plugin"]: plugin["state"] for plugin in plugins}
    assert states == {"first": "ready", "second": "failed", "system": "ready"}
    assert answer["dish"] == "soup"


@pytest.mark.parametrize("event", ["order:nothing", "my:custom:event"])
async def test_what_is_answered_is_counted_whether_inline_or_not(
    client: AsyncClient, event: str
) -> None:
    for _ in range(5):
        await client.request(event)

    [counted] = (await client.request("system:stats", {"pattern": event}))["events"]
    assert (counted["count"], counted["errors"]) == (5, 0)


# -- interceptors ---------------------------------------------------------------------------------


async def test_interceptors_stand_in_their_order_and_may_change_what_passes(
    client: AsyncClient, kitchen: Kitchen
) -> None:
    answer = await client.request("gated:changed", {"dish": "soup"})

    assert answer == {"portions": 7, "changed": True}
    assert kitchen.log == ["outer in", "inner in", "handler", "inner out", "outer out"]


async def test_an_interceptor_may_deny(client: AsyncClient, kitchen: Kitchen) -> None:
    with pytest.raises(Denied, match="closed") as caught:
        await client.request("gated:denied", {"dish": "soup"})

    assert caught.value.details == {"opens": "tomorrow"}
    assert "handler" not in kitchen.log


async def test_an_interceptor_that_breaks_fails_the_event(
    client: AsyncClient, kitchen: Kitchen
) -> None:
    with pytest.raises(Failed, match="ZeroDivisionError"):
        await client.request("gated:broken", {"dish": "soup"})

    assert "handler" not in kitchen.log


async def test_an_interceptor_may_answer_itself(client: AsyncClient, kitchen: Kitchen) -> None:
    assert await client.request("gated:short") == "from the gate"
    assert "handler" not in kitchen.log


async def test_an_interceptor_may_wrap_a_stream(client: AsyncClient) -> None:
    assert [chunk async for chunk in client.stream("gated:stream")] == [0, 2, 4, -1]


async def test_interceptors_stand_before_what_plugins_send_too(
    daemon: Daemon, kitchen: Kitchen
) -> None:
    route = daemon.router.resolve("gated:short")
    event = Event("gated:short", {}, daemon.router.child_of(None, "test"))

    assert await daemon.router.dispatch(route, event) == "from the gate"


async def test_interceptors_stand_before_what_clients_serve(
    client: AsyncClient, kitchen: Kitchen
) -> None:
    async def answer(data: Any, context: Any) -> str:
        return "served"

    await client.serve("gated:served", answer)

    assert await client.request("gated:served") == "served"
    assert kitchen.log == ["outer in", "inner in", "inner out", "outer out"]


@pytest.mark.parametrize("reason", ["is starting", "has failed: out of gas", "has stopped"])
async def test_a_gate_whose_plugin_is_not_there_is_closed(
    daemon: Daemon, client: AsyncClient, kitchen: Kitchen, reason: str
) -> None:
    async def answer(data: Any, context: Any) -> str:
        return "served"

    await client.serve("gated:served", answer)
    daemon.router.set_reason("kitchen", reason)

    with pytest.raises(Unavailable, match="kitchen"):
        await client.request("gated:served")
    daemon.router.set_reason("kitchen", None)

    assert await client.request("gated:served") == "served"


# -- observers ------------------------------------------------------------------------------------


async def test_a_slow_observer_holds_up_nobody_and_what_it_misses_is_counted(
    client: AsyncClient,
) -> None:
    for _ in range(50):
        assert await client.request("open:plain", timeout_s=5) == "plain"

    observers = (await client.request("system:stats"))["observers"]
    [slow] = [each for each in observers if each["missed"]]
    assert slow["pattern"] == "open:*"
    assert slow["plugin"] == "kitchen"
    assert slow["queued"] + slow["missed"] >= 49
    health = await client.request("system:health")
    assert any("missed" in problem for problem in health["problems"])


async def test_observers_of_outcomes_see_how_it_ended(
    client: AsyncClient, kitchen: Kitchen
) -> None:
    await client.request("open:plain")
    with pytest.raises(NotFound):
        await client.request("open:fails")

    async with asyncio.timeout(5):
        plain, fails = [await kitchen.seen.get() for _ in range(2)]

    assert plain.outcome is not None
    assert plain.outcome.error is None
    assert fails.outcome is not None
    assert fails.outcome.error is not None
    assert fails.outcome.error.code == "not_found"


# -- contributors ---------------------------------------------------------------------------------


async def test_all_contributors_are_asked_and_who_failed_or_was_late_is_told(
    client: AsyncClient,
) -> None:
    answers = (await client.request("menu:ask"))["contributions"]

    late, soup, burnt, refused = answers
    assert {answer["plugin"] for answer in answers} == {"kitchen"}
    assert late["error"]["code"] == "timeout"
    assert soup["result"] == "soup"
    assert "error" not in soup
    assert burnt["error"]["code"] == "failed"
    assert refused["error"] == {"code": "denied", "message": "not on Mondays"}


async def test_plugins_gather_contributions_too(daemon: Daemon) -> None:
    event = Event("menu:ask", {}, daemon.router.child_of(None, "test"))

    answers = await daemon.router.gather("menu:ask", event, 0.05)

    assert [answer.result for answer in answers] == [None, "soup", None, None]


async def test_nobody_to_ask_is_an_empty_list(daemon: Daemon) -> None:
    event = Event("no:body", {}, daemon.router.child_of(None, "test"))

    assert await daemon.router.gather("no:body", event) == []


# -- the life of a daemon -------------------------------------------------------------------------


async def test_an_event_that_nobody_answers_yet_is_unavailable_while_plugins_start(
    daemon: Daemon, client: AsyncClient
) -> None:
    daemon.router.starting = True

    with pytest.raises(Unavailable, match="starting"):
        await client.request("not:yet", timeout_s=5)


async def test_a_daemon_that_drains_answers_only_about_itself(
    daemon: Daemon, client: AsyncClient
) -> None:
    assert await client.request("open:plain") == "plain"

    daemon.server.drain()

    with pytest.raises(Unavailable, match="shutting down"):
        await client.request("open:plain")
    assert (await client.request("system:hello"))["principal"] == "owner"


@pytest.mark.parametrize(
    ("event", "kind"),
    [("no:such", NotFound), ("open:fails", NotFound), ("gated:broken", Failed)],
)
async def test_in_the_daemon_s_process_errors_are_the_same(
    daemon: Daemon, event: str, kind: type[KsiError]
) -> None:
    bus = LocalBus(daemon.router, "test", daemon.supervisor.tasks)

    with pytest.raises(kind):
        await bus.request(event, {"dish": "soup"})
    with pytest.raises(TimedOut):
        await bus.request("menu:ask", timeout_s=0.01)


# -- what code in the daemon sends ---------------------------------------------------------------


def bus_of(daemon: Daemon) -> LocalBus:
    return LocalBus(daemon.router, "test", daemon.supervisor.tasks)


async def test_gathering_in_the_daemon_passes_the_gates_too(ksi_home: Path) -> None:
    @event_interceptor("parts:list")
    async def deny(event: Event, proceed: Proceed) -> Any:
        raise Denied("no parts today")

    @event_contributor("parts:list")
    def part() -> str:
        return "part"

    plugin = module_plugin("parts", deny=deny, part=part)
    async with running_daemon(ksi_home, plugin) as daemon:
        with pytest.raises(Denied, match="no parts today"):
            await bus_of(daemon).gather("parts:list")


async def test_a_handler_s_own_deadline_holds_for_code_in_the_daemon(ksi_home: Path) -> None:
    @event_handler("slow:answer", timeout_s=0.01)
    async def never() -> None:
        await asyncio.Event().wait()

    async with running_daemon(ksi_home, module_plugin("slow", never=never)) as daemon:
        with pytest.raises(TimedOut, match=r"slow:answer was not answered in 0\.01 s"):
            await bus_of(daemon).request("slow:answer")


async def test_emitting_what_nobody_answers_is_logged_and_raises_nothing(
    ksi_home: Path,
) -> None:
    async with running_daemon(ksi_home) as daemon:
        bus_of(daemon).emit("nobody:answers", {"a": 1})

    (line,) = [each for each in read_log(ksi_home) if each.get("event") == "nobody:answers"]
    assert line["level"] == "warning"
    assert "nothing answers" in line["error"]


async def test_a_contributor_s_name_is_free_again_when_the_last_has_left(
    daemon: Daemon, client: AsyncClient, connect: Callable[..., Any]
) -> None:
    async def part(data: Any, context: Any) -> str:
        return "part"

    async with AsyncClient(UnixTransport(daemon.home.socket)) as leaving:
        await leaving.serve("parts:list", part, contributor=True)
        answers = await client.request("parts:list")
        assert [each["result"] for each in answers["contributions"]] == ["part"]

    await until_free(client, "parts:list")
    await client.serve("parts:list", part)
    assert await client.request("parts:list") == "part"


async def until_free(client: AsyncClient, name: str) -> None:
    """Wait until nothing answers an event any more: what a leaving connection does is not told."""
    async with asyncio.timeout(10):
        while True:
            try:
                await client.request(name)
            except NotFound:
                return
