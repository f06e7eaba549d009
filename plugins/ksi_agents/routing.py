"""Chooses the agent for a request: by the words that definitions name, before a model is asked.

A router is an agent that extends ``router``, or is it. Where the words of a request speak for one
agent alone, that one has the turn; otherwise the router has it itself, and its model asks one agent
or several and makes one answer of theirs.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ksi_agents.definition import Definition
from ksi_agents.definitions import Definitions

ROUTER: Final = "router"
MAX_TOLD: Final = 100
MAX_DESCRIPTION: Final = 300


class Routing:
    """Knows which agents there are to choose from.

    Args:
        definitions: All of them.
    """

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    async def chosen(self, tenant: str, name: str, prompt: str) -> str:
        """Return the agent that is to have a turn: for a router's maybe another one."""
        found = await self._definitions.find(tenant, name)
        if found is None or not is_router(found.definition):
            return name
        others = await self._definitions.all(tenant)
        return best(prompt, [each for each in others if not is_router(each)]) or name

    async def others(self, tenant: str, name: str) -> str:
        """Return a list, for a model, of the agents that may be asked."""
        lines = [
            f"- {each.name}: {' '.join(each.description.split())[:MAX_DESCRIPTION]}"
            for each in await self._definitions.all(tenant)
            if each.name != name and not is_router(each) and each.description
        ]
        return "\n".join(lines[:MAX_TOLD])


def is_router(definition: Definition) -> bool:
    """Say whether an agent chooses others."""
    return ROUTER in (definition.name, definition.extends)


def best(prompt: str, definitions: Sequence[Definition]) -> str | None:
    """Return the one agent of whose words the most are in a request; none where two are equal."""
    scores = sorted(
        ((_score(prompt, each.routes), each.name) for each in definitions if each.routes),
        reverse=True,
    )
    if not scores or scores[0][0] == 0:
        return None
    if len(scores) > 1 and scores[1][0] == scores[0][0]:
        return None
    return scores[0][1]


def _score(prompt: str, routes: Sequence[str]) -> int:
    return sum(_pattern(each).search(prompt) is not None for each in routes)


@lru_cache(maxsize=4096)
def _pattern(route: str) -> re.Pattern[str]:
    """Return what finds words as a whole; a * at a word's end stands for any ending."""
    words = [
        re.escape(word[:-1]) + r"\w*" if word.endswith("*") else re.escape(word)
        for word in route.split()
    ]
    between = r"\s+".join(words)
    return re.compile(rf"\b{between}\b" if words else r"(?!)", re.IGNORECASE)
