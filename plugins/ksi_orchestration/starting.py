"""Agrees on what an orchestration is to be, and refuses what could not be worked on."""

import hashlib
from typing import Any, Final, TypeVar

import msgspec
from msgspec import structs

from ksi_agents.events import RunLimits
from ksi_daemon.bus import Bus
from ksi_daemon.protocol import InvalidData, KsiError, NotFound
from ksi_models.events import ModelDescribed
from ksi_orchestration.events import Budget, OrchestrationStart
from ksi_orchestration.pattern import Pattern, PatternLimits, Stage
from ksi_orchestration.play import Score, cast

Number = TypeVar("Number", int, float)

TALK: Final = "talk"


def agreed(pattern: Pattern, request: OrchestrationStart, max_heard_characters: int) -> Score:
    """Return a pattern with what who starts it wants of it.

    Raises:
        InvalidData: Agents or models are given for nobody.
    """
    stages = tuple(_with_rounds(stage, request.rounds) for stage in pattern.stages)
    limits = bounded(pattern.limits, request.budget)
    return Score(
        pattern=structs.replace(pattern, stages=stages, limits=limits),
        topic=request.topic,
        members=cast(pattern, request.agents, request.models),
        max_heard_characters=max_heard_characters,
    )


def _with_rounds(stage: Stage, rounds: int | None) -> Stage:
    if rounds is None or stage.kind != TALK:
        return stage
    return structs.replace(stage, until=structs.replace(stage.until, rounds=rounds))


def bounded(limits: PatternLimits, budget: Budget) -> PatternLimits:
    """Return a pattern's limits, or what a budget has that is less."""
    return structs.replace(
        limits,
        wall_s=_least(limits.wall_s, budget.wall_s),
        cost_usd=_least(limits.cost_usd, budget.cost_usd),
        tokens=_least(limits.tokens, budget.tokens),
    )


def run_limits(score: Score, budget: Budget) -> RunLimits:
    """Return what all turns may take together."""
    limits = score.pattern.limits
    return RunLimits(
        cost_usd=limits.cost_usd,
        tokens=limits.tokens,
        requests=budget.requests,
        tool_calls=budget.tool_calls,
    )


def digest_of(request: OrchestrationStart) -> str:
    """Return what tells a request from any other of the same id."""
    plain = structs.replace(request, id=None)
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:32]


def _least(first: Number | None, second: Number | None) -> Any:
    return min((each for each in (first, second) if each is not None), default=None)


class Checking:
    """Asks whether there is what an orchestration needs, before anything is recorded.

    Args:
        bus: Knows agents and models.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def check(self, score: Score) -> None:
        """Refuse members and substitutes that are not there.

        Raises:
            InvalidData: An agent or a model is not there; the nearest is named.
        """
        pattern = score.pattern
        failures = (pattern.on_failure, *(stage.on_failure for stage in pattern.stages))
        agents = dict.fromkeys(member.agent for member in score.members)
        agents |= dict.fromkeys(f.substitute for f in failures if f is not None and f.substitute)
        for agent in agents:
            await self._check_agent(agent)
        for model in dict.fromkeys(model for each in score.members for model in each.models):
            await self._check_model(model)

    async def _check_agent(self, name: str) -> None:
        try:
            await self._bus.request("agent:definition", {"name": name})
        except NotFound as error:
            if not await self._is_running(name):
                raise InvalidData(error.message, details=error.details) from error

    async def _is_running(self, name: str) -> bool:
        try:
            await self._bus.request("agent:get", {"name": name})
        except NotFound:
            return False
        return True

    async def _check_model(self, model: str) -> None:
        try:
            await self._bus.request("model:describe", {"model": model}, result_type=ModelDescribed)
        except (NotFound, InvalidData) as error:
            if not error.message.startswith("nothing answers"):
                raise InvalidData(error.message, details=error.details) from error
        except KsiError:
            return  # its provider is away; whoever is asked says so
