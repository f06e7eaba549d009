"""Holds agents to their limits: stands before every call of a model, and of a tool.

Money is reserved before a model is called, for the whole question and the longest answer there may
be, and settled after it. So a limit holds in the middle of a turn, whoever else spends meanwhile.
"""

import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from ksi_agents.definition import Limits
from ksi_agents.events import RunLimits
from ksi_agents.ledger import Bounds, Ledger, Refusal
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import event_interceptor
from ksi_daemon.protocol import Denied, Event, Failed
from ksi_models.events import (
    ModelCall,
    ModelChunk,
    ModelDescribe,
    ModelDescribed,
    ModelPrice,
    ModelPriced,
    ModelPrices,
    ModelResponse,
)

ORDER: Final = 500  # inside of gates that may refuse a call altogether
MAX_RUNS: Final = 100_000
MILLION: Final = 1_000_000
BYTES_A_TOKEN: Final = 2.5  # fewer than any text has in the mean: an estimate that is too high
LEAST_ANSWER_TOKENS: Final = 256
NAMES: Final = {"requests": "calls of models", "tokens": "tokens", "tool_calls": "calls of tools"}

Proceed = Callable[[Event], Awaitable[Any]]


class Price(Struct, frozen=True):
    """What a call would cost at most: its question, and each token of its answer."""

    question_usd: float
    answer_usd: float
    answer_tokens: int

    @property
    def most_usd(self) -> float:
        """What the call costs with the longest answer."""
        return self.question_usd + self.answer_tokens * self.answer_usd

    @property
    def least_usd(self) -> float:
        """What it costs with a short answer."""
        return self.question_usd + min(self.answer_tokens, LEAST_ANSWER_TOKENS) * self.answer_usd


class Bounding:
    """Knows which calls count in which accounts, and refuses those that are too many.

    Args:
        ledger: Keeps the accounts.
        bus: Asks what models cost.
    """

    def __init__(self, ledger: Ledger, bus: Bus) -> None:
        self._ledger = ledger
        self._bus = bus
        self._runs: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._priced: set[str] = set()  # those of them whose calls have to be paid

    # -- which accounts -------------------------------------------------------------------------

    async def open(
        self, tenant: str, agent: str, limits: Limits, run: str, parent_run: str | None
    ) -> None:
        """Have a turn's calls count from now on: in its own account, in its agent's, and above.

        Args:
            tenant: Whose they are.
            agent: The account of the agent.
            limits: What is declared of it.
            run: The turn.
            parent_run: The one that asked for it.
        """
        accounts = []
        of_turn, of_agent = bounds_of_turn(limits), bounds_of_life(limits)
        if of_turn.is_any or parent_run is not None:
            account = account_of_run(run)
            above = None if parent_run is None else account_of_run(parent_run)
            await self._ledger.open(tenant, account, above, of_turn)
            accounts.append(account)
        if of_agent.is_any:
            await self._ledger.open(tenant, agent, None, of_agent)
            accounts.append(agent)
        self._note(run, tuple(accounts))

    async def limit(self, tenant: str, run: str, parent_run: str | None, bounds: Bounds) -> None:
        """Have a run of a workflow bounded, and what is called within it count from now on."""
        above = None if parent_run is None else account_of_run(parent_run)
        await self._ledger.open(tenant, account_of_run(run), above, bounds)
        self._note(run, (account_of_run(run),))

    def forget(self, run: str) -> None:
        """Forget a turn that has ended."""
        self._runs.pop(run, None)
        self._priced.discard(run)

    def _note(self, run: str, accounts: tuple[str, ...]) -> None:
        self._runs[run] = accounts
        self._runs.move_to_end(run)
        self._priced.discard(run)  # it may be bounded otherwise now
        while len(self._runs) > MAX_RUNS:
            self.forget(next(iter(self._runs)))

    async def _accounts(self, event: Event) -> tuple[str, ...]:
        """Return the accounts that a call counts in; of a run that is not known here, once."""
        run = event.context.run
        if run is None:
            return ()
        known = self._runs.get(run)
        if known is None:
            account = account_of_run(run)
            is_open = await self._ledger.is_open(tenant_of(event), account)
            known = (account,) if is_open else ()
            self._note(run, known)
        return known

    # -- calls ----------------------------------------------------------------------------------

    @event_interceptor("model:call", order=ORDER)
    async def bound_model_call(self, event: Event, proceed: Proceed) -> Any:
        """Count a call of a model, and let no turn spend more than it may."""
        accounts = await self._accounts(event)
        if not accounts:
            return await proceed(event)
        call = event.data
        assert isinstance(call, ModelCall)
        tenant, number = tenant_of(event), secrets.token_hex(12)
        price, granted = await self._reserve(event, number, accounts, call)
        if price is not None and granted < price.most_usd:
            call = shortened(call, price, granted)
        chunks = await proceed(structs.replace(event, data=call))
        return self._settled(chunks, tenant, number, accounts)

    async def _reserve(
        self, event: Event, number: str, accounts: tuple[str, ...], call: ModelCall
    ) -> tuple[Price | None, float]:
        """Have a call counted, and paid where an account bounds its cost.

        Whether one does is known of the run's earlier calls; of the first it is told in answer.
        """
        tenant, run = tenant_of(event), event.context.run
        assert run is not None
        price = None
        if run in self._priced:
            with suppress(Denied):  # perhaps nobody asks for it any more
                price = await self._price(call)
        while True:
            wanted = (None, 0.0) if price is None else (price.most_usd, price.least_usd)
            granted = await self._ledger.reserve(tenant, number, run, accounts, *wanted)
            if not isinstance(granted, Refusal):
                return price, granted
            if granted.bound != "price":
                raise refused(granted)
            price = await self._price(call)
            self._priced.add(run)

    async def _settled(
        self, chunks: AsyncGenerator[Any], tenant: str, number: str, accounts: tuple[str, ...]
    ) -> AsyncGenerator[Any]:
        """Pass a call's answer on, and count what it took.

        What a call that failed took is not known once something of it has come: then what was
        reserved is taken as spent.
        """
        tokens, usd, is_begun = 0, None, False
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    response = _response_of(chunk)
                    if response is not None:
                        tokens = response.usage.input_tokens + response.usage.output_tokens
                        usd = response.cost_usd
                    is_begun = True
                    yield chunk
        finally:
            spent = usd if usd is not None or is_begun else 0.0
            await self._ledger.settle(tenant, number, accounts, tokens, spent)

    @event_interceptor("tool:call", order=ORDER)
    async def bound_tool_call(self, event: Event, proceed: Proceed) -> Any:
        """Count a call of a tool, and let no agent make more than it may."""
        accounts = await self._accounts(event)
        if accounts:
            tenant = tenant_of(event)
            refusal = await self._ledger.count_tool_call(tenant, accounts)
            if refusal is not None:
                raise refused(refusal)
        return await proceed(event)

    # -- prices ---------------------------------------------------------------------------------

    async def _price(self, call: ModelCall) -> Price:
        """Return what a call costs at most, with the dearest of the models that it may end at.

        Raises:
            Denied: The price of one of them is not known.
        """
        described = await self._bus.request(
            "model:describe", ModelDescribe(model=call.model), result_type=ModelDescribed
        )
        prices: list[ModelPrice] = []
        for name in (described.id, *call.fallbacks):
            priced = await self._bus.request(
                "model:prices", ModelPrices(model=name), result_type=ModelPriced
            )
            prices.extend(priced.prices)
        for each in prices:
            if each.input_usd is None or each.output_usd is None:
                raise Denied(
                    f"what {each.model} costs is not known, so that a limit of cost can't be kept: "
                    "choose a model whose price is known (ksi model list), or take the limit away "
                    "(limits.cost_usd, limits.total_cost_usd)",
                    details={"kind": "unknown_price", "model": each.model},
                )
        asked_usd = max(max(each.input_usd or 0.0, each.cache_write_usd or 0.0) for each in prices)
        return Price(
            question_usd=_question_tokens(call, described) * asked_usd / MILLION,
            answer_usd=max(each.output_usd or 0.0 for each in prices) / MILLION,
            answer_tokens=call.settings.max_tokens or described.max_output_tokens,
        )


