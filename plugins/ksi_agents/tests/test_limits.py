"""Limits: money is reserved before a call and settled after it, whoever else spends meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import structs

from ksi_agents.definition import Limits
from ksi_agents.ledger import Bounds, Ledger
from ksi_agents.limits import Bounding, account_of_agent, account_of_run
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, event_handler
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Context, Denied, Failed
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_models.events import (
    Message,
    ModelCall,
    ModelChunk,
    ModelDescribe,
    ModelDescribed,
    ModelPrice,
    ModelPriced,
    ModelPrices,
    ModelResponse,
    ModelSettings,
    TextDelta,
    TextPart,
    Usage,
)
from ksi_postgres.database import Database
from ksi_tools.events import ToolCall, ToolCalled

DOLLAR_A_TOKEN = 1_000_000.0  # for a million of them


class Shop:
    """A model of known price, and a tool.

    Attributes:
        price_usd: What a million tokens cost.
        tokens: What its next answer takes.
        calls: What it was asked.
        gate: Where set, what answers wait for.
    """

    def __init__(self) -> None:
        self.price_usd: float | None = 1.0
        self.tokens = 100
        self.cost_usd: float | None = 0.01
        self.calls: list[ModelCall] = []
        self.gate: asyncio.Event | None = None
        self.began = asyncio.Event()
        self.fails_after: int | None = None
        self.awaited = 0

    def arrive(self) -> None:
        """Open the gate when all are there."""
        self.awaited -= 1
        if self.awaited == 0 and self.gate is not None:
            self.gate.set()

    @event_handler("model:describe")
    def describe(self, request: ModelDescribe) -> ModelDescribed:
        return ModelDescribed(
            id="shop:model", fallbacks=(), context_tokens=100_000, max_output_tokens=10_000
        )

    @event_handler("model:prices")
    def prices(self, request: ModelPrices) -> ModelPriced:
        price = ModelPrice(
            model=request.model or "", input_usd=self.price_usd, output_usd=self.price_usd
        )
        return ModelPriced(prices=(price,))

    @event_handler("model:call")
    async def call(self, request: ModelCall) -> AsyncIterator[ModelChunk]:
        self.calls.append(request)
        self.began.set()
        self.arrive()
        if self.gate is not None:
            await self.gate.wait()
        if self.fails_after == 0:
            raise Failed("no answer")
        yield TextDelta("hm")
        if self.fails_after is not None:
            raise Failed("the line is cut")
        yield ModelResponse(
            call_id="m",
            model_asked="shop:model",
            model="shop:model",
            message=Message("assistant", (TextPart("hm"),)),
            finish="stop",
            usage=Usage(input_tokens=self.tokens, output_tokens=0),
            cost_usd=self.cost_usd,
        )

    @event_handler("tool:call")
    async def tool(self, request: ToolCall) -> ToolCalled:
        return ToolCalled(call_id="t", name=request.name, status="done")


class Bench:
    """What a test works with."""

    def __init__(self) -> None:
        self.shop = Shop()
        self.database: Database
        self.ledger: Ledger
        self.bounding: Bounding
        self.bus: Bus

    async def ask(self, run: str = "r", **fields: Any) -> list[Any]:
        """Call the model in a turn, and return what came."""
        call = ModelCall(messages=(Message("user", (TextPart("go"),)),), **fields)
        with acting_as(Context("", tenant="default", run=run, agent="ann")):
            return [chunk async for chunk in self.bus.stream("model:call", call)]

    async def use(self, run: str = "r") -> None:
        """Call the tool in a turn."""
        with acting_as(Context("", tenant="default", run=run, agent="ann")):
            await self.bus.request("tool:call", ToolCall(name="look"))

    async def open(self, limits: Limits, run: str = "r", parent: str | None = None) -> None:
        await self.bounding.open("default", account_of_agent("ann"), limits, run, parent)

    async def spent(self, account: str) -> tuple[float, float]:
        taken = await self.ledger.taken("default", account)
        return taken.usd, taken.reserved_usd


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def ksi_plugins(bench: Bench) -> list[EntryPoint]:
    @hookimpl
    async def ksi_lifespan(plugin: Any) -> AsyncIterator[None]:
        bench.bus = plugin.bus
        bench.database = plugin.service(Database)
        bench.ledger = Ledger(bench.database)
        bench.bounding = Bounding(bench.ledger, plugin.bus)
        plugin.add(bench.shop, bench.bounding)
        yield

    described = hookimpl(lambda: PluginInfo(requires=("postgres",)))
    installed = installed_plugins("postgres")
    return [*installed, module_plugin("bench", ksi_plugin=described, ksi_lifespan=ksi_lifespan)]


@pytest.fixture(autouse=True)
def _running(daemon: Any) -> None:
    """Have the daemon run."""


async def test_what_a_call_took_is_counted_and_nothing_stays_reserved(bench: Bench) -> None:
    await bench.open(Limits(cost_usd=1.0, total_cost_usd=5.0))
    await bench.ask()

    assert await bench.spent(account_of_run("r")) == (0.01, 0.0)
    assert await bench.spent(account_of_agent("ann")) == (0.01, 0.0)


async def test_while_a_call_is_made_its_worst_cost_is_reserved(bench: Bench) -> None:
    bench.shop.gate = asyncio.Event()
    await bench.open(Limits(cost_usd=1.0))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.ask())
        await bench.shop.began.wait()
        spent, reserved = await bench.spent(account_of_run("r"))
        bench.shop.gate.set()

    assert spent == 0.0
    assert reserved > 0.01  # 10,000 tokens of an answer, and the question


async def test_an_answer_is_no_longer_than_what_is_left_can_pay(bench: Bench) -> None:
    await bench.open(Limits(cost_usd=0.002))
    await bench.ask()

    asked = bench.shop.calls[0].settings.max_tokens
    assert asked is not None
    assert 1500 < asked < 2000


async def test_a_call_that_cannot_be_paid_is_not_made(bench: Bench) -> None:
    bench.shop.cost_usd = 0.9999
    await bench.open(Limits(cost_usd=1.0))
    await bench.ask()

    with pytest.raises(Failed, match=r"0\.9999 of 1 US dollars.*limits\.cost_usd"):
        await bench.ask()
    assert len(bench.shop.calls) == 1


async def test_calls_at_once_never_spend_more_than_there_is(bench: Bench) -> None:
    limits = Limits(total_cost_usd=0.025)  # two calls of at most 0.01 each, and a little
    bench.shop.cost_usd = None  # so that what was reserved is taken as spent
    bench.shop.gate = asyncio.Event()
    runs = [f"r{number}" for number in range(10)]
    for run in runs:
        await bench.open(limits, run)

    async def go(run: str) -> bool:
        try:
            await bench.ask(run)
        except Failed:
            bench.shop.arrive()
            return False
        return True

    bench.shop.awaited = len(runs)  # the model answers when each call is made or refused
    async with asyncio.TaskGroup() as tasks:
        going = [tasks.create_task(go(run)) for run in runs]

    spent, reserved = await bench.spent(account_of_agent("ann"))
    assert sum(each.result() for each in going) in (2, 3)
    assert spent <= 0.025
    assert reserved == 0.0


async def test_under_a_limit_of_cost_a_model_of_unknown_price_is_refused(bench: Bench) -> None:
    bench.shop.price_usd = None
    await bench.open(Limits(cost_usd=1.0))

    with pytest.raises(Denied, match="shop:model costs is not known"):
        await bench.ask()
    assert not bench.shop.calls


async def test_without_a_limit_of_cost_a_model_of_unknown_price_may_be_called(
    bench: Bench,
) -> None:
    bench.shop.price_usd = None
    await bench.open(Limits(requests=5))

    assert len(await bench.ask()) == 2


async def test_what_is_asked_for_within_a_turn_counts_in_it(bench: Bench) -> None:
    await bench.open(Limits(cost_usd=0.02), "parent")
    await bench.open(Limits(), "child", "parent")
    await bench.open(Limits(), "grandchild", "child")
    bench.shop.cost_usd = 0.0199
    await bench.ask("grandchild")

    assert await bench.spent(account_of_run("parent")) == (0.0199, 0.0)
    with pytest.raises(Failed, match="the run parent"):
        await bench.ask("child")


async def test_a_call_that_failed_before_anything_came_costs_nothing(bench: Bench) -> None:
    bench.shop.fails_after = 0
    await bench.open(Limits(cost_usd=1.0))
    with pytest.raises(Failed):
        await bench.ask()

    assert await bench.spent(account_of_run("r")) == (0.0, 0.0)


async def test_of_a_call_that_broke_off_what_was_reserved_is_taken_as_spent(bench: Bench) -> None:
    bench.shop.fails_after = 1
    await bench.open(Limits(cost_usd=1.0))
    with pytest.raises(Failed, match="cut"):
        await bench.ask()

    spent, reserved = await bench.spent(account_of_run("r"))
    assert spent > 0.01
    assert reserved == 0.0


async def test_what_a_dead_daemon_had_reserved_is_taken_as_spent_when_the_turn_goes_on(
    bench: Bench,
) -> None:
    await bench.open(Limits(cost_usd=1.0))
    accounts, dead = (account_of_run("r"),), Ledger(bench.database)
    assert await dead.reserve("default", "lost", "r", accounts, 0.25, 0.25) == 0.25
    await bench.ask()

    assert await bench.spent(account_of_run("r")) == (0.26, 0.0)


async def test_calls_that_a_run_makes_at_once_are_each_paid_once(bench: Bench) -> None:
    bench.shop.gate, bench.shop.awaited = asyncio.Event(), 3
    await bench.bounding.limit("default", "play", None, Bounds(usd=1.0))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(bench.ask("play"))

    assert await bench.spent(account_of_run("play")) == (0.03, 0.0)


async def test_a_bound_of_cost_that_comes_later_holds_and_one_that_is_gone_does_not(
    bench: Bench,
) -> None:
    bench.shop.price_usd = None
    await bench.bounding.limit("default", "play", None, Bounds(requests=9))
    await bench.open(Limits(), "turn", "play")
    await bench.ask("turn")

    await bench.bounding.limit("default", "play", None, Bounds(usd=1.0))
    with pytest.raises(Denied, match="not known"):
        await bench.ask("turn")
    bench.shop.price_usd = 1.0
    await bench.ask("turn")
    await bench.bounding.limit("default", "play", None, Bounds())
    bench.shop.price_usd = None
    await bench.ask("turn")

    assert await bench.spent(account_of_run("play")) == (0.03, 0.0)
    assert (await bench.ledger.taken("default", account_of_run("play"))).requests == 3


async def test_a_life_has_so_many_requests_whatever_its_turns_have(bench: Bench) -> None:
    limits = Limits(total_requests=2)
    for run in ("a", "b"):
        await bench.open(limits, run)
        await bench.ask(run)
    await bench.open(limits, "c")

    with pytest.raises(Failed, match=r"made 2 calls of models, and may make 2.*total_requests"):
        await bench.ask("c")


async def test_tokens_of_all_calls_are_counted(bench: Bench) -> None:
    await bench.open(Limits(tokens=150))
    await bench.ask()
    await bench.ask()

    with pytest.raises(Failed, match=r"200 tokens.*limits\.tokens"):
        await bench.ask()


async def test_calls_of_tools_are_counted_too(bench: Bench) -> None:
    await bench.open(Limits(total_tool_calls=1))
    await bench.use()

    with pytest.raises(Failed, match=r"limits\.total_tool_calls"):
        await bench.use()


async def test_calls_of_tools_within_a_turn_count_in_it(bench: Bench) -> None:
    await bench.open(Limits(tool_calls=2), "parent")
    await bench.open(Limits(), "child", "parent")
    await bench.open(Limits(), "grandchild", "child")
    await bench.use("grandchild")
    await bench.use("parent")

    with pytest.raises(Failed, match=r"the run parent has made 2 calls of tools"):
        await bench.use("child")
    assert (await bench.ledger.taken("default", account_of_run("grandchild"))).tool_calls == 1


async def test_calls_of_turns_without_limits_are_let_through_as_they_are(bench: Bench) -> None:
    settings = ModelSettings(max_tokens=7)
    await bench.ask("nobody", settings=settings)

    assert structs.asdict(bench.shop.calls[0].settings)["max_tokens"] == 7
