"""The settings of the orchestrations."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive


class OrchestrationSettings(Struct, frozen=True, kw_only=True):
    """The section ``[orchestration]``.

    Attributes:
        patterns: The folder of one's own patterns, files ``*.yaml``; beside the home's files unless
            it is an absolute path.
        max_orchestrations: Orchestrations of one tenant that have not ended.
        max_at_once: Orchestrations that one daemon works on at once; others wait.
        max_heard_characters: How much a member is told at once of what the others said; the
            oldest is shortened.
        max_said_characters: How much of an answer is kept in the transcript; all of it is in its
            member's conversation.
        ended_kept_s: How long orchestrations that have ended are kept, with what was said.
        sweep_s: How often orchestrations are looked for that nobody has taken on.
    """

    patterns: str = "patterns"
    max_orchestrations: Positive = 1000
    max_at_once: Positive = 50
    max_heard_characters: Annotated[int, Meta(ge=1000)] = 40_000
    max_said_characters: Annotated[int, Meta(ge=1000)] = 100_000
    ended_kept_s: Annotated[float, Meta(gt=0)] = 30 * 86_400.0
    sweep_s: Annotated[float, Meta(gt=0)] = 10.0
