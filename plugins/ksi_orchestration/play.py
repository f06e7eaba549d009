"""Says what happens next in an orchestration: a function of its pattern and of what was said.

It asks no clock and no chance, so that a daemon that takes an orchestration over comes to the same
turns as the one that began them.
"""

from typing import Any, Literal

from msgspec import Struct

from ksi_orchestration.events import Utterance
from ksi_orchestration.pattern import Pattern


class Cast(Struct, frozen=True, kw_only=True):
    """A member: one who takes part, its role, its agent and its model."""

    name: str
    role: str
    agent: str
    models: tuple[str, ...] = ()


class Score(Struct, frozen=True, kw_only=True):
    """What was agreed when an orchestration was started."""

    pattern: Pattern
    topic: str
    members: tuple[Cast, ...]


class Seen(Struct, frozen=True, kw_only=True):
    """What a play needs to know beside what was said; all of it as of the last utterance.

    Attributes:
        elapsed_s: Since the start, without pauses.
        stage_elapsed_s: Since the stage began, without pauses.
        events: The names of events that were seen since the stage began.
    """

    elapsed_s: float = 0.0
    stage_elapsed_s: float = 0.0
    events: tuple[str, ...] = ()


class Move(Struct, frozen=True, kw_only=True):
    """A turn that is to be had; moves that are given together are had at once.

    Attributes:
        key: What tells it from any other move of the orchestration, the same each time it is found.
        prompt: What the member is told, all in all.
        output_schema: What its answer is held to.
    """

    key: str
    stage: str
    round: int
    member: str
    agent: str
    prompt: str
    models: tuple[str, ...] = ()
    output_schema: dict[str, Any] | None = None
    item: str | None = None


class Moves(Struct, frozen=True, kw_only=True):
    """The turns that are next; ``stage`` and ``round`` are where it stands."""

    stage: str
    round: int
    moves: tuple[Move, ...]


class Ended(Struct, frozen=True, kw_only=True):
    """It has come to its end; ``result`` is what came of it."""

    status: Literal["succeeded", "failed"]
    reason: str
    result: str


def cast(pattern: Pattern, agents: Any, models: Any) -> tuple[Cast, ...]:
    """Return who takes part; see `OrchestrationStart` for how agents and models are given.

    Raises:
        InvalidData: More are given than there are members, or for a role that there is none of.
    """
    raise NotImplementedError


def next_moves(score: Score, said: tuple[Utterance, ...], seen: Seen) -> Moves | Ended:
    """Return the turns that are next, or how it ended."""
    raise NotImplementedError


def hearers(score: Score, sender: str, to: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the members that hear what one says (a member's name, or ``person``)."""
    raise NotImplementedError
