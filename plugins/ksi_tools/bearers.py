"""What whoever came with a key or a token may call, where it speaks for no agent."""

from collections.abc import Iterable
from typing import Final

from ksi_daemon.bus import Bus
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import Context
from ksi_daemon.protocol.names import matches_any
from ksi_system.events import PrincipalScoped, PrincipalScopes
from ksi_tools.registry import CLIENT
from ksi_tools.tool import Tool

SCOPE: Final = "tools:call:"  # and the name of what is not read-only: to call it, a key needs that


class Scopes:
    """The scopes of a bearer: one that every answer holds, since two may bear one name.

    Args:
        answers: Globs over scopes.
    """

    def __init__(self, answers: Iterable[tuple[str, ...]]) -> None:
        self._answers = tuple(answers)

    def cover(self, scope: str) -> bool:
        """Say whether the bearer has a scope."""
        return bool(self._answers) and all(matches_any(scope, each) for each in self._answers)

    @property
    def globs(self) -> tuple[str, ...]:
        """The globs that are in every answer."""
        if not self._answers:
            return ()
        first, *others = self._answers
        return tuple(glob for glob in first if all(glob in each for each in others))


async def scopes_of(bus: Bus, context: Context) -> Scopes:
    """Return the scopes of whoever caused an event; the owner, and no agent, has all of them."""
    if not is_bearers(context):
        return Scopes([("*",)])
    asked = PrincipalScopes(principal=context.principal or "")
    answers = await bus.gather("principal:scopes", asked)
    # A connection may contribute, too; what it says of itself does not count.
    found = [each.result for each in answers if not each.plugin.startswith(CLIENT)]
    return Scopes(each.scopes for each in found if isinstance(each, PrincipalScoped) and each.known)


def speaks_for_itself(context: Context) -> bool:
    """Say whether a bearer acts in nobody else's name: then its scopes say what it may call."""
    of_whom = (context.agent, context.conversation, context.run)
    return is_bearers(context) and of_whom == (None, None, None)


def is_covered(tool: Tool, scopes: Scopes) -> bool:
    """Say whether scopes let a bearer call a tool."""
    return tool.is_for_programs or scopes.cover(f"{SCOPE}{tool.name}")
