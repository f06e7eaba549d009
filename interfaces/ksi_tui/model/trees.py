"""Puts agents below those that spawned them."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from ksi_agents.events import Agent


class Leaf(Struct, frozen=True):
    """An agent, and the lines that lead to it."""

    stem: str
    agent: Agent


def shown_phase(agent: Agent) -> str:
    """Name the state that people want to know."""
    if agent.phase == "Failed" and agent.reason:
        return agent.reason
    if agent.desired == "paused" and agent.phase in ("Ready", "Pending", "Starting"):
        return "Paused"
    return agent.phase


def tree(agents: Iterable[Agent]) -> list[Leaf]:
    """Order agents by name, each above those that it spawned.

    One whose parent is not among them stands at the root; so does the first of a circle.
    """
    known = {agent.name: agent for agent in sorted(agents, key=lambda agent: agent.name)}
    children: dict[str | None, list[Agent]] = {}
    for agent in known.values():
        parent = agent.parent if agent.parent in known else None
        children.setdefault(parent, []).append(agent)
    placed: dict[str, Leaf] = {}
    for root in (*children.get(None, ()), *known.values()):
        if root.name not in placed:
            _place(root, children, placed)
    return list(placed.values())


def _place(root: Agent, children: dict[str | None, list[Agent]], placed: dict[str, Leaf]) -> None:
    waiting: list[tuple[str, str, Agent]] = [("", "", root)]
    while waiting:
        stem, below, agent = waiting.pop()
        if agent.name in placed:
            continue
        placed[agent.name] = Leaf(stem, agent)
        younger = [each for each in children.get(agent.name, ()) if each.name not in placed]
        waiting.extend(reversed(list(_below(younger, below))))


def _below(younger: list[Agent], below: str) -> Iterator[tuple[str, str, Agent]]:
    for number, child in enumerate(younger, 1):
        is_last = number == len(younger)
        yield below + ("└ " if is_last else "├ "), below + ("  " if is_last else "│ "), child
