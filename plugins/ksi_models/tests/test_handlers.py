"""What is told of models: lists, prices, checks, health."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import InvalidData, KsiError
from ksi_models.events import (
    ModelCheck,
    ModelDescribe,
    ModelList,
    ModelPrices,
    ModelSlots,
    ProviderLoad,
    Usage,
)
from ksi_models.handlers import next_step
from ksi_models.prices import Prices
from ksi_models.provider import KnownModel, ProviderError
from ksi_models.settings import ModelsSettings, ProviderSettings
from ksi_models.tests.kit import Acting, Bench, context, fail, stall
from ksi_postgres.database import Database
from ksi_system.events import HealthCheck

Make = Callable[..., Bench]


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Make:
    """Make a bench with providers and settings."""

    def make(*providers: Any, **settings: Any) -> Bench:
        return Bench(database, tmp_path, ModelsSettings(**settings), *providers)

    return make


def there(name: str, *models: str) -> Acting:
    """Make a provider that can be used."""
    made = Acting(name)
    made.known = [KnownModel(name=model) for model in models]
    return made


def away(name: str) -> Acting:
    """Make one that can't."""
    made = Acting(name)
    made.reason = "it has no key: set it"
    return made


# -- lists ----------------------------------------------------------------------------------------


async def test_models_are_listed_with_prices_and_those_that_can_t_be_asked_with_the_reason(
    bench: Make,
) -> None:
    made = bench(
        there("openai", "gpt-5-mini"),
        away("anthropic"),
        there("builtin", "extractive"),
        model="fast",
        aliases={"fast": "openai:gpt-5-mini"},
    )

    listed = await made.handlers.list_all(ModelList())

    models = {model.id: model for model in listed.models}
    assert set(models) == {"openai:gpt-5-mini", "builtin/extractive"}
    assert [model.id for model in listed.models if model.is_default] == ["openai:gpt-5-mini"]
    assert models["openai:gpt-5-mini"].input_usd == 0.25
    assert models["openai:gpt-5-mini"].context_tokens == 400_000
    assert {each.name: each.why_not for each in listed.providers} == {
        "openai": None,
        "anthropic": "it has no key: set it",
        "builtin": None,
    }
    assert listed.aliases == {"fast": ("openai:gpt-5-mini",)}


async def test_one_provider_that_breaks_does_not_spoil_the_list(bench: Make) -> None:
    class Broken(Acting):
        async def models(self) -> list[KnownModel]:
            raise ProviderError("network", "gone")

    made = bench(Broken("a"), there("b", "x"))

    assert [m.id for m in (await made.handlers.list_all(ModelList())).models] == ["b:x"]


async def test_it_is_told_how_busy_those_are_that_were_asked_so_far(bench: Make) -> None:
    made = bench(there("a", "x"), there("b", "y"), there("c", "z"), max_concurrent=2)
    for _ in range(3):
        made.lanes.of("b").slots.ask("somebody")
    made.lanes.of("a")

    listed = made.handlers.slots(ModelSlots())

    assert listed.providers == (
        ProviderLoad(name="a", running=0, waiting=0, max_concurrent=2),
        ProviderLoad(name="b", running=2, waiting=1, max_concurrent=2),
    )


async def test_the_list_may_be_of_one_provider(bench: Make) -> None:
    made = bench(there("a", "x"), there("b", "y"))

    listed = await made.handlers.list_all(ModelList(provider="b"))

    assert [model.id for model in listed.models] == ["b:y"]
    with pytest.raises(InvalidData, match="'c'"):
        await made.handlers.list_all(ModelList(provider="c"))


async def test_an_alias_is_described_by_what_it_means(bench: Make) -> None:
    made = bench(there("openai"), there("b"), aliases={"fast": ("openai:gpt-5-mini", "b:x")})

    told = await made.handlers.describe(ModelDescribe(model="fast"))

    assert (told.id, told.fallbacks, told.context_tokens) == (
        "openai:gpt-5-mini",
        ("b:x",),
        400_000,
    )
    assert told.has_tools


# -- prices ---------------------------------------------------------------------------------------


