"""Answers what is asked about models, their prices and what they took."""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import current_context, event_contributor, event_handler
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import InvalidData, KsiError
from ksi_daemon.protocol.names import did_you_mean
from ksi_models import events as e
from ksi_models.calls import Tools
from ksi_models.catalogue import LOOK_TIMEOUT_S, why_not
from ksi_models.keys import variables_of
from ksi_models.prices import split
from ksi_models.provider import Provider
from ksi_models.store import Store
from ksi_system.events import HealthCheck, HealthChecked

log = logging.getLogger(__name__)

CHECK_PROMPT: Final = "Answer with the word: ok"
CHECK_TOKENS: Final = 32  # some providers refuse fewer than 16
PRICED_MODELS: Final = 200
PRICED_DAYS: Final = 90
DAY: Final = timedelta(days=1)
LOST_AFTER: Final = 2  # times what a call may take


class Handlers:
    """What is told of models.

    Args:
        tools: What calls are made with.
        store: What they took.
        bus: Makes the call of a check, which is one like any other.
    """

    def __init__(self, tools: Tools, store: Store, bus: Bus) -> None:
        self._settings = tools.settings
        self._catalogue = tools.catalogue
        self._providers = tools.providers
        self._lanes = tools.lanes
        self._prices = tools.prices
        self._recorder = tools.recorder
        self._store = store
        self._bus = bus

    # -- what there is --------------------------------------------------------------------------

    @event_handler("model:list", scope="models:read")
    async def list_all(self, request: e.ModelList) -> e.ModelListed:
        """List the models that can be asked now, and the providers that can't be, and why."""
        asked = [
            provider
            for provider in self._providers.all()
            if request.provider in (None, provider.name)
        ]
        if not asked and request.provider is not None:
            asked = [self._provider(request.provider)]
        default = await self._catalogue.default()
        is_real = default.hint is None
        chosen = self._catalogue.expand(default.model)[0] if is_real else default.model
        await self._prices.ready(*(f"{each.name}:" for each in asked))
        async with asyncio.TaskGroup() as tasks:
            looks = [
                tasks.create_task(self._look(each, chosen), name=f"look: {each.name}")
                for each in asked
            ]
        found = [look.result() for look in looks]
        return e.ModelListed(
            default=default.model,
            models=tuple(model for _, models in found for model in models),
            providers=tuple(provider for provider, _ in found),
            aliases=self._catalogue.aliases,
            hint=default.hint,
        )

    def _provider(self, name: str) -> Provider:
        found = self._providers.find(name)
        if found is None:
            known = [each.name for each in self._providers.all()]
            raise InvalidData(
                f"there is no provider {name!r}{did_you_mean(name, known)}; model:list (ksi model "
                "list) has those that there are"
            )
        return found

    async def _look(
        self, provider: Provider, default: str
    ) -> tuple[e.ProviderInfo, list[e.ModelInfo]]:
        reason = await why_not(provider)
        models = [] if reason is not None else await self._catalogue.models_of(provider)
        lane = self._lanes.of(provider.name)
        info = e.ProviderInfo(
            name=provider.name,
            is_usable=reason is None,
            why_not=reason,
            state=lane.circuit.state,
            running=lane.slots.running,
            waiting=lane.slots.waiting,
            max_concurrent=lane.slots.max_concurrent,
        )
        return info, [self._catalogue.describe(provider.name, each, default) for each in models]

    @event_handler("model:slots", scope="models:read")
    def slots(self, request: e.ModelSlots) -> e.SlotsListed:
        """Tell how busy the providers are: what runs, what waits, and the bound."""
        loads = [
            e.ProviderLoad(
                name=name,
                running=lane.slots.running,
                waiting=lane.slots.waiting,
                max_concurrent=lane.slots.max_concurrent,
                state=lane.circuit.state,
            )
            for name, lane in self._lanes.all()
        ]
        return e.SlotsListed(providers=tuple(loads))

    @event_handler("model:describe", scope="models:read")
    async def describe(self, request: e.ModelDescribe) -> e.ModelDescribed:
        """Tell which model an id or alias means now, and how much it can read."""
        default = None if request.model else await self._catalogue.default()
        named = request.model or (default.model if default else "")
        model, *fallbacks = self._catalogue.expand(named)
        sizes = await self._catalogue.sizes(model)
        return e.ModelDescribed(
            id=model,
            fallbacks=tuple(fallbacks),
            context_tokens=sizes.context_tokens,
            max_output_tokens=sizes.max_output_tokens,
            has_tools=self._providers.calls_tools(split(model)[0]),
            hint=default.hint if default else None,
        )

    @event_handler("model:prices", scope="models:read")
    async def prices(self, request: e.ModelPrices) -> e.ModelPriced:
        """Tell the prices of a model, or of all that are in use."""
        if request.model is not None:
            models = list(self._catalogue.expand(request.model))
        else:
            since = datetime.now(UTC) - PRICED_DAYS * DAY
            default = (await self._catalogue.candidates(None))[0]
            used = await self._store.models_in_use(_tenant(), since, PRICED_MODELS)
            models = list(dict.fromkeys([default, *used]))
        await self._prices.ready(*models)
        return e.ModelPriced(prices=tuple(map(self._prices.price, models)))

    # -- proof ----------------------------------------------------------------------------------

    @event_handler("model:check", timeout_s=0)
    async def check(self, request: e.ModelCheck) -> e.ModelChecked:
        """Make one real, tiny call, which proves that a model can be used; it may cost a little."""
        if request.model is None:
            self._catalogue.look_again()
        model = (await self._catalogue.candidates(request.model))[0]
        call = e.ModelCall(
            model=model,
            messages=(e.Message(role="user", parts=(e.TextPart(CHECK_PROMPT),)),),
            settings=e.ModelSettings(max_tokens=CHECK_TOKENS),
            purpose="check",
            timeout_s=request.timeout_s,
        )
        started = time.perf_counter()
        response: e.ModelResponse | None = None
        try:
            async for chunk in self._bus.stream("model:call", call):
                response = chunk if isinstance(chunk, e.ModelResponse) else response
        except KsiError as error:
            return e.ModelChecked(
                model=model,
                ok=False,
                latency_ms=_ms_since(started),
                error=error.body,
                next_step=next_step(model, error),
            )
        assert response is not None
        is_it = response.model == model
        return e.ModelChecked(
            model=model,
            ok=is_it,
            latency_ms=_ms_since(started),
            served=response.model,
            cost_usd=response.cost_usd,
            next_step=None if is_it else f"{model} did not answer; {response.model} did instead",
        )

    # -- what it took ---------------------------------------------------------------------------

    @event_handler("model:usage", scope="models:read")
    async def usage(self, request: e.ModelUsage) -> e.ModelUsed:
        """Sum up what calls took: tokens, cost and time, by some of their properties."""
        for name in ("since", "until"):
            moment = getattr(request, name)
            if moment is not None and moment.tzinfo is None:
                raise InvalidData(f"{name} needs a time zone, such as 2026-01-31T00:00:00Z")
        context = current_context()
        assert context is not None  # events have one
        may_see_all = "tenant" in request.by and not is_bearers(context)
        tenant = None if may_see_all else context.tenant
        return await self._store.sums(tenant, request)

    # -- by itself ------------------------------------------------------------------------------

    @event_contributor("health:check")
    async def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether the model that is asked by default can be, and what is left alone."""
        problems = self._lanes.open()
        if self._recorder.dropped:
            problems.append(f"{self._recorder.dropped} rows of calls are lost; see the log")
        if self._recorder.waiting:
            problems.append(f"{self._recorder.waiting} rows of calls wait for Postgres")
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S / 2):
                problems += await self._default_problems()
        except TimeoutError:
            problems.append("whether the default model can be used was not found out in time")
        if not problems:
            return HealthChecked(health="ok")
        return HealthChecked(health="degraded", why="; ".join(problems))

    async def _default_problems(self) -> list[str]:
        """Say what is wrong with the model that was chosen; that there is none is no trouble."""
        if not self._settings.model:
            return []
        try:
            model = (await self._catalogue.candidates(None))[0]
        except KsiError as error:
            return [f"models.model can't be used: {error.message}"]
        reason = await why_not(self._provider(split(model)[0]))
        return [] if reason is None else [f"{model} can't be used: {reason}"]

    async def forget(self) -> None:
        """Delete the rows that are too old, and mark those that nobody has ended, now and then."""
        settings = self._settings
        while True:
            lost = await self._store.lose(timedelta(seconds=LOST_AFTER * settings.call_timeout_s))
            if lost:
                log.warning("calls were lost with a daemon that died", extra={"count": lost})
            while settings.usage_days and await self._store.forget(settings.usage_days * DAY):
                pass
            await asyncio.sleep(settings.usage_interval_s)


def _tenant() -> str:
    context = current_context()
    assert context is not None  # events have one
    return context.tenant


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


def next_step(model: str, error: KsiError) -> str:
    """Say what to do about a model that can't be used."""
    provider = split(model)[0]
    kind = (error.details or {}).get("kind", error.code)
    variable = variables_of(provider)[0]
    steps = {
        "login": f"set {variable}, or write the key into <home>/keys/{provider}, and restart",
        "not_found": "see which models there are: ksi model list",
        "network": f"see that it runs, and models.providers.{provider}.base_url",
        "rate_limited": "wait, or ask the provider for a higher limit",
        "stalled": f"see that it runs, or raise {(error.details or {}).get('setting')}",
        "circuit_open": "wait until it is tried again, or see why it fails",
    }
    if provider == "claude-cli" and kind == "login":
        return "log in: claude /login"
    return steps.get(kind, "see the daemon's log: ksi logs")
