"""Looks at one stage of a play: who is in it, and what came of each turn so far."""

from functools import cached_property
from typing import Final, Literal

from msgspec import Struct

from ksi_orchestration.events import Utterance
from ksi_orchestration.pattern import Stage
from ksi_orchestration.score import PERSON, Cast, Score

__all__ = ["Failed", "Pending", "Scene", "Slot", "one_of", "stage_of"]

TIE_BREAK: Final = 2  # the round of a vote in which one decides


class Slot(Struct, frozen=True):
    """The place of a turn; a stage has no two with the same round and member."""

    round: int
    member: str
    item: str | None = None


class Pending(Struct, frozen=True):
    """A turn is to be had: for the how manyeth time, and by whom in the member's place."""

    attempt: int
    substitute: str | None = None


class Failed(Struct, frozen=True):
    """A turn can't be had, and the pattern says that all ends then."""

    said: Utterance


class Scene:
    """One stage.

    Args:
        score: What was agreed.
        said: Everything that was said, in its order.
        stage: Which one.

    Attributes:
        turns: What members said in this stage, failures included.
    """

    def __init__(self, score: Score, said: tuple[Utterance, ...], stage: Stage) -> None:
        self.score = score
        self.said = said
        self.stage = stage
        self.turns = [u for u in said if u.stage == stage.name and u.member != PERSON]
        self._by_slot: dict[tuple[int, str], list[Utterance]] = {}
        for utterance in self.turns:
            self._by_slot.setdefault((utterance.round, utterance.member), []).append(utterance)

    # -- who ------------------------------------------------------------------------------------

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Those who take part: of the roles that are named, or of all that have no other part."""
        stage = self.stage
        if stage.members:
            roles = stage.members
        else:
            beside = {stage.moderator, stage.tie}
            roles = tuple(role for role in self.score.pattern.roles if role not in beside)
        return tuple(name for role in roles for name in self.of_role(role))

    def of_role(self, role: str) -> tuple[str, ...]:
        """Return the members that have a role."""
        return tuple(each.name for each in self.score.members if each.role == role)

    def one_of(self, role: str | None) -> str | None:
        """Return the only member of a role, or the first."""
        return one_of(self.score, role)

    @cached_property
    def moderator(self) -> str | None:
        """The member that says who is next in a talk."""
        return self.one_of(self.stage.moderator)

    def cast_of(self, member: str) -> Cast:
        """Return who a member is."""
        return next(each for each in self.score.members if each.name == member)

    # -- what -----------------------------------------------------------------------------------

    def answer(self, slot: Slot) -> Utterance | None:
        """Return what was said in a turn; ``None`` where it was not had, or failed."""
        tried = self._by_slot.get((slot.round, slot.member), ())
        return next((each for each in tried if each.error is None), None)

    def answers(self) -> list[Utterance]:
        """Return what was said in this stage, in its order."""
        return [each for each in self.turns if each.error is None]

    def spoke_in(self, round_: int) -> tuple[str, ...]:
        """Return the members that had a turn in a round, whatever came of it."""
        return tuple(name for name in self.members if (round_, name) in self._by_slot)

    def newest(self, member: str) -> Utterance | None:
        """Return what a member said last in this stage."""
        return next((each for each in reversed(self.answers()) if each.member == member), None)

    def state(self, slot: Slot) -> Pending | Failed | Literal["done"]:
        """Say how it stands with a turn; one that may be left out is done, too."""
        tried = self._by_slot.get((slot.round, slot.member), [])
        if any(each.error is None for each in tried):
            return "done"
        policy = self.stage.on_failure or self.score.pattern.on_failure
        attempt = len(tried) + 1
        if attempt <= policy.retries + 1:
            return Pending(attempt)
        if policy.substitute is not None and attempt == policy.retries + 2:
            return Pending(attempt, policy.substitute)
        return "done" if policy.then == "skip" else Failed(tried[-1])


def one_of(score: Score, role: str | None) -> str | None:
    """Return the only member of a role, or the first."""
    return next((each.name for each in score.members if each.role == role), None)


def stage_of(score: Score, name: str) -> Stage | None:
    """Return a stage by its name."""
    return next((each for each in score.pattern.stages if each.name == name), None)
