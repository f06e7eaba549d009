"""Plays patterns without a daemon: whoever has a turn answers as a test wants it."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ksi_daemon.protocol import ErrorBody
from ksi_orchestration import play
from ksi_orchestration.documents import read_patterns
from ksi_orchestration.events import Utterance
from ksi_orchestration.pattern import Pattern
from ksi_orchestration.play import Ended, Move, Moves, Score, Seen

Answer = Callable[[Move], str | None]


def pattern_of(text: str) -> Pattern:
    """Return the pattern of a sound document."""
    found, problems = read_patterns(text, "p.yaml")
    assert problems == []
    return found[0].pattern


def pattern(*stages: dict[str, Any], roles: Any = ("ann", "bob"), **more: Any) -> Pattern:
    """Return a pattern of stages."""
    given = {role: {} for role in roles} if isinstance(roles, tuple) else roles
    document = {"name": "test", "roles": given, "stages": list(stages), **more}
    found, problems = read_patterns(msgspec.json.encode(document).decode(), "p.yaml")
    assert problems == []
    return found[0].pattern


class Playing:
    """A play in which each member says what it is asked under which key, unless told otherwise.

    Args:
        pattern: What is played.
        answer: What is said in a turn; ``None`` where it fails.
        topic: What it is about.
        more: What else is agreed.

    Attributes:
        said: What was said.
        moves: The turns that were had, in groups of those that were had at once.
        seen: What the next decision is told.
        cost_usd: What each turn costs.
        tokens: What each turn takes.
    """

    def __init__(
        self,
        pattern: Pattern,
        answer: Answer = lambda move: f"said {move.key}",
        topic: str = "the topic",
        **more: Any,
    ) -> None:
        members = play.cast(pattern, more.pop("agents", ()), more.pop("models", ()))
        self.score = Score(pattern=pattern, topic=topic, members=members, **more)
        self.answer = answer
        self.said: tuple[Utterance, ...] = ()
        self.moves: list[tuple[Move, ...]] = []
        self.seen = Seen()
        self.cost_usd: float | None = None
        self.tokens = 0

    def next(self) -> Moves | Ended:
        """Return what is next; it is the same however often it is asked."""
        found = play.next_moves(self.score, self.said, self.seen)
        assert play.next_moves(self.score, self.said, self.seen) == found
        return found

    def step(self, order: Callable[[Iterable[Move]], Iterable[Move]] = list) -> Ended | None:
        """Have the turns that are next, recorded in an order; say how it ended, if it did."""
        found = self.next()
        if isinstance(found, Ended):
            return found
        self.moves.append(found.moves)
        for move in order(found.moves):
            self.record(move, self.answer(move))
        return None

    def to_the_end(self) -> Ended:
        """Play on until it ends."""
        while (ended := self.step()) is None:
            assert len(self.moves) < 2000
        return ended

    def record(self, move: Move, text: str | None, *, accepted: bool = True) -> None:
        """Record what was said in a turn, or that it failed, maybe before it was accepted."""
        self._say(
            stage=move.stage,
            round=move.round,
            member=move.member,
            agent=move.agent,
            after=move.after,
            item=move.item,
            run_id="run" if accepted else None,
            cost_usd=self.cost_usd,
            tokens=self.tokens,
            text=text or "",
            to=() if text is None else play.hearers(self.score, move.member),
            error=ErrorBody("failed", "the model is gone") if text is None else None,
        )

    def person(self, text: str, *to: str) -> None:
        """Have a person say something."""
        stage = self.said[-1].stage if self.said else ""
        heard_by = play.hearers(self.score, "person", to)
        self._say(stage=stage, round=0, member="person", text=text, to=heard_by)

    def _say(self, **fields: Any) -> None:
        self.said += (Utterance(number=len(self.said) + 1, **fields),)

    def all_moves(self) -> list[Move]:
        """Return the turns that were had, one after the other."""
        return [move for group in self.moves for move in group]

    def keys(self) -> list[str]:
        """Return their keys."""
        return [move.key for move in self.all_moves()]

    def order(self) -> list[str]:
        """Return who spoke, in order."""
        return [each.member for each in self.said]

    def prompts(self, member: str) -> list[str]:
        """Return what a member was told, turn by turn."""
        return [move.prompt for move in self.all_moves() if move.member == member]


def lines(**said: Iterable[str | None]) -> Answer:
    """Return what answers for each member with its next line, and for others with their key."""
    left = {member.replace("_", "-"): iter(each) for member, each in said.items()}

    def answer(move: Move) -> str | None:
        mine = left.get(move.member)
        return f"said {move.key}" if mine is None else next(mine, f"said {move.key}")

    return answer
