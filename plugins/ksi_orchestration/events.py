"""The payloads of ``orchestration:*``."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_daemon.protocol.wire import ErrorBody

PatternName = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")]
RoleName = Annotated[str, Meta(pattern=r"\A[a-z]([a-z0-9_-]{0,30}[a-z0-9])?\Z")]
Member = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")]  # an agent
Id = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,100}\Z")]
Topic = Annotated[str, Meta(min_length=1, max_length=100_000)]
Source = Annotated[str, Meta(min_length=1, max_length=1_000_000)]
Said = Annotated[str, Meta(min_length=1, max_length=100_000)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Cursor = Annotated[str, Meta(max_length=300)]
Status = Literal["running", "paused", "succeeded", "failed", "stopped"]


# -- patterns -----------------------------------------------------------------------------------


class OrchestrationPatterns(Struct, frozen=True, kw_only=True):
    """List the patterns by name: built in, of plugins, and those in the folder of patterns."""


class PatternInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A pattern without its text; ``origin`` is ``built-in``, ``plugin`` or a file's path."""

    name: str
    description: str
    origin: str
    roles: tuple[str, ...]
    stages: tuple[str, ...]


class PatternProblem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wrong in a document, and where; ``line`` counts from 1."""

    path: str
    message: str
    line: int | None = None
    field: str = ""


class PatternsListed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Patterns, and what is wrong with files that hold none."""

    patterns: tuple[PatternInfo, ...]
    problems: tuple[PatternProblem, ...] = ()


class OrchestrationPattern(Struct, frozen=True, kw_only=True):
    """Show a pattern: its text, and all that it comes to."""

    name: PatternName


class PatternShown(Struct, frozen=True, kw_only=True):
    """A pattern; ``resolved`` has every default."""

    info: PatternInfo
    text: str
    resolved: dict[str, Any]


class OrchestrationValidate(Struct, frozen=True, kw_only=True):
    """Check a pattern without starting anything; ``path`` is for messages."""

    text: Source
    path: Annotated[str, Meta(max_length=1000)] = "pattern.yaml"


class PatternValidated(Struct, frozen=True, kw_only=True):
    """What is wrong; nothing where ``is_valid``."""

    is_valid: bool
    problems: tuple[PatternProblem, ...]
    names: tuple[str, ...]


class OrchestrationSchema(Struct, frozen=True, kw_only=True):
    """Give the JSON Schema of patterns, for editors."""


class PatternSchemaGiven(Struct, frozen=True, kw_only=True):
    """The JSON Schema of a pattern."""

    json_schema: dict[str, Any]


# -- orchestrations -----------------------------------------------------------------------------


class Budget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the whole may take at most; the pattern's own limits hold, too."""

    cost_usd: Annotated[float, Meta(gt=0)] | None = None
    tokens: Annotated[int, Meta(ge=1)] | None = None
    requests: Annotated[int, Meta(ge=1)] | None = None
    tool_calls: Annotated[int, Meta(ge=0)] | None = None
    wall_s: Annotated[float, Meta(gt=0, le=604_800)] | None = None


