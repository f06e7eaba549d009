"""Says what happens next in an orchestration: a function of its pattern and of what was said.

It asks no clock and no chance, so that a daemon that takes an orchestration over comes to the same
turns as the one that began them.
"""

from collections.abc import Sequence

from ksi_orchestration.casting import cast
from ksi_orchestration.events import Utterance
from ksi_orchestration.hearing import hearers
from ksi_orchestration.prompts import prompt_of
from ksi_orchestration.results import result_of_all, result_so_far
from ksi_orchestration.scene import Failed, Pending, Scene, Slot
from ksi_orchestration.score import PERSON, Cast, Ended, Move, Moves, Score, Seen
from ksi_orchestration.stages import groups_of, is_over

__all__ = [
    "PERSON",
    "Cast",
    "Ended",
    "Move",
    "Moves",
    "Score",
    "Seen",
    "cast",
    "hearers",
    "next_moves",
    "result_so_far",
]


def next_moves(score: Score, said: tuple[Utterance, ...], seen: Seen) -> Moves | Ended:
    """Return the turns that are next, or how it ended."""
    stages = score.pattern.stages
    for place in range(_reached(score, said), len(stages)):
        scene = Scene(score, said, stages[place])
        found = _next_in(scene, seen)
        if isinstance(found, Failed):
            return _failed(score, said, found)
        if found:
            return _bounded(scene, found, seen)
    return Ended(status="succeeded", reason="done", result=result_of_all(score, said))


def _reached(score: Score, said: Sequence[Utterance]) -> int:
    """Return the place of the last stage in which a member had a turn."""
    places = {stage.name: place for place, stage in enumerate(score.pattern.stages)}
    return max((places.get(each.stage, 0) for each in said if each.member != PERSON), default=0)


def _next_in(scene: Scene, seen: Seen) -> list[tuple[Slot, Pending]] | Failed:
    """Return the turns of a stage that are to be had now; none where it has come to its end."""
    for group in groups_of(scene):
        states = [(slot, scene.state(slot)) for slot in group]
        for _, state in states:
            if isinstance(state, Failed):
                return state
        pending = [(slot, state) for slot, state in states if isinstance(state, Pending)]
        if pending:
            # Of a stage that has not begun nothing was seen yet: that was in the one before.
            return [] if scene.turns and is_over(scene, seen) else pending
    return []


# -- moves ----------------------------------------------------------------------------------------


def _bounded(scene: Scene, pending: list[tuple[Slot, Pending]], seen: Seen) -> Moves | Ended:
    """Return turns as far as the pattern's limits allow them."""
    limits = scene.score.pattern.limits
    turns = [each for each in scene.said if each.member != PERSON]
    if seen.elapsed_s >= limits.wall_s:
        return _spent(scene, "time", f"limits.wall_s ({limits.wall_s:g} s) is over")
    if limits.tokens is not None and sum(each.tokens for each in turns) >= limits.tokens:
        return _spent(scene, "cost", f"limits.tokens ({limits.tokens:,}) are spent")
    cost = sum(each.cost_usd or 0.0 for each in turns)
    if limits.cost_usd is not None and cost >= limits.cost_usd:
        return _spent(scene, "cost", f"limits.cost_usd ({limits.cost_usd:g}) is spent")
    left = limits.turns - len(turns)
    if left <= 0:
        return _spent(scene, "turns", f"limits.turns ({limits.turns}) have been had")
    moves = _moves(scene, pending[:left])
    return Moves(stage=scene.stage.name, round=min(each.round for each in moves), moves=moves)


def _moves(scene: Scene, pending: list[tuple[Slot, Pending]]) -> tuple[Move, ...]:
    moves: list[Move] = []
    given: set[str] = set()
    for slot, state in pending:
        moves.append(_move(scene, slot, state, is_first=slot.member not in given))
        given.add(slot.member)
    return tuple(moves)


def _move(scene: Scene, slot: Slot, state: Pending, *, is_first: bool) -> Move:
    member, stage = scene.cast_of(slot.member), scene.stage
    return Move(
        key=f"{stage.name}.{slot.round}.{slot.member}.{state.attempt}",
        stage=stage.name,
        round=slot.round,
        member=slot.member,
        agent=state.substitute or member.agent,
        prompt=prompt_of(scene, slot, is_first=is_first),
        after=scene.said[-1].number if scene.said else 0,
        models=() if state.substitute else member.models,
        output_schema=None if slot.member == scene.moderator else stage.output,
        item=slot.item,
    )


# -- ends -----------------------------------------------------------------------------------------


def _spent(scene: Scene, reason: str, message: str) -> Ended:
    result = result_so_far(scene.score, scene.said)
    return Ended(status="failed", reason=reason, result=result, message=message)


def _failed(score: Score, said: tuple[Utterance, ...], failed: Failed) -> Ended:
    utterance = failed.said
    why = utterance.error.message if utterance.error is not None else "it did not answer"
    return Ended(
        status="failed",
        reason="failed",
        result=result_so_far(score, said),
        message=f"{utterance.member} could not have its turn in {utterance.stage}: {why}",
    )
