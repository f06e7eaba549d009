"""Says what came of a stage, and of the whole."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from ksi_orchestration.answers import items_in, voted
from ksi_orchestration.events import Utterance
from ksi_orchestration.hearing import in_order, told
from ksi_orchestration.pattern import Stage
from ksi_orchestration.scene import TIE_BREAK, Scene, Slot, stage_of
from ksi_orchestration.score import Score

__all__ = [
    "BALLOT",
    "items_of",
    "options_of",
    "result_for_prompt",
    "result_of_all",
    "result_so_far",
    "tied_of",
]

BALLOT: Final = "vote"
MAX_OPTIONS: Final = 100
MAX_OPTION_CHARACTERS: Final = 500
MAX_ITEM_CHARACTERS: Final = 10_000

Writer: TypeAlias = Callable[[Sequence[Utterance]], str]


# -- of the whole ---------------------------------------------------------------------------------


def result_of_all(score: Score, said: tuple[Utterance, ...]) -> str:
    """Return the result of an orchestration that was played to its end."""
    stages = score.pattern.stages
    return _for_people(score, said, stage_of(score, score.pattern.result or "") or stages[-1])


def result_so_far(score: Score, said: tuple[Utterance, ...]) -> str:
    """Return what came of an orchestration that ends early: the newest result that there is."""
    found = result_of_all(score, said)
    for stage in reversed(score.pattern.stages):
        found = found or _for_people(score, said, stage)
    return found


def _for_people(score: Score, said: tuple[Utterance, ...], stage: Stage) -> str:
    scene = Scene(score, said, stage)
    result = _result(scene, _read_out)
    if stage.kind != "vote" or not result:
        return result
    votes = ", ".join(f"{option}: {count}" for option, count in _counts(scene).most_common())
    return f"{result}\n\n(votes: {votes})" if votes else result


def _read_out(said: Sequence[Utterance]) -> str:
    return "\n\n".join(f"**{_title(each)}**\n\n{each.text.strip()}" for each in said)


def _title(utterance: Utterance) -> str:
    item = " ".join((utterance.item or "").split())
    return f"{utterance.member}: {item}" if item else utterance.member


# -- of a stage -----------------------------------------------------------------------------------


def result_for_prompt(score: Score, said: tuple[Utterance, ...], name: str) -> str:
    """Return the result of a stage as later prompts have it."""
    stage = stage_of(score, name)
    if stage is None:
        return ""
    return _result(Scene(score, said, stage), lambda some: told(some, score.max_heard_characters))


def _result(scene: Scene, write: Writer) -> str:
    kind = scene.stage.kind
    if kind == "vote":
        return _elected(scene) or ""
    answers = in_order(scene.score, scene.answers())
    if not answers:
        return ""
    if kind == "map":
        return write(sorted(answers, key=lambda each: each.round)) + _left_out(scene)
    if kind in ("talk", "parallel") and len(answers) > 1:
        return write(answers)
    return answers[-1].text.strip()


# -- lists ----------------------------------------------------------------------------------------


def items_of(scene: Scene) -> list[str]:
    """Return the items of a map; no more than its pattern allows."""
    return _all_items(scene)[: scene.score.pattern.limits.items]


def _all_items(scene: Scene) -> list[str]:
    over = scene.stage.over
    text = scene.score.topic if over is None else _plain(scene, over)
    return [item[:MAX_ITEM_CHARACTERS] for item in items_in(text)]


def _left_out(scene: Scene) -> str:
    limit = scene.score.pattern.limits.items
    more = len(_all_items(scene)) - limit
    return f"\n\n[{more} more items were left out: limits.items is {limit}]" if more > 0 else ""


def _plain(scene: Scene, name: str) -> str:
    """Return the result of a stage as its members wrote it, without saying who did."""
    stage = stage_of(scene.score, name)
    if stage is None:
        return ""
    other = Scene(scene.score, scene.said, stage)
    return _result(other, lambda said: "\n".join(each.text.strip() for each in said))


# -- votes ----------------------------------------------------------------------------------------


def options_of(scene: Scene) -> tuple[str, ...]:
    """Return what can be chosen in a vote."""
    stage = scene.stage
    if stage.options:
        return stage.options
    if stage.over is not None:
        found = [" ".join(each.split()) for each in items_in(_plain(scene, stage.over))]
    else:
        found = _spoke_before(scene)
    return tuple(dict.fromkeys(each[:MAX_OPTION_CHARACTERS] for each in found))[:MAX_OPTIONS]


def _spoke_before(scene: Scene) -> list[str]:
    """Return the members that said something in an earlier stage."""
    spoke: set[str] = set()
    for stage in scene.score.pattern.stages:
        if stage.name == scene.stage.name:
            break
        spoke |= {each.member for each in Scene(scene.score, scene.said, stage).answers()}
    return [each.name for each in scene.score.members if each.name in spoke]


def tied_of(scene: Scene) -> tuple[str, ...]:
    """Return the options that have the most votes; all of them where there are no votes."""
    options, counts = options_of(scene), _counts(scene)
    most = max((counts[option] for option in options), default=0)
    return tuple(option for option in options if counts[option] == most)


def _counts(scene: Scene) -> Counter[str]:
    options = options_of(scene)
    ballots = (scene.answer(Slot(1, member)) for member in scene.members)
    votes = (voted(each.text, BALLOT, options) for each in ballots if each is not None)
    return Counter(vote for vote in votes if vote is not None)


def _elected(scene: Scene) -> str | None:
    options = options_of(scene)
    if len(options) < 2:
        return next(iter(options), None)
    tied = tied_of(scene)
    if len(tied) == 1:
        return tied[0]
    decider = scene.one_of(scene.stage.tie)
    decision = None if decider is None else scene.answer(Slot(TIE_BREAK, decider))
    found = None if decision is None else voted(decision.text, BALLOT, tied)
    return found or (tied[0] if _counts(scene) else None)