class OrchestrationStart(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Have several agents work on something; once this is answered, it outlives the daemon.

    ``pattern`` is a name; ``document`` is the text of a pattern of one's own. ``agents`` are given
    to the members by role, or in their order; so are ``models`` (each to the next member, begun
    anew where there are more members). ``rounds`` is that of every talk. With an ``id`` starting
    twice is starting once.
    """

    topic: Topic
    pattern: PatternName | None = None
    document: Source | None = None
    agents: (
        Annotated[tuple[Member, ...], Meta(max_length=50)]
        | Annotated[dict[str, Member], Meta(max_length=50)]
    ) = ()
    models: (
        Annotated[tuple[str, ...], Meta(max_length=50)]
        | Annotated[dict[str, str], Meta(max_length=50)]
    ) = ()
    rounds: Annotated[int, Meta(ge=1, le=100)] | None = None
    budget: Budget = Budget()
    id: Id | None = None


class MemberState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who takes part, and what it does now; ``run_id`` is its turn where it has one."""

    name: str
    role: str
    agent: str
    conversation_id: str
    model: str | None = None
    turns: int = 0
    failures: int = 0
    cost_usd: float = 0.0
    run_id: str | None = None


class Orchestration(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An orchestration, and how it stands.

    ``reason`` says why it ended: ``done``, ``turns``, ``time``, ``cost``, ``stopped``, ``failed``.
    ``cost_usd`` counts what is known; ``is_cost_known`` is false where a price was not. Lists and
    streams leave out the ``result``.
    """

    id: str
    pattern: str
    topic: str
    status: Status
    run_id: str
    stage: str = ""
    round: int = 0
    turns: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    is_cost_known: bool = True
    reason: str = ""
    result: str | None = None
    error: ErrorBody | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None


class OrchestrationStatus(Struct, frozen=True, kw_only=True):
    """Tell how an orchestration stands."""

    id: Id


class StatusTold(Struct, frozen=True, kw_only=True):
    """An orchestration and its members."""

    orchestration: Orchestration
    members: tuple[MemberState, ...]


class OrchestrationList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """List orchestrations, the newest first."""

    status: tuple[Status, ...] | None = None
    pattern: str | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class OrchestrationsListed(Struct, frozen=True, kw_only=True):
    """Orchestrations; ``cursor`` is ``None`` on the last page."""

    orchestrations: tuple[Orchestration, ...]
    cursor: str | None = None


class OrchestrationMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say something in an orchestration; members hear it with their next turns.

    ``to`` are roles or members; otherwise the pattern's routes for ``person`` count.
    """

    id: Id
    text: Said
    to: Annotated[tuple[str, ...], Meta(max_length=50)] = ()
    message_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class OrchestrationPause(Struct, frozen=True, kw_only=True):
    """Begin no more turns; those that run are finished."""

    id: Id


class OrchestrationResume(Struct, frozen=True, kw_only=True):
    """Go on where it was paused."""

    id: Id


class OrchestrationStop(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """End it: turns that run are cancelled. Stopping twice is stopping once."""

    id: Id
    reason: Annotated[str, Meta(max_length=500)] = ""


class Utterance(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="utterance", tag_field="kind"
):
    """What was said, or that a member could not answer; numbered from 1.

    ``member`` is ``person`` where a person said it. ``to`` are the members that hear it. ``after``
    is the number of the last thing said that its prompt could tell of.
    """

    number: int
    stage: str
    round: int
    member: str
    agent: str | None = None
    to: tuple[str, ...] = ()
    text: str = ""
    after: int = 0
    item: str | None = None
    run_id: str | None = None
    model: str | None = None
    tokens: int = 0
    cost_usd: float | None = None
    error: ErrorBody | None = None
    said_at: datetime | None = None


class OrchestrationTranscript(Struct, frozen=True, kw_only=True):
    """Tell what was said, after a number; with ``wait_s`` wait until there is something."""

    id: Id
    after: Annotated[int, Meta(ge=0)] = 0
    limit: Limit = 100
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 0.0


class TranscriptTold(Struct, frozen=True, kw_only=True):
    """What was said; ``after`` is what to ask for next."""

    utterances: tuple[Utterance, ...]
    after: int
    status: Status


class OrchestrationFollow(Struct, frozen=True, kw_only=True):
    """Stream what is said, from a number on, until it has ended; whichever daemon works on it."""

    id: Id
    after: Annotated[int, Meta(ge=0)] = 0


class TurnBegan(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="turn", tag_field="kind"
):
    """A member has begun to speak: its words are at ``completion:stream {run_id}``."""

    stage: str
    round: int
    member: str
    agent: str
    run_id: str
    item: str | None = None


class StatusChanged(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="status", tag_field="kind"
):
    """How it stands now; the last chunk of ``orchestration:follow`` has one that has ended."""

    orchestration: Orchestration


FollowChunk = Utterance | TurnBegan | StatusChanged


class OrchestrationChanged(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Published when an orchestration starts, is paused, goes on, gets to a stage, or ends."""

    id: str
    pattern: str
    status: Status
    run_id: str
    stage: str = ""
    round: int = 0
    reason: str = ""


class OrchestrationSaid(Struct, frozen=True, kw_only=True):
    """Published when something was said; its text is in the transcript."""

    id: str
    run_id: str
    number: int
    member: str
    stage: str
    round: int
