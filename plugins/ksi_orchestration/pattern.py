"""What a pattern says: the fields of its document."""

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ksi_models.events import ModelId
from ksi_orchestration.events import Member, PatternName, RoleName

Models = Annotated[tuple[ModelId, ...], Meta(min_length=1, max_length=20)]
Template = Annotated[str, Meta(max_length=100_000)]
Schema = dict[str, Any]
Count = Annotated[int, Meta(ge=1, le=100)]
Phrase = Annotated[str, Meta(min_length=1, max_length=500)]
Recipient = Annotated[str, Meta(min_length=1, max_length=64)]
Kind = Literal["talk", "sequence", "parallel", "map", "vote", "judge"]
Turns = Literal["alternate", "round-robin", "moderator", "free"]

MAX_ROUNDS: Final = 100
MAX_MEMBERS: Final = 50


class Role(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who takes part.

    Attributes:
        agent: The agent that has the role, unless who starts it names another.
        prompt: What it is told with its first turn: who it is here. ``{{ topic }}``,
            ``{{ member }}``, ``{{ role }}`` and ``{{ everyone }}`` can stand in it.
        model: The model or alias it works with, or several: the first that answers; otherwise its
            agent's.
        count: How many have the role; more than one are called ROLE-1, ROLE-2 and so on.
    """

    agent: Member = "general"
    prompt: Template = ""
    model: ModelId | Models | None = None
    count: Count = 1


class Route(Struct, frozen=True, kw_only=True, rename={"sender": "from"}):
    """Who hears what a role says. The first route that fits a sender counts.

    Whom none fits, all others hear; nobody is told what it said itself.

    Attributes:
        sender: A role, ``person``, or ``*`` for whoever it is.
        to: Roles, ``all``, or ``!sender`` (all others).
    """

    sender: Recipient
    to: Recipient | Annotated[tuple[Recipient, ...], Meta(min_length=1, max_length=50)]


class Condition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a role's newest answer, read as JSON, must hold.

    Attributes:
        role: Whose answer.
        field: The field of it, with dots between: ``verdict.score``.
        equals: What the field must be.
        at_least: What the field, a number, must be at least.
    """

    role: RoleName
    field: Phrase
    equals: Any = None
    at_least: float | None = None


class Until(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ends a stage: whichever comes first.

    Attributes:
        rounds: So many rounds of a talk; in one, each member has had a turn, or where there is a
            moderator one was called and has spoken. A talk always has it.
        says: A member said this, in whatever case, as words of their own.
        agreement: All members said this, each in its newest turn of the stage.
        condition: What a role's newest answer holds.
        event: An event that matches this glob was seen.
        wall_s: So much time has gone by since the stage began.
        cost_usd: So much was spent on the stage.
    """

    rounds: Annotated[int, Meta(ge=1, le=MAX_ROUNDS)] | None = None
    says: Phrase | None = None
    agreement: Phrase | None = None
    condition: Condition | None = None
    event: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.:*?-]{1,200}\Z")] | None = None
    wall_s: Annotated[float, Meta(gt=0, le=604_800)] | None = None
    cost_usd: Annotated[float, Meta(gt=0)] | None = None


class OnFailure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is done when a member's turn fails.

    Attributes:
        retries: So often it is asked again.
        substitute: The agent that is asked after that, once, in the member's place.
        then: What is done if that fails, too: go on without its turn, or end.
    """

    retries: Annotated[int, Meta(ge=0, le=10)] = 1
    substitute: Member | None = None
    then: Literal["skip", "stop"] = "stop"


class Stage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a pattern; stages follow one another.

    Attributes:
        name: Its name; later prompts have its result as ``{{ results.NAME }}``.
        kind: ``talk``: members take turns for some rounds. ``sequence``: each has one turn, after
            the one before. ``parallel``: all have one turn at once. ``map``: each item of a list is
            worked on, by the members in turn. ``vote``: each chooses one of the options.
            ``judge``: one says what comes of it.
        members: The roles that take part; all but the moderator and who breaks a tie, unless given.
        prompt: What they are told in each turn: ``{{ topic }}``, ``{{ heard }}`` (what they have
            not been told yet), ``{{ transcript }}`` (all that was said), ``{{ results.NAME }}``,
            ``{{ role }}``, ``{{ member }}`` (one's own name), ``{{ members }}`` (of the stage),
            ``{{ everyone }}``, ``{{ round }}``, ``{{ rounds }}``; in a map ``{{ item }}``, in a
            vote ``{{ options }}``. How to vote, to pass, or to call the next one is added to it.
        turns: Who is next in a talk. ``alternate``: two members by turns; ``round-robin``: each
            after the other; ``moderator``: whom the moderator names; ``free``: all at once who have
            heard something new, and who has nothing to say answers PASS.
        moderator: The role that names the next one.
        over: Of a map: the name of the stage whose result is the list; the topic's lines otherwise.
        options: Of a vote: what can be chosen; otherwise the list that is the result of the stage
            ``over``, or the members that spoke before.
        tie: Of a vote: who decides between equals; otherwise the first of them wins.
        output: A JSON Schema that each answer is held to; not the moderator's.
        until: What ends it.
        on_failure: What is done when a turn fails; otherwise what the pattern says.
    """

    name: RoleName
    kind: Kind
    members: Annotated[tuple[RoleName, ...], Meta(max_length=50)] = ()
    prompt: Template = ""
    turns: Turns = "round-robin"
    moderator: RoleName | None = None
    over: RoleName | None = None
    options: Annotated[tuple[Phrase, ...], Meta(max_length=100)] = ()
    tie: RoleName | None = None
    output: Schema | None = None
    until: Until = Until()
    on_failure: OnFailure | None = None


class PatternLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an orchestration by this pattern may take at most.

    Attributes:
        turns: Turns in all.
        wall_s: Time in all, without that in which it was paused.
        cost_usd: Money in all; a model of unknown price is refused then.
        tokens: Tokens in all.
        items: Items of one map.
        parallel: Turns at once.
    """

    turns: Annotated[int, Meta(ge=1, le=10_000)] = 200
    wall_s: Annotated[float, Meta(gt=0, le=604_800)] = 3600.0
    cost_usd: Annotated[float, Meta(gt=0)] | None = None
    tokens: Annotated[int, Meta(ge=1)] | None = None
    items: Annotated[int, Meta(ge=1, le=1000)] = 100
    parallel: Annotated[int, Meta(ge=1, le=100)] = 8


class Pattern(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How several agents work together.

    Attributes:
        name: Its name.
        description: What it is good for.
        roles: Who takes part.
        routes: Who hears what; otherwise each hears all others.
        stages: What happens, one after the other.
        result: The stage whose result is that of the whole; otherwise the last one.
        limits: What it may take at most.
        on_failure: What is done when a turn fails.
    """

    name: PatternName
    description: Annotated[str, Meta(max_length=2000)] = ""
    roles: Annotated[dict[RoleName, Role], Meta(min_length=1, max_length=MAX_MEMBERS)]
    routes: Annotated[tuple[Route, ...], Meta(max_length=200)] = ()
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=50)]
    result: RoleName | None = None
    limits: PatternLimits = PatternLimits()
    on_failure: OnFailure = OnFailure()
