"""What a play is made of: who takes part, what is known, and what is next."""

from typing import Any, Final, Literal

from msgspec import Struct

from ksi_orchestration.pattern import Pattern

PERSON: Final = "person"
MAX_HEARD_CHARACTERS: Final = 40_000


class Cast(Struct, frozen=True, kw_only=True):
    """A member: one who takes part, its role, its agent and its model."""

    name: str
    role: str
    agent: str
    models: tuple[str, ...] = ()


class Score(Struct, frozen=True, kw_only=True):
    """What was agreed when an orchestration was started.

    Attributes:
        max_heard_characters: What a member is told at once of what others said; so long may each
            result be, too, that is put into a prompt.
    """

    pattern: Pattern
    topic: str
    members: tuple[Cast, ...]
    max_heard_characters: int = MAX_HEARD_CHARACTERS


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
        after: The number of the last utterance when it was found: it is told of none that is newer.
        output_schema: What its answer is held to.
    """

    key: str
    stage: str
    round: int
    member: str
    agent: str
    prompt: str
    after: int
    models: tuple[str, ...] = ()
    output_schema: dict[str, Any] | None = None
    item: str | None = None


class Moves(Struct, frozen=True, kw_only=True):
    """The turns that are next; ``stage`` and ``round`` are where it stands."""

    stage: str
    round: int
    moves: tuple[Move, ...]


class Ended(Struct, frozen=True, kw_only=True):
    """It has come to its end; ``result`` is what came of it, ``message`` says why it failed."""

    status: Literal["succeeded", "failed"]
    reason: str
    result: str
    message: str = ""