async def test_prices_are_those_of_what_is_in_use(bench: Make) -> None:
    made = bench(there("openai"), there("local"), model="openai:gpt-5-mini")
    await made.call("local:x")

    with acting_as(context()):
        told = await made.handlers.prices(ModelPrices())

    assert {price.model: price.input_usd for price in told.prices} == {
        "openai:gpt-5-mini": 0.25,
        "local:x": None,
    }


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        ("openai:gpt-5-mini", (900 * 0.25 + 100 * 0.025 + 50 * 2) / 1e6),
        ("openai:no-such-model", None),
        ("box:gpt-5-mini", None),
        ("claude-cli/sonnet", None),
        ("builtin/extractive", 0.0),
        ("nonsense", None),
    ],
)
def test_a_cost_is_known_or_none(model: str, cost: float | None) -> None:
    usage = Usage(input_tokens=1000, output_tokens=50, cache_read_tokens=100)

    told = Prices().cost_usd(model, usage)

    assert told == (None if cost is None else pytest.approx(cost))


def test_more_cached_tokens_than_tokens_are_no_error() -> None:
    usage = Usage(input_tokens=0, output_tokens=0, cache_read_tokens=100, cache_write_tokens=5)

    assert Prices().cost_usd("anthropic:claude-sonnet-4-5", usage) is not None


# -- checks ---------------------------------------------------------------------------------------


async def test_a_check_is_one_small_call(bench: Make) -> None:
    provider = there("openai")
    made = bench(provider)

    with acting_as(context()):
        told = await made.handlers.check(ModelCheck(model="openai:gpt-5-mini"))

    assert (told.ok, told.model, told.error) == (True, "openai:gpt-5-mini", None)
    assert (provider.asked[0].settings.max_tokens or 0) <= 32
    assert [row["purpose"] for row in await made.rows()] == ["check"]


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("login", "OPENAI_API_KEY"),
        ("not_found", "ksi model list"),
        ("invalid", "ksi logs"),
    ],
)
async def test_a_check_that_fails_says_what_to_do(bench: Make, kind: str, step: str) -> None:
    made = bench(Acting("openai", fail(kind)))

    with acting_as(context()):
        told = await made.handlers.check(ModelCheck(model="openai:gpt-5-mini"))

    assert not told.ok
    assert told.error is not None
    assert step in (told.next_step or "")


async def test_a_check_ends_in_its_time(bench: Make) -> None:
    made = bench(Acting("openai", stall()))

    with acting_as(context()):
        told = await made.handlers.check(ModelCheck(model="openai:gpt-5-mini", timeout_s=0.05))

    assert told.error is not None
    assert told.error.code == "timeout"


async def test_a_check_that_another_model_answers_has_failed(bench: Make) -> None:
    made = bench(Acting("a", fail("login")), there("b"), fallbacks={"a:x": "b:y"})

    with acting_as(context()):
        told = await made.handlers.check(ModelCheck(model="a:x"))

    assert (told.ok, told.served) == (False, "b:y")


def test_a_login_of_claude_is_made_with_claude() -> None:
    error = KsiError("no", details={"kind": "login"})

    assert next_step("claude-cli/sonnet", error) == "log in: claude /login"


# -- health ---------------------------------------------------------------------------------------


async def test_a_chosen_model_that_can_t_be_used_is_told(bench: Make) -> None:
    made = bench(away("openai"), model="openai:gpt-5-mini")

    told = await made.handlers.health(HealthCheck())

    assert told.health == "degraded"
    assert told.why == "openai:gpt-5-mini can't be used: it has no key: set it"


async def test_that_there_is_no_real_model_is_no_trouble(bench: Make) -> None:
    assert (await bench(away("openai")).handlers.health(HealthCheck())).health == "ok"


async def test_a_provider_that_is_left_alone_is_told(bench: Make) -> None:
    made = bench(
        Acting("openai", fail("server", message="down")), circuit_failures=1, max_attempts=1
    )
    with pytest.raises(KsiError):
        await made.call("openai:x")

    told = await made.handlers.health(HealthCheck())

    assert told.health == "degraded"
    assert "openai is left alone" in (told.why or "")


# -- the page -------------------------------------------------------------------------------------


def test_the_readme_has_each_setting_of_a_provider() -> None:
    text = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")

    missing = [name for name in ProviderSettings.__struct_fields__ if f"`{name}`" not in text]
    assert missing == []
