"""Says to the gate of the tools what each agent may call."""

from collections import OrderedDict
from typing import Final

from ksi_agents.definition import Definition
from ksi_agents.settings import AgentsSettings, Profile
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Context, InvalidData
from ksi_tools.events import ToolPermit

EVERYTHING: Final = ("*",)
# What an agent may call at most: what only reads; what its definition names; whatever there is.
BUILT_IN: Final = {
    "restricted": Profile(),
    "standard": Profile(allow=EVERYTHING),
    "trusted": Profile(allow=EVERYTHING),
}
MAX_SAID: Final = 100_000


class Permits:
    """Tells the gate; what it was told it is not told again.

    An agent is bounded by its permissions profile, and that by the agent that spawned it: the most
    restrictive wins.

    Args:
        bus: Carries it there.
        settings: The profiles.
    """

    def __init__(self, bus: Bus, settings: AgentsSettings) -> None:
        self._bus = bus
        self._profiles = {**BUILT_IN, **settings.profiles}
        self._said: OrderedDict[tuple[str, str], tuple[ToolPermit, ToolPermit]] = OrderedDict()

    async def say(self, tenant: str, name: str, definition: Definition, parent: str | None) -> None:
        """Have the gate know what an agent may call.

        Raises:
            InvalidData: Its profile is in the settings no more.
        """
        permits = self._permits(name, definition, parent)
        if self._said.get((tenant, name)) == permits:
            return
        with acting_as(Context("", tenant=tenant)):
            for permit in permits:
                await self._bus.request("tool:permit", permit)
        self._said[tenant, name] = permits
        self._said.move_to_end((tenant, name))
        if len(self._said) > MAX_SAID:
            self._said.popitem(last=False)

    async def forget(self, tenant: str, name: str) -> None:
        """Have the gate forget an agent: who bears its name next may call what is read-only."""
        self._said.pop((tenant, name), None)
        with acting_as(Context("", tenant=tenant)):
            for subject in (subject_of(name), bound_of(name)):
                await self._bus.request("tool:permit", ToolPermit(subject=subject, forget=True))

    def _permits(
        self, name: str, definition: Definition, parent: str | None
    ) -> tuple[ToolPermit, ToolPermit]:
        profile = self._profiles.get(definition.permissions)
        if profile is None:
            raise InvalidData(
                f"the agent {name} has the permissions profile {definition.permissions!r}, which "
                f"is not there: put it into [agents.profiles.{definition.permissions}]"
            )
        bound = ToolPermit(
            subject=bound_of(name),
            allow=profile.allow,
            deny=profile.deny,
            parent=None if parent is None else subject_of(parent),
        )
        allow = definition.tools
        if allow is None and definition.permissions == "trusted":
            allow = EVERYTHING
        own = ToolPermit(
            subject=subject_of(name), allow=allow, deny=definition.deny, parent=bound_of(name)
        )
        return bound, own


def subject_of(name: str) -> str:
    """Return what the gate calls an agent."""
    return f"agent:{name}"


def bound_of(name: str) -> str:
    """Return what the gate calls the profile that bounds an agent."""
    return f"agent:{name}@profile"