def tenant_of(event: Event) -> str:
    """Return in whose name an event is."""
    return event.context.tenant or "default"


def _question_tokens(call: ModelCall, described: ModelDescribed) -> float:
    if call.range is not None:
        return described.context_tokens
    parts = (call.system, call.messages, call.tools, call.output_schema)
    size = sum(len(msgspec.json.encode(part)) for part in parts if part)
    return min(size / BYTES_A_TOKEN, described.context_tokens)


def _response_of(chunk: Any) -> ModelResponse | None:
    if isinstance(chunk, dict) and chunk.get("kind") == "response":
        whole = msgspec.convert(chunk, ModelChunk)
        return whole if isinstance(whole, ModelResponse) else None
    return chunk if isinstance(chunk, ModelResponse) else None


def shortened(call: ModelCall, price: Price, granted_usd: float) -> ModelCall:
    """Return the call with an answer no longer than what is left can pay."""
    affordable = int((granted_usd - price.question_usd) / price.answer_usd)
    tokens = max(min(affordable, price.answer_tokens), 1)
    return structs.replace(call, settings=structs.replace(call.settings, max_tokens=tokens))


def refused(refusal: Refusal) -> Failed:
    """Return the error that tells whose bound was reached, and where it is set."""
    kind, _, whose = refusal.account.partition("#")[0].partition(":")
    name = refusal.bound if kind == "run" else f"total_{refusal.bound}"
    who = f"the run {whose}" if kind == "run" else f"the agent {whose}"
    if refusal.bound == "cost_usd":
        message = (
            f"{who} has spent or reserved {refusal.taken:.6g} of {refusal.most:.6g} US dollars: "
            f"what is left does not pay for another call (limits.{name})"
        )
    else:
        message = (
            f"{who} has made {refusal.taken:g} {NAMES[refusal.bound]}, and may make "
            f"{refusal.most:g} (limits.{name})"
        )
    details = {"kind": refusal.bound, "setting": f"limits.{name}"}
    if kind == "run":
        details["run_id"] = whose
    return Failed(message, details=details)


def bounds_of_turn(limits: Limits | RunLimits) -> Bounds:
    """Return what one turn may take, with all that is asked for within it."""
    return Bounds(
        requests=limits.requests,
        tool_calls=limits.tool_calls,
        tokens=limits.tokens,
        usd=limits.cost_usd,
    )


def bounds_of_life(limits: Limits) -> Bounds:
    """Return what an agent may take in all its life."""
    return Bounds(
        requests=limits.total_requests,
        tool_calls=limits.total_tool_calls,
        tokens=limits.total_tokens,
        usd=limits.total_cost_usd,
    )


def account_of_run(run: str) -> str:
    """Return the account of a turn."""
    return f"run:{run}"


def account_of_agent(agent: str, life: str = "") -> str:
    """Return the account of an agent: of one that was spawned, that of this life of its."""
    return f"agent:{agent}#{life}" if life else f"agent:{agent}"
