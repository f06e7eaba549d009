"""Subscriptions: who sees which events, in what order, and what a slow reader misses."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ksi_client import AsyncClient, Denied, Event, EventClient, KsiError, NotFound, Subscription
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_handler
from ksi_daemon.loader import EntryPoint
from ksi_daemon.principals import Principal
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import Wire, module_plugin

MakeWire = Callable[[], Awaitable[Wire]]
MakeClient = Callable[..., Awaitable[AsyncClient]]


@event_handler("tea:brew")
def brew(data: dict[str, Any]) -> dict[str, Any]:
    return {"brewed": data.get("kind")}


@event_handler("tea:spill")
async def spill() -> None:
    raise NotFound("the cup")


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    return [module_plugin("tea", brew=brew, spill=spill)]


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["daemon.max_buffer_bytes=20000"]


async def take(subscription: Subscription, count: int) -> list[Event]:
    async with asyncio.timeout(5):
        return [await anext(subscription) for _ in range(count)]


async def test_a_subscriber_sees_the_events_that_match_and_no_others(client: AsyncClient) -> None:
    subscription = await client.subscribe("tea:*")

    await client.publish("coffee:brew", 1)
    await client.publish("tea:brew", 2)
    await client.publish("tea:cup:fill", 3)
    events = await take(subscription, 2)

    assert [(event.name, event.data) for event in events] == [("tea:brew", 2), ("tea:cup:fill", 3)]


@pytest.mark.parametrize(
    ("pattern", "seen"),
    [
        ("*", ["a:b", "a:bc", "ab:c"]),
        ("a:*", ["a:b", "a:bc"]),
        ("a:?", ["a:b"]),
        ("*:c", ["ab:c"]),
        ("a*", ["a:b", "a:bc", "ab:c"]),
        ("a:b", ["a:b"]),
    ],
)
async def test_patterns_are_globs(client: AsyncClient, pattern: str, seen: list[str]) -> None:
    subscription = await client.subscribe(pattern)
    last = await client.subscribe("the:end")

    for name in ("a:b", "a:bc", "ab:c", "the:end"):
        await client.publish(name, None)
    await take(last, 1)
    await subscription.close()

    events = [event.name async for event in subscription]
    assert [name for name in events if not name.startswith(("router:", "the:"))] == seen


async def test_events_that_are_handled_are_seen_too(client: AsyncClient) -> None:
    # The first request is answered before anybody listens.
    await client.request("tea:brew", {"kind": "green"})
    subscription = await client.subscribe("tea:*")

    await client.request("tea:brew", {"kind": "black"})
    [event] = await take(subscription, 1)

    assert event.data == {"kind": "black"}
    assert event.outcome is None
    assert event.context.origin == "owner"


async def test_nothing_is_seen_after_the_end_of_a_subscription(client: AsyncClient) -> None:
    ended = await client.subscribe("tea:*")
    await ended.close()
    kept = await client.subscribe("tea:*")

    await client.request("tea:brew")
    await take(kept, 1)

    assert [event async for event in ended] == []


async def test_an_unknown_subscription_cannot_be_ended(client: AsyncClient) -> None:
    with pytest.raises(NotFound):
        await client.request("router:unsubscribe", {"subscription": "s77"})


async def test_outcomes_come_with_the_error_and_the_time(client: AsyncClient) -> None:
    subscription = await client.subscribe("tea:*", outcomes=True)

    await client.request("tea:brew")
    with pytest.raises(NotFound):
        await client.request("tea:spill")
    brewed, spilt = await take(subscription, 2)

    assert brewed.outcome is not None
    assert brewed.outcome.error is None
    assert 0 <= brewed.outcome.duration_s < 5
    assert spilt.outcome is not None
    assert spilt.outcome.error is not None
    assert spilt.outcome.error.code == "not_found"


async def test_every_subscriber_sees_every_event_in_order(
    client: AsyncClient, connect: MakeClient
) -> None:
    clients = [await connect() for _ in range(5)]
    subscriptions = [await each.subscribe("n:*") for each in clients]

    for number in range(200):
        await client.publish("n:n", number)

    for subscription in subscriptions:
        assert [event.data for event in await take(subscription, 200)] == list(range(200))


async def test_two_subscriptions_of_one_connection_see_an_event_twice(client: AsyncClient) -> None:
    first, second = await client.subscribe("n:*"), await client.subscribe("n:n")

    assert await client.publish("n:n", 1) == 2

    assert await take(first, 1) == await take(second, 1)


async def test_an_event_that_comes_with_the_subscription_s_answer_is_not_lost(
    client: AsyncClient,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        subscribing = tasks.create_task(client.subscribe("n:*"))
        tasks.create_task(client.publish("n:n", 1))
    subscription = subscribing.result()

    assert [event.data for event in await take(subscription, 1)] == [1]


async def test_a_slow_reader_gets_one_notice_with_the_count_and_others_get_everything(
    client: AsyncClient, wire: MakeWire, daemon: Daemon
) -> None:
    lazy = await wire()
    await lazy.ask("router:subscribe", {"pattern": "n:*"})
    lazy.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport
    diligent = await client.subscribe("n:*")
    filling = "x" * 1000

    for number in range(2000):
        daemon.router.notify(Event("n:n", [number, filling], daemon.router.child_of(None, "test")))
        if number % 10 == 0:
            await asyncio.sleep(0)
    seen = await take(diligent, 2000)
    lazy.writer.transport.resume_reading()  # type: ignore[attr-defined]  # a transport has it
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["event"] != "router:lagged":
        frames.append(await lazy.receive())
    daemon.router.notify(Event("n:last", 0, daemon.router.child_of(None, "test")))
    after = await lazy.receive()

    assert [event.data[0] for event in seen] == list(range(2000))
    missed = frames[-1]["data"]["missed"]
    assert missed > 0
    assert [frame["data"][0] for frame in frames[:-1]] == list(range(2000 - missed))
    assert after["event"] == "n:last"


async def test_a_subscriber_to_what_it_publishes_sees_it(wire: MakeWire) -> None:
    mine = await wire()
    mine.send(
        {"id": 1, "event": "router:subscribe", "data": {"pattern": "n:*"}},
        {"id": 2, "event": "router:publish", "data": {"event": "n:n", "data": {"a": [1, None]}}},
    )

    subscribed, *rest = [await mine.receive() for _ in range(3)]
    [pushed] = [frame for frame in rest if "subscription" in frame]
    [answer] = [frame for frame in rest if "id" in frame]

    assert answer == {"id": 2, "result": {"listeners": 1}}
    assert pushed["event"] == "n:n"
    assert pushed["data"] == {"a": [1, None]}
    assert pushed["subscription"] == subscribed["result"]["subscription"]
    assert set(pushed) == {"event", "data", "context", "subscription"}
    assert pushed["context"]["id"]


async def test_a_token_sees_its_own_tenant_s_and_user_s_events_only(
    daemon: Daemon, client: AsyncClient, connect: MakeClient
) -> None:
    principal = Principal("watcher", Grants(subscribe=("n:*",)), tenant="acme", user="ann")
    watcher = await connect(token=daemon.tokens.issue(principal, ttl_s=60))
    subscription = await watcher.subscribe("n:*")

    for tenant, user in (("acme", "bob"), ("other", "ann"), ("acme", "ann")):
        await client.request(
            "router:publish",
            {"event": "n:n", "data": [tenant, user]},
            context={"tenant": tenant, "user": user},
        )

    assert (await take(subscription, 1))[0].data == ["acme", "ann"]


@pytest.mark.parametrize("pattern", ["*", "n*", "m:n", "?:n"])
async def test_a_token_subscribes_to_no_more_than_it_was_granted(
    daemon: Daemon, connect: MakeClient, pattern: str
) -> None:
    principal = Principal("watcher", Grants(subscribe=("n:*",)))
    watcher = await connect(token=daemon.tokens.issue(principal, ttl_s=60))

    with pytest.raises(Denied):
        await watcher.subscribe(pattern)


async def test_the_event_client_reads_all_its_subscriptions_in_one_place(daemon: Daemon) -> None:
    async with EventClient(daemon.home.socket) as client:
        await client.subscribe("tea:*")
        await client.subscribe("n:*")
        await client.emit("tea:brew", {"kind": "green"})
        await client.publish("n:n", 1)

        names = []
        async for event in client.events():
            names.append(event.name)
            if len(names) == 2:
                break

    assert sorted(names) == ["n:n", "tea:brew"]


async def test_the_events_end_when_the_client_is_closed(daemon: Daemon) -> None:
    async with EventClient(daemon.home.socket) as client:
        await client.subscribe("n:*")
        await client.publish("n:n", 1)

    assert [event.name async for event in client.events()] == ["n:n"]


async def test_an_emitted_event_that_nobody_answers_is_told(daemon: Daemon) -> None:
    told: asyncio.Queue[KsiError] = asyncio.Queue()
    async with EventClient(daemon.home.socket, on_error=told.put_nowait) as client:
        await client.emit("no:such")
        async with asyncio.timeout(5):
            error = await told.get()

    assert isinstance(error, NotFound)
    assert error.details is not None
    assert error.details["event"] == "no:such"


async def test_a_denial_is_shown_to_who_may_see_it(
    client: AsyncClient, daemon: Daemon, connect: Callable[..., Awaitable[AsyncClient]]
) -> None:
    token = daemon.tokens.issue(Principal("guest", tenant="other", user="ann"), ttl_s=60)
    denials = await client.subscribe("router:denied")
    guest = await connect(token=token)

    with pytest.raises(Denied):
        await guest.request("system:shutdown")
    async with asyncio.timeout(5):
        event = await anext(aiter(denials))

    assert event.data["event"] == "system:shutdown"
    assert (event.context.origin, event.context.tenant) == ("token:guest", "other")
    assert event.context.user == "ann"
