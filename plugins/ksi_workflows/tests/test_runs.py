"""Runs from start to end, in one daemon."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from ksi_client import AsyncClient, InvalidData, LocalTransport, NotFound
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_contributor
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Cancelled, Conflict, Event, Failed, TimedOut, Unavailable
from ksi_daemon.testing import ModuleEntryPoint, module_plugin, running_daemon
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for
from ksi_workflows.api import Retry, Workflows, current_run, receive, sleep, step, workflow
from ksi_workflows.tests.daemons import outcome_of


class Order(Struct, frozen=True, kw_only=True):
    """What is to be made."""

    item: str
    count: int = 1


class Made(Struct, frozen=True, kw_only=True):
    """What was made."""

    items: tuple[str, ...]


CALLS: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


@step
async def make(order: Order) -> Made:
    CALLS.append(order.item)
    return Made(items=(order.item,) * order.count)


@step(name="join")
def join(made: Made) -> str:
    return "+".join(made.items)


@workflow("bake")
async def bake(order: Order) -> str:
    return await join(await make(order))


@workflow("fail")
async def fail() -> None:
    raise Conflict("there is no flour", details={"missing": ["flour"]})


@pytest.fixture
async def seen(client: AsyncClient) -> Any:
    """Collect the status events of runs."""
    async with await client.subscribe("workflow:*") as subscription:
        yield subscription


async def next_status(seen: Any, *names: str) -> Event:
    """Return the next event of these names."""
    async for event in seen:
        if event.name in names:
            found: Event = event
            return found
    raise AssertionError("the subscription has ended")


async def test_a_run_goes_from_start_to_result(client: AsyncClient, workflows: Workflows) -> None:
    workflows.register(bake)

    accepted = await client.request(
        "workflow:start", {"name": "bake", "args": {"item": "bun", "count": 2}}
    )
    outcome = await client.request("workflow:result", {"run_id": accepted["run_id"]})

    assert outcome == {**outcome, "status": "finished", "output": "bun+bun"}
    assert accepted["name"] == "bake"
    assert accepted["version"] == 1


async def test_what_steps_return_is_recorded(client: AsyncClient, workflows: Workflows) -> None:
    workflows.register(bake)

    run_id = await workflows.start(bake, Order(item="bun"))
    await workflows.result(run_id)
    listed = await client.request("workflow:steps", {"run_id": run_id})

    assert [(each["number"], each["output"]) for each in listed["steps"]] == [
        (1, {"items": ["bun"]}),
        (2, "bun"),
    ]
    assert [each["name"] for each in listed["steps"]] == ["make", "join"]


async def test_a_run_that_fails_tells_its_error_and_not_its_traceback(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(fail)

    run_id = await workflows.start(fail)
    outcome = await client.request("workflow:result", {"run_id": run_id})

    assert outcome["status"] == "failed"
    assert outcome["error"] == {
        "code": "conflict",
        "message": "there is no flour",
        "details": {"missing": ["flour"]},
    }
    with pytest.raises(Conflict, match="no flour"):
        await workflows.result(run_id)


async def test_the_daemon_that_ran_it_publishes_what_became_of_a_run(
    seen: Any, workflows: Workflows
) -> None:
    workflows.register(bake, fail)

    good = await workflows.start(bake, Order(item="bun"))
    started = await next_status(seen, "workflow:started")
    finished = await next_status(seen, "workflow:finished")
    bad = await workflows.start(fail)
    failed = await next_status(seen, "workflow:failed")

    assert started.data == {"run_id": good, "name": "bake", "version": 1, "attempt": 1}
    assert finished.data["run_id"] == good
    assert finished.context.run == good
    assert failed.data["run_id"] == bad
    assert failed.data["error"]["code"] == "conflict"


async def test_a_run_acts_in_the_name_of_its_starter(
    seen: Any, client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(bake)

    await client.request("workflow:start", {"name": "bake", "args": {"item": "bun"}})
    asked = await next_status(seen, "workflow:start")
    started = await next_status(seen, "workflow:started")

    assert started.context.parent == asked.context.id
    assert started.context.tenant == asked.context.tenant


async def test_starting_twice_with_one_id_is_starting_once(workflows: Workflows) -> None:
    workflows.register(bake, fail)

    first = await workflows.start(bake, Order(item="bun"), id="order-1")
    await workflows.result(first)
    second = await workflows.start(bake, Order(item="cake"), id="order-1")

    assert second == first == "order-1"
    assert await workflows.result(second) == "bun"
    assert CALLS == ["bun"]
    with pytest.raises(Conflict, match="another run"):
        await workflows.start(fail, id="order-1")


NO_STARTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"name": "bale"}, NotFound, "did you mean bake"),
    ({"name": "bake", "args": {"item": 1}}, InvalidData, r"\$.item"),
    ({"name": "bake", "args": {"item": "x" * 70_000}}, InvalidData, "max_args_bytes"),
    ({"name": "bake", "args": {"item": "bun"}, "queue": "quick"}, InvalidData, "queue 'quick'"),
    ({"name": "bake", "args": {"item": "bun"}, "id": "a:b"}, InvalidData, r"\$.id"),
    ({"name": "fail", "args": {"item": "bun"}}, InvalidData, "takes no arguments"),
]


async def test_a_wrong_start_is_refused_and_says_why(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(bake, fail)

    for data, error, told in NO_STARTS:
        with pytest.raises(error, match=told):
            await client.request("workflow:start", data)
    assert (await client.request("workflow:list"))["runs"] == []


async def test_an_output_that_is_too_large_is_an_error_that_names_the_setting(
    workflows: Workflows,
) -> None:
    @step(name="boast")
    async def boast() -> str:
        return "x" * 70_000

    @workflow("boasting")
    async def boasting() -> str:
        return await boast()

    workflows.register(boasting)

    with pytest.raises(InvalidData, match=r"step 1 \(boast\).*max_output_bytes"):
        await workflows.result(await workflows.start(boasting))


async def test_a_step_is_tried_again_for_the_errors_that_it_names(workflows: Workflows) -> None:
    @step(name="flaky", retries=Retry(on=(Unavailable,), max_attempts=4, first_delay_s=0.001))
    async def flaky() -> int:
        CALLS.append("flaky")
        if len(CALLS) < 3:
            raise Unavailable("not yet")
        return len(CALLS)

    @workflow("patient")
    async def patient() -> int:
        return await flaky()

    workflows.register(patient)

    assert await workflows.result(await workflows.start(patient)) == 3


async def test_an_error_that_a_step_does_not_name_ends_it_at_once(workflows: Workflows) -> None:
    @step(name="wrong", retries=Retry(on=(Unavailable,), max_attempts=4, first_delay_s=0.001))
    async def wrong() -> int:
        CALLS.append("wrong")
        raise ValueError("no")

    @workflow("hasty")
    async def hasty() -> int:
        return await wrong()

    workflows.register(hasty)

    with pytest.raises(Failed, match="ValueError: no"):
        await workflows.result(await workflows.start(hasty))
    assert CALLS == ["wrong"]


async def test_a_step_that_takes_too_long_times_out(workflows: Workflows) -> None:
    @step(name="slow", timeout_s=0.02)
    async def slow() -> None:
        await asyncio.Event().wait()

    @workflow("sluggish")
    async def sluggish() -> str:
        try:
            await slow()
        except TimedOut as error:
            return error.message
        return ""

    workflows.register(sluggish)

    told = await workflows.result(await workflows.start(sluggish))
    assert told == "step slow took longer than 0.02 s"


async def test_a_run_that_takes_too_long_times_out(workflows: Workflows) -> None:
    @workflow("endless", timeout_s=0.05)
    async def endless() -> None:
        await asyncio.Event().wait()

    workflows.register(endless)

    with pytest.raises(TimedOut, match=r"longer than 0\.05 s"):
        await workflows.result(await workflows.start(endless))


async def test_waiting_for_a_result_has_a_limit_and_the_run_goes_on(
    client: AsyncClient, workflows: Workflows
) -> None:
    go = asyncio.Event()

    @workflow("waiting")
    async def waiting() -> str:
        await go.wait()
        return "done"

    workflows.register(waiting)
    run_id = await workflows.start(waiting)

    with pytest.raises(TimedOut):
        await client.request("workflow:result", {"run_id": run_id, "timeout_s": 0.01})
    go.set()

    assert await workflows.result(run_id) == "done"


async def test_cancelling_ends_a_run_after_its_step_and_resuming_goes_on_after_it(
    client: AsyncClient, workflows: Workflows
) -> None:
    within, go = asyncio.Event(), asyncio.Event()

    @step(name="first")
    async def first() -> str:
        CALLS.append("first")
        within.set()
        await go.wait()
        return "one"

    @step(name="second")
    async def second() -> str:
        CALLS.append("second")
        return "two"

    @workflow("stoppable")
    async def stoppable() -> str:
        return await first() + await second()

    workflows.register(stoppable)
    run_id = await workflows.start(stoppable)
    await within.wait()

    cancelled = await client.request("workflow:cancel", {"run_id": run_id})
    go.set()
    with pytest.raises(Cancelled):
        await workflows.result(run_id)
    assert cancelled["status"] == "cancelled"
    await client.request("workflow:resume", {"run_id": run_id})

    assert await workflows.result(run_id) == "onetwo"
    assert CALLS.count("second") == 1


async def test_cancelling_ends_a_preemptible_step_at_once(
    client: AsyncClient, workflows: Workflows
) -> None:
    within, ended = asyncio.Event(), asyncio.Event()

    @step(name="listen", preemptible=True)
    async def listen() -> None:
        within.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    @workflow("listening")
    async def listening() -> None:
        await listen()

    workflows.register(listening)
    run_id = await workflows.start(listening)
    await within.wait()

    await client.request("workflow:cancel", {"run_id": run_id})

    await ended.wait()


async def test_a_fork_takes_over_the_outcomes_of_earlier_steps(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(bake)
    run_id = await workflows.start(bake, Order(item="bun"))
    await workflows.result(run_id)

    forked = await client.request("workflow:fork", {"run_id": run_id, "from_step": 2})
    outcome = await client.request("workflow:result", {"run_id": forked["run_id"]})
    got = await client.request("workflow:get", {"run_id": forked["run_id"]})

    assert outcome["output"] == "bun"
    assert CALLS == ["bun"]
    assert got["run"]["forked_from"] == run_id


async def test_signals_are_taken_once_and_in_order(
    client: AsyncClient, workflows: Workflows
) -> None:
    @workflow("counter")
    async def counter() -> list[int]:
        return [await receive("number", int) for _ in range(3)]

    workflows.register(counter)
    run_id = await workflows.start(counter)

    for number in (1, 2, 3):
        signal = {"run_id": run_id, "topic": "number", "payload": number}
        await client.request("workflow:signal", signal)

    assert await workflows.result(run_id) == [1, 2, 3]
    with pytest.raises(Conflict, match="has ended"):
        await client.request("workflow:signal", signal)


async def test_waiting_for_a_signal_has_a_limit(workflows: Workflows) -> None:
    @workflow("impatient")
    async def impatient() -> str:
        try:
            await receive("never", timeout_s=0.02)
        except TimedOut as error:
            return error.message
        return ""

    workflows.register(impatient)

    assert "no signal came on never" in await workflows.result(await workflows.start(impatient))


async def test_a_sleep_is_a_step(client: AsyncClient, workflows: Workflows) -> None:
    @workflow("sleeper")
    async def sleeper() -> str:
        await sleep(0.01)
        return current_run().id

    workflows.register(sleeper)
    run_id = await workflows.start(sleeper)

    assert await workflows.result(run_id) == run_id
    listed = await client.request("workflow:steps", {"run_id": run_id})
    assert [each["name"] for each in listed["steps"]] == ["sleep"]


async def test_a_run_that_a_run_starts_is_its_child(
    client: AsyncClient, workflows: Workflows
) -> None:
    @workflow("party")
    async def party() -> list[str]:
        started = [await workflows.start(bake, Order(item=name)) for name in ("bun", "cake")]
        return [*started, *[await workflows.result(each) for each in started]]

    workflows.register(party, bake)

    run_id = await workflows.start(party)
    result = await workflows.result(run_id)

    assert result == [f"{run_id}-1", f"{run_id}-2", "bun", "cake"]
    got = await client.request("workflow:get", {"run_id": result[0]})
    assert got["run"]["parent_run_id"] == run_id


async def test_list_filters_and_pages(client: AsyncClient, workflows: Workflows) -> None:
    workflows.register(bake, fail)
    runs = [await workflows.start(bake, Order(item="bun"), id=f"run-{n}") for n in range(5)]
    runs.append(await workflows.start(fail, id="failing"))
    for run_id in runs:
        await client.request("workflow:result", {"run_id": run_id})

    found, cursor = [], None
    while True:
        page = await client.request("workflow:list", {"name": "bake", "limit": 2, "cursor": cursor})
        found += [run["run_id"] for run in page["runs"]]
        cursor = page.get("cursor")
        if cursor is None:
            break
    failed = await client.request("workflow:list", {"status": ["failed"]})

    assert found == runs[4::-1]
    assert [run["run_id"] for run in failed["runs"]] == ["failing"]


async def test_get_tells_what_a_run_was_given(client: AsyncClient, workflows: Workflows) -> None:
    workflows.register(bake)
    run_id = await workflows.start(bake, Order(item="bun"))
    await workflows.result(run_id)

    got = await client.request("workflow:get", {"run_id": run_id})

    assert got["args"] == {"item": "bun", "count": 1}
    assert got["run"]["status"] == "finished"
    assert got.get("trouble") is None


async def test_another_tenant_sees_and_touches_nothing(
    daemon: Daemon, connect: Any, client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(bake)
    mine = await workflows.start(bake, Order(item="bun"), id="order")
    await workflows.result(mine)
    token = await client.request(
        "token:create",
        {"name": "o", "grants": {"call": ["workflow:*"]}, "tenant": "other", "ttl_s": 60},
    )
    other = await connect(token=token["token"])

    theirs = await other.request(
        "workflow:start", {"name": "bake", "args": {"item": "cake"}, "id": "order"}
    )
    outcome = await other.request("workflow:result", {"run_id": theirs["run_id"]})

    assert outcome["output"] == "cake"
    assert [run["run_id"] for run in (await other.request("workflow:list"))["runs"]] == [
        theirs["run_id"]
    ]
    for verb in ("get", "result", "steps", "cancel", "resume", "release", "fork"):
        with pytest.raises(NotFound):
            await other.request(f"workflow:{verb}", {"run_id": mine})
    with pytest.raises(NotFound):
        await other.request("workflow:signal", {"run_id": mine, "topic": "a"})


async def test_steps_that_changed_are_told_and_not_mixed_up(
    client: AsyncClient, workflows: Workflows
) -> None:
    names = ["before"]

    @workflow("changing")
    async def changing() -> str:
        @step(name=names[0])
        async def work() -> str:
            return "done"

        return await work()

    workflows.register(changing)
    run_id = await workflows.start(changing)
    await workflows.result(run_id)
    names[0] = "after"

    forked = await client.request("workflow:fork", {"run_id": run_id, "from_step": 2})
    outcome = await client.request("workflow:result", {"run_id": forked["run_id"]})

    assert "step 1 was 'before'" in outcome["error"]["message"]


async def test_steps_run_side_by_side(workflows: Workflows) -> None:
    barrier = asyncio.Barrier(3)

    @step(name="meet")
    async def meet(number: int) -> int:
        await barrier.wait()
        return number

    @workflow("meeting")
    async def meeting() -> list[int]:
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(meet(n), name=str(n)) for n in range(3)]
        return [task.result() for task in made]

    workflows.register(meeting)

    assert await workflows.result(await workflows.start(meeting)) == [0, 1, 2]


async def test_health_says_so_while_the_engine_works(
    client: AsyncClient, workflows: Workflows
) -> None:
    health = await client.request("system:health")

    mine = next(each for each in health["plugins"] if each["plugin"] == "workflows")
    assert mine["health"] == "ok"


# -- the end of a daemon --------------------------------------------------------------------------


class Oven:
    """A plugin whose step takes a while longer when the daemon is drained."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cooled = asyncio.Event()
        self.is_gone = False
        self.was_gone: list[bool] = []

    @event_contributor("system:drained")
    def drained(self) -> None:
        asyncio.get_running_loop().call_later(0.2, self.cooled.set)

    def plugin(self) -> ModuleEntryPoint:
        @step
        async def roast() -> str:
            self.begun.set()
            await self.cooled.wait()
            self.was_gone.append(self.is_gone)
            return "done"

        @workflow("roast")
        async def roasted() -> str:
            return await roast()

        async def lifespan(plugin: Plugin) -> AsyncIterator[None]:
            plugin.service(Workflows).register(roasted)
            plugin.add(self)
            yield
            self.is_gone = True

        def info() -> PluginInfo:
            return PluginInfo(requires=("workflows",))

        return module_plugin("oven", ksi_plugin=hookimpl(info), ksi_lifespan=hookimpl(lifespan))


async def test_a_step_that_runs_when_the_daemon_stops_has_its_plugin_until_it_ends(
    ksi_home: Path, ksi_plugins: list[EntryPoint], database_logins: Logins
) -> None:
    oven, settings = Oven(), settings_for(database_logins)
    async with (
        running_daemon(ksi_home, *ksi_plugins, oven.plugin(), settings=settings) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        accepted = await client.request("workflow:start", {"name": "roast"})
        await oven.begun.wait()
    next_oven = Oven()
    plugins = (*ksi_plugins, next_oven.plugin())
    async with (
        running_daemon(ksi_home, *plugins, settings=settings) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        ended = await outcome_of(client, accepted["run_id"])

    assert ended["output"] == "done"
    assert oven.was_gone == [False]
    assert not next_oven.begun.is_set()
