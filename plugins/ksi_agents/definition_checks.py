"""Looks whether what a definition names is there: its models, its tools, its profile."""

import re
from collections.abc import Collection, Iterator
from typing import Final

from ksi_agents.definition import BUILT_IN_PROFILES
from ksi_agents.documents import Parsed
from ksi_agents.events import Problem
from ksi_agents.settings import AgentsSettings
from ksi_daemon.bus import Bus
from ksi_daemon.protocol import InvalidData, KsiError, NotFound
from ksi_daemon.protocol.names import did_you_mean, matches
from ksi_models.events import ModelDescribed, ModelListed
from ksi_tools.events import ToolListed

__all__ = ["Checks"]

_AFTER_PROVIDER: Final = re.compile("[:/]")


class _Looked:
    """What was found out already: of models by name, and of their providers."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[str, str, bool]] = {}
        self.providers: dict[str, ModelListed | None] = {}


class Checks:
    """Asks those who know.

    Args:
        bus: Asks them.
        settings: The profiles.
    """

    def __init__(self, bus: Bus, settings: AgentsSettings) -> None:
        self._bus = bus
        self._profiles = (*BUILT_IN_PROFILES, *settings.profiles)

    async def problems(
        self, given: Collection[Parsed], *, with_warnings: bool = True
    ) -> list[Problem]:
        """Return what is named and is not there; of what may still come that is a warning."""
        found = [problem for each in given for problem in self._problems_of_profile(each)]
        found += await self._problems_of_models(given, with_warnings=with_warnings)
        if with_warnings:
            found += await self._problems_of_tools(given)
        return found

    def _problems_of_profile(self, parsed: Parsed) -> Iterator[Problem]:
        profile = parsed.given.get("permissions")
        if profile is not None and profile not in self._profiles:
            hint = did_you_mean(profile, self._profiles) or f"; write {' or '.join(self._profiles)}"
            yield parsed.problem(f"there is no profile {profile!r}{hint}", "permissions")

    # -- models ---------------------------------------------------------------------------------

    async def _problems_of_models(
        self, given: Collection[Parsed], *, with_warnings: bool
    ) -> list[Problem]:
        found: list[Problem] = []
        looked = _Looked()
        for parsed in given:
            for path, model in _models(parsed):
                if model not in looked.models:
                    looked.models[model] = await self._why_not(model)
                model_id, message, is_warning = looked.models[model]
                if with_warnings and not message:
                    message, is_warning = await self._why_not_now(model_id, looked), True
                if message and (with_warnings or not is_warning):
                    found.append(parsed.problem(message, *path, is_warning=is_warning))
        return found

    async def _why_not(self, model: str) -> tuple[str, str, bool]:
        """Return a model's id, or what is wrong with its name and whether that is only a guess."""
        try:
            described: ModelDescribed = await self._bus.request(
                "model:describe", {"model": model}, result_type=ModelDescribed
            )
        except (NotFound, InvalidData) as error:
            return model, error.message, error.message.startswith("nothing answers")
        except KsiError as error:
            return model, f"whether there is a model {model!r} can't be told: {error.message}", True
        return described.id, "", False

    async def _why_not_now(self, model: str, looked: "_Looked") -> str:
        """Say why a model can't be asked at this time, as far as its provider tells."""
        provider = _AFTER_PROVIDER.split(model, maxsplit=1)[0]
        if provider not in looked.providers:
            looked.providers[provider] = await self._listed(provider)
        listed = looked.providers[provider]
        if listed is None:
            return ""
        for each in listed.providers:
            if each.name == provider and not each.is_usable:
                return f"the model {model!r} can't be asked now: {each.why_not}"
        names = [each.id for each in listed.models]
        if names and model not in names:
            return f"{provider} has no model {model!r} now{did_you_mean(model, names)}"
        return ""

    async def _listed(self, provider: str) -> ModelListed | None:
        try:
            found: ModelListed = await self._bus.request(
                "model:list", {"provider": provider}, result_type=ModelListed
            )
        except KsiError:  # it is only asked for a warning
            return None
        return found

    # -- tools ----------------------------------------------------------------------------------

    async def _problems_of_tools(self, given: Collection[Parsed]) -> list[Problem]:
        if not any(each.given.get("tools") for each in given):
            return []
        try:
            listed: ToolListed = await self._bus.request(
                "tool:list", {"all_tools": True}, result_type=ToolListed
            )
        except KsiError as error:
            message = f"which tools there are can't be told: {error.message}"
            return [
                each.problem(message, "tools", is_warning=True)
                for each in given
                if each.given.get("tools")
            ]
        names = [each.name for each in listed.tools]
        return [
            parsed.problem(
                f"no tool {glob!r} is there now{did_you_mean(glob, names)}",
                "tools",
                place,
                is_warning=True,
            )
            for parsed in given
            for place, glob in enumerate(parsed.given.get("tools") or ())
            if not any(matches(name, glob) for name in names)
        ]


def _models(parsed: Parsed) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the models that a definition names, each with where it does so."""
    model = parsed.given.get("model")
    if isinstance(model, str):
        yield ("model",), model
    elif model is not None:
        yield from ((("model", place), each) for place, each in enumerate(model))
