"""Says which turns a stage has, in groups of those that are had at once."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from ksi_daemon.protocol.names import matches
from ksi_orchestration.answers import chosen, field_of, json_in, says
from ksi_orchestration.pattern import MAX_ROUNDS, Condition, Kind
from ksi_orchestration.prompts import NEXT, NOBODY, not_told
from ksi_orchestration.results import items_of, options_of, tied_of
from ksi_orchestration.scene import TIE_BREAK, Scene, Slot
from ksi_orchestration.score import Seen

__all__ = ["groups_of", "is_over"]

Group: TypeAlias = list[Slot]


def groups_of(scene: Scene) -> Iterator[Group]:
    """Yield the turns of a stage; each group may be known only once that before it is done."""
    return _GROUPS[scene.stage.kind](scene)


def _talk(scene: Scene) -> Iterator[Group]:
    turns = scene.stage.turns
    rounds = range(1, (scene.stage.until.rounds or MAX_ROUNDS) + 1)
    if turns == "free":
        return _free(scene, rounds)
    if turns == "moderator":
        return _moderated(scene, rounds)
    return ([Slot(number, member)] for number in rounds for member in scene.members)


def _free(scene: Scene, rounds: range) -> Iterator[Group]:
    for number in rounds:
        begun = scene.spoke_in(number)
        if not begun and number > 1:
            begun = tuple(member for member in scene.members if not_told(scene, member))
        if not begun and number > 1:
            return  # nobody has heard anything new
        yield [Slot(number, member) for member in begun or scene.members]


def _moderated(scene: Scene, rounds: range) -> Iterator[Group]:
    moderator = scene.moderator
    assert moderator is not None  # a pattern without one is refused
    for number in rounds:
        call = Slot(number, moderator)
        yield [call]
        said = scene.answer(call)
        called = None if said is None else chosen(said.text, NEXT, _callable(scene))
        if called == NOBODY:
            return
        yield [Slot(number, _member_called(scene, called, number))]


def _callable(scene: Scene) -> tuple[str, ...]:
    roles = (scene.cast_of(member).role for member in scene.members)
    return tuple(dict.fromkeys([*scene.members, *roles, NOBODY]))


def _member_called(scene: Scene, called: str | None, number: int) -> str:
    """Return who is called; where that can't be told it is who has spoken least."""
    if called in scene.members:
        return called
    of_role = [each for each in scene.members if scene.cast_of(each).role == called]
    before = [each.member for each in scene.turns if each.round < number]
    return min(of_role or scene.members, key=before.count)


def _sequence(scene: Scene) -> Iterator[Group]:
    return ([Slot(1, member)] for member in scene.members)


def _parallel(scene: Scene) -> Iterator[Group]:
    yield [Slot(1, member) for member in scene.members]


def _map(scene: Scene) -> Iterator[Group]:
    members = scene.members
    yield [
        Slot(number, members[(number - 1) % len(members)], item)
        for number, item in enumerate(items_of(scene), 1)
    ]


def _vote(scene: Scene) -> Iterator[Group]:
    if len(options_of(scene)) < 2:
        return
    yield [Slot(1, member) for member in scene.members]
    decider = scene.one_of(scene.stage.tie)
    if decider is not None and len(tied_of(scene)) > 1:
        yield [Slot(TIE_BREAK, decider)]


_GROUPS: Final[Mapping[Kind, Callable[[Scene], Iterator[Group]]]] = {
    "talk": _talk,
    "sequence": _sequence,
    "parallel": _parallel,
    "map": _map,
    "vote": _vote,
    "judge": _sequence,
}


# -- until ----------------------------------------------------------------------------------------


def is_over(scene: Scene, seen: Seen) -> bool:
    """Say whether something ends a stage before all its turns were had."""
    until = scene.stage.until
    spent = sum(each.cost_usd or 0.0 for each in scene.turns)
    return (
        (until.says is not None and _has_said(scene, until.says))
        or (until.agreement is not None and _agree(scene, until.agreement))
        or (until.condition is not None and _holds(scene, until.condition))
        or (until.event is not None and any(matches(each, until.event) for each in seen.events))
        or (until.wall_s is not None and seen.stage_elapsed_s >= until.wall_s)
        or (until.cost_usd is not None and spent >= until.cost_usd)
    )


def _has_said(scene: Scene, phrase: str) -> bool:
    return any(says(each.text, phrase) for each in scene.answers())


def _agree(scene: Scene, phrase: str) -> bool:
    newest = [scene.newest(member) for member in scene.members]
    return all(each is not None and says(each.text, phrase) for each in newest)


def _holds(scene: Scene, condition: Condition) -> bool:
    answers = [each for each in scene.answers() if each.member in scene.of_role(condition.role)]
    if not answers:
        return False
    found = field_of(json_in(answers[-1].text), condition.field)
    if condition.at_least is not None:
        return _is_number(found) and bool(found >= condition.at_least)
    if _is_number(found) != _is_number(condition.equals):  # to Python, true is 1
        return False
    return bool(found == condition.equals)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
