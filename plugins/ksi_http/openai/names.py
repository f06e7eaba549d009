"""Agents and models as OpenAI's clients name them."""

import time
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ksi_agents.events import AgentDefinitions, DefinitionsListed
from ksi_daemon.protocol import NotFound
from ksi_http.openai.shapes import ModelShown
from ksi_models.events import ModelDescribe, ModelDescribed, ModelList, ModelListed

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

AGENT: Final = "agent:"
KNOWN_S: Final = 30.0
MAX_KNOWN: Final = 1000
MAX_LISTED: Final = 1000


class Meant(Struct, frozen=True):
    """What a name means: an agent, or else a model."""

    agent: str | None = None
    model: str | None = None


class Names:
    """Finds out what names mean, and lists them.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app
        self._known: dict[tuple[str, str], tuple[float, Meant]] = {}

    async def find(self, caller: "Caller", name: str) -> Meant:
        """Return what a name means.

        ``agent:<name>`` is an agent; so is a bare name that no model has.

        Raises:
            NotFound: Neither an agent nor a model bears it.
        """
        now, key = time.monotonic(), (caller.tenant, name)
        until, meant = self._known.get(key, (0.0, Meant()))
        if until > now:
            return meant
        meant = await self._find(caller, name)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = (now + KNOWN_S, meant)
        return meant

    async def _find(self, caller: "Caller", name: str) -> Meant:
        if name.startswith(AGENT):
            agent = name.removeprefix(AGENT)
            await self._app.chats.check_agent(caller, agent)
            return Meant(agent=agent)
        if ":" not in name and "/" not in name:
            try:
                await self._app.chats.check_agent(caller, name)
            except NotFound:
                pass  # then it is a model's alias, or nothing
            else:
                return Meant(agent=name)
        described = ModelDescribe(model=name)
        await self._app.chats.look(caller, "model:describe", described, ModelDescribed)
        return Meant(model=name)

    async def listed(self, caller: "Caller") -> tuple[ModelShown, ...]:
        """Return all that may be named: agents, models, and other names of these."""
        shown: list[ModelShown] = []
        asked = AgentDefinitions(limit=MAX_LISTED)
        agents = await self._if_there(caller, "agent:definitions", asked, DefinitionsListed)
        if agents is not None:
            shown += [_shown(AGENT + each.name, "ksi") for each in agents.definitions]
        models = await self._if_there(caller, "model:list", ModelList(), ModelListed)
        if models is not None:
            shown += [_shown(each.id, each.provider) for each in models.models]
            shown += [_shown(each, "ksi") for each in models.aliases]
        return tuple(shown)

    async def _if_there(self, caller: "Caller", event: str, data: Any, kind: Any) -> Any:
        try:
            return await self._app.chats.look(caller, event, data, kind)
        except NotFound:
            return None  # a daemon without that plugin


def _shown(name: str, owner: str) -> ModelShown:
    return ModelShown(id=name, owned_by=owner)
