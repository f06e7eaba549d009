"""Finds what fits in a pattern by its type and makes no sense, or would never end."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from ksi_daemon.fields import Fault, Fields, why_no_schema
from ksi_daemon.protocol.names import did_you_mean
from ksi_daemon.yaml_text import Path
from ksi_orchestration.casting import cast, member_names
from ksi_orchestration.events import PatternName, RoleName
from ksi_orchestration.hearing import hearers
from ksi_orchestration.pattern import MAX_MEMBERS, Kind, Pattern, Stage
from ksi_orchestration.prompts import PLAIN_NAMES, RESULTS, ROLE_NAMES
from ksi_orchestration.score import PERSON, Score
from ksi_orchestration.templates import is_name, names_in

__all__ = ["faults_of"]

MAX_FAULTS: Final = 100
RESERVED: Final = (PERSON, "all", "nobody")

_SMALL: Final = "made of small letters, digits, '-' and '_', 32 at most, and begins with a letter"
_FIELDS: Final = Fields(
    Pattern,
    "pattern",
    {
        msgspec.json.schema(PatternName)["pattern"]: (
            "a name is made of small letters, digits, '.', '-' and '_', 63 at most, and begins and "
            "ends with a letter or digit"
        ),
        msgspec.json.schema(RoleName)["pattern"]: f"the name of a role or a stage is {_SMALL}",
    },
)


def faults_of(given: dict[str, Any]) -> list[Fault]:
    """Return what is wrong with the fields of a pattern; none where it is sound."""
    faults = _FIELDS.faults(given)
    return (faults or list(_unsound(msgspec.convert(given, Pattern))))[:MAX_FAULTS]


def _unsound(pattern: Pattern) -> Iterator[Fault]:
    yield from _unsound_roles(pattern)
    yield from _unsound_routes(pattern)
    names = [stage.name for stage in pattern.stages]
    for place, stage in enumerate(pattern.stages):
        path: Path = ("stages", place)
        if stage.name in names[:place]:
            yield Fault((*path, "name"), f"there is another stage {stage.name!r} before")
        for fault in _unsound_stage(pattern, place):
            yield Fault((*path, *fault.path), fault.message)
    if pattern.result is not None:
        yield from _unknown(pattern.result, names, "stage", ("result",))


def _unknown(name: str, known: Collection[str], what: str, path: Path) -> Iterator[Fault]:
    if name not in known:
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        yield Fault(path, f"there is no {what} {name!r:.100}{hint}")


# -- roles and routes -----------------------------------------------------------------------------


def _unsound_roles(pattern: Pattern) -> Iterator[Fault]:
    counts = Counter(
        member for name, role in pattern.roles.items() for member in member_names(name, role)
    )
    if counts.total() > MAX_MEMBERS:
        message = f"they come to {counts.total()} members, and {MAX_MEMBERS} are the most"
        yield Fault(("roles",), message)
    for name, role in pattern.roles.items():
        path: Path = ("roles", name)
        if name in RESERVED:
            yield Fault(path, f"{name!r} is no name for a role: it means something in routes")
        for member in member_names(name, role):
            if counts[member] > 1:
                yield Fault(path, f"there are two members {member!r}")
        yield from _unsound_template(role.prompt, ROLE_NAMES, (), (*path, "prompt"))


def _unsound_routes(pattern: Pattern) -> Iterator[Fault]:
    senders: list[str] = []
    for place, route in enumerate(pattern.routes):
        path: Path = ("routes", place)
        yield from _unknown(route.sender, (*pattern.roles, PERSON, "*"), "role", (*path, "from"))
        if route.sender in senders or "*" in senders:
            yield Fault(path, f"it is never used: a route before it is for {route.sender!r}, too")
        senders.append(route.sender)
        recipients = (route.to,) if isinstance(route.to, str) else route.to
        for recipient in recipients:
            known = (*pattern.roles, "all", "!sender")
            yield from _unknown(recipient, known, "role", (*path, "to"))


# -- stages ---------------------------------------------------------------------------------------


def _unsound_stage(pattern: Pattern, place: int) -> Iterator[Fault]:
    stage = pattern.stages[place]
    yield from _unsound_roles_of(pattern, stage)
    yield from _misplaced(stage)
    yield from _unsound_over(pattern, place)
    yield from _KINDS[stage.kind](pattern, place)
    if stage.output is not None and (why := why_no_schema(stage.output)):
        yield Fault(("output",), why)
    if stage.until.condition is not None:
        yield from _unsound_condition(pattern, stage)
    earlier = [each.name for each in pattern.stages[:place]]
    yield from _unsound_template(stage.prompt, _names_for(stage), earlier, ("prompt",))


def _names_for(stage: Stage) -> list[str]:
    left_out = {"map": {"options"}, "vote": {"item"}}.get(stage.kind, {"item", "options"})
    return [name for name in PLAIN_NAMES if name not in left_out]


def _unsound_roles_of(pattern: Pattern, stage: Stage) -> Iterator[Fault]:
    for place, role in enumerate(stage.members):
        yield from _unknown(role, pattern.roles, "role", ("members", place))
        if role in stage.members[:place]:
            yield Fault(("members", place), f"{role!r} is named twice")
    for field in ("moderator", "tie"):
        role = getattr(stage, field)
        if role is None:
            continue
        yield from _unknown(role, pattern.roles, "role", (field,))
        if _count(pattern, [role]) > 1:
            yield Fault((field,), f"of {role!r} there are several, and one is to decide")
        if role in stage.members:
            yield Fault((field,), f"{role!r} is one of the members, too")
    if not any(_taking_part(pattern, stage)):
        yield Fault((), "there is nobody left to take part in it")


def _taking_part(pattern: Pattern, stage: Stage) -> list[str]:
    """Return the roles that take part in a stage, as `Scene.members` has them."""
    beside = (stage.moderator, stage.tie)
    return list(stage.members) or [role for role in pattern.roles if role not in beside]


def _count(pattern: Pattern, roles: Sequence[str]) -> int:
    return sum(pattern.roles[role].count for role in {*roles} if role in pattern.roles)


_ONLY_IN: Final[Mapping[str, tuple[Kind, ...]]] = {
    "turns": ("talk",),
    "moderator": ("talk",),
    "over": ("map", "vote"),
    "options": ("vote",),
    "tie": ("vote",),
}
_UNTIL: Final[Sequence[Kind]] = ("talk", "sequence")


def _misplaced(stage: Stage) -> Iterator[Fault]:
    """Yield the fields that mean nothing in a stage of its kind."""
    default = Stage(name=stage.name, kind=stage.kind)
    for field, kinds in _ONLY_IN.items():
        if stage.kind not in kinds and getattr(stage, field) != getattr(default, field):
            yield Fault((field,), f"a stage of kind {stage.kind} has none: it is for {kinds[0]}")
    if stage.kind not in _UNTIL and stage.until != default.until:
        yield Fault(("until",), f"a stage of kind {stage.kind} ends by itself, and has none")
    if stage.kind == "sequence" and stage.until.rounds is not None:
        yield Fault(("until", "rounds"), "in a sequence each has one turn; rounds are for a talk")


def _unsound_over(pattern: Pattern, place: int) -> Iterator[Fault]:
    over = pattern.stages[place].over
    if over is None:
        return
    names = [stage.name for stage in pattern.stages]
    if over in names[place:] and over not in names[:place]:
        yield Fault(("over",), f"the stage {over!r} does not come before this one")
    else:
        yield from _unknown(over, names[:place] or ["none before this"], "stage", ("over",))


def _unsound_condition(pattern: Pattern, stage: Stage) -> Iterator[Fault]:
    condition = stage.until.condition
    assert condition is not None  # it was looked at just now
    path: Path = ("until", "condition")
    roles = [*_taking_part(pattern, stage), *filter(None, [stage.moderator])]
    yield from _unknown(condition.role, roles, "role in this stage", (*path, "role"))
    if (condition.equals is None) == (condition.at_least is None):
        yield Fault(path, "it has either equals or at_least")


# -- kinds ----------------------------------------------------------------------------------------


def _unsound_talk(pattern: Pattern, place: int) -> Iterator[Fault]:
    stage = pattern.stages[place]
    if stage.until.rounds is None:
        message = "it might never end: a talk has until.rounds, whatever else may end it before"
        yield Fault(("until",), message)
    if (stage.moderator is None) == (stage.turns == "moderator"):
        why = "it names no moderator" if stage.moderator is None else "its turns are not moderated"
        yield Fault(("moderator",), f"{why}: turns: moderator and moderator: ROLE go together")
    count = _count(pattern, _taking_part(pattern, stage))
    if stage.turns == "alternate" and count != 2:
        yield Fault(("turns",), f"two alternate, and these are {count}; write round-robin")


def _unsound_map(pattern: Pattern, place: int) -> Iterator[Fault]:
    stage = pattern.stages[place]
    if stage.prompt and "item" not in names_in(stage.prompt):
        yield Fault(("prompt",), "it has no {{ item }}: each would be told the same")


def _unsound_vote(pattern: Pattern, place: int) -> Iterator[Fault]:
    stage = pattern.stages[place]
    if stage.options and stage.over is not None:
        yield Fault(("options",), "it has either options or over")
    if not stage.options and stage.over is None and place == 0:
        yield Fault((), "there is nothing to choose from: it has neither options nor over")
    if len(stage.options) == 1:
        yield Fault(("options",), "there is one, and that is no choice")
    known = [option.casefold().strip() for option in stage.options]
    for number, option in enumerate(known):
        if option in known[:number] or not option:
            yield Fault(("options", number), "it is empty or stands there twice")


def _unsound_judge(pattern: Pattern, place: int) -> Iterator[Fault]:
    stage = pattern.stages[place]
    roles = _taking_part(pattern, stage)
    if not pattern.roles.keys() >= set(roles):
        return  # that is told already
    count = _count(pattern, roles)
    if count != 1:
        yield Fault(("members",), f"one judges, and these are {count}; write members: [ROLE]")
    elif not _is_reached(pattern, place, roles[0]):
        message = (
            f"{roles[0]!r} hears nothing that it could judge: no route leads there from an earlier "
            "stage, and its prompt has neither {{ transcript }} nor {{ results.STAGE }}"
        )
        yield Fault((), message)


def _is_reached(pattern: Pattern, place: int, judge: str) -> bool:
    prompt = pattern.stages[place].prompt
    if any(name == "transcript" or name.startswith(RESULTS) for name in names_in(prompt)):
        return True
    score = Score(pattern=pattern, topic="", members=cast(pattern))
    judges = {each.name for each in score.members if each.role == judge}
    earlier = {
        role
        for stage in pattern.stages[:place]
        for role in (*_taking_part(pattern, stage), stage.moderator, stage.tie)
    }
    speakers = [each.name for each in score.members if each.role in earlier]
    return any(judges & {*hearers(score, speaker)} for speaker in speakers)


def _sound(pattern: Pattern, place: int) -> Iterator[Fault]:
    yield from ()


_KINDS: Final[Mapping[Kind, Callable[[Pattern, int], Iterator[Fault]]]] = {
    "talk": _unsound_talk,
    "sequence": _sound,
    "parallel": _sound,
    "map": _unsound_map,
    "vote": _unsound_vote,
    "judge": _unsound_judge,
}


# -- templates ------------------------------------------------------------------------------------


def _unsound_template(
    template: str, names: Sequence[str], stages: Sequence[str], path: Path
) -> Iterator[Fault]:
    known = [*names, *(f"{RESULTS}{stage}" for stage in stages)]
    for name in dict.fromkeys(names_in(template)):
        if not is_name(name):
            yield Fault(path, f"between braces stands a name, and {name!r:.100} is none")
        elif name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            yield Fault(path, f"there is no {{{{ {name:.100} }}}} here{hint}")
