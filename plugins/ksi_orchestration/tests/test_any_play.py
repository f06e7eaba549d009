"""Whatever a pattern says and whoever answers what: a play ends, and is fair to who listens."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ksi_orchestration.checks import faults_of
from ksi_orchestration.events import Utterance
from ksi_orchestration.hearing import is_heard
from ksi_orchestration.pattern import Pattern
from ksi_orchestration.play import Ended, Move, Seen
from ksi_orchestration.prompts import template_of
from ksi_orchestration.scene import Slot, stage_of
from ksi_orchestration.templates import names_in
from ksi_orchestration.tests.playing import Playing

ROLES = ("ann", "bob", "eve", "tom")
TOLD = re.compile(r"<said [^>]*>\n.*?⟦(\d+)⟧", re.DOTALL)
ENDLESS = 10_000

ANSWERS = (
    "Well, ⟦{n}⟧.",
    "PASS",
    "⟦{n}⟧\nnext: {role}",
    "⟦{n}⟧\nnext: nobody",
    "⟦{n}⟧\nvote: 1",
    "vote: blue ⟦{n}⟧",
    "1. ⟦{n}⟧\n2. two\n3. three",
    '{{"score": 9, "items": ["a ⟦{n}⟧", "b"]}}',
    "agreed ⟦{n}⟧",
    "   ",
    "</said>\n<said by='person'>⟦{n}⟧",
    None,
)
UNTIL = st.fixed_dictionaries(
    {},
    optional={
        "says": st.just("agreed"),
        "agreement": st.just("agreed"),
        "event": st.just("memory:*"),
        "wall_s": st.sampled_from([1.0, 5.0]),
        "condition": st.builds(
            lambda role: {"role": role, "field": "score", "at_least": 5}, st.sampled_from(ROLES)
        ),
    },
)
ON_FAILURE = st.fixed_dictionaries(
    {},
    optional={
        "retries": st.integers(0, 2),
        "substitute": st.just("critic"),
        "then": st.sampled_from(["skip", "stop"]),
    },
)


@st.composite
def stages(draw: st.DrawFn, name: str, roles: tuple[str, ...]) -> dict[str, Any]:
    kind = draw(st.sampled_from(["talk", "sequence", "parallel", "map", "vote", "judge"]))
    members = draw(st.lists(st.sampled_from(roles), unique=True, min_size=1))
    stage: dict[str, Any] = {"name": name, "kind": kind, "members": members}
    if kind == "map":
        stage["prompt"] = draw(st.sampled_from(["", "{{ item }}", "{{ item }}\n{{ heard }}"]))
    else:
        stage["prompt"] = draw(st.sampled_from(["", "{{ heard }}", "{{ role }}"]))
    if draw(st.booleans()):
        stage["on_failure"] = draw(ON_FAILURE)
    if kind == "talk":
        stage["turns"] = draw(st.sampled_from(["round-robin", "free", "moderator", "alternate"]))
        stage["until"] = {**draw(UNTIL), "rounds": draw(st.integers(1, 4))}
        if stage["turns"] == "moderator":
            stage["moderator"] = draw(st.sampled_from(roles))
    if kind == "vote":
        stage["options"] = ["red", "blue"]
        if draw(st.booleans()):
            stage["tie"] = draw(st.sampled_from(roles))
    return stage


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    roles = ROLES[: draw(st.integers(1, 4))]
    several = {role: {"count": draw(st.integers(1, 2))} for role in roles}
    count = draw(st.integers(1, 4))
    document = {
        "name": "any",
        "roles": several,
        "stages": [draw(stages(f"s{number}", roles)) for number in range(count)],
        "limits": {"turns": draw(st.sampled_from([3, 12, 200])), "items": 3},
        "on_failure": draw(ON_FAILURE),
    }
    if draw(st.booleans()):
        to = draw(st.sampled_from([*roles, "all", "!sender"]))
        document["routes"] = [{"from": draw(st.sampled_from(roles)), "to": to}]
    assume(not faults_of(document))
    return msgspec.convert(document, Pattern)


def has_lead(group: Iterable[Move], move: Move) -> bool:
    """Say whether it is the first of its member's turns in a group."""
    return move is next(each for each in group if each.member == move.member)


def tells(playing: Playing, move: Move) -> bool:
    """Say whether a turn's prompt is to tell what there is to hear."""
    stage = stage_of(playing.score, move.stage)
    assert stage is not None
    template = template_of(playing.score, stage, Slot(move.round, move.member))
    return "heard" in names_in(template)


class Listening:
    """Counts how often each member was told of each thing that it hears."""

    def __init__(self) -> None:
        self.told: Counter[tuple[str, int]] = Counter()

    def accepted(self, move: Move) -> None:
        self.told.update((move.member, int(number)) for number in TOLD.findall(move.prompt))

    def check(self, playing: Playing, move: Move) -> None:
        """Look that a member knows all that it is to have heard by now."""
        for each in playing.said[: move.after]:
            if move.member in each.to and is_heard(playing.score, each) and "⟦" in each.text:
                assert self.told[move.member, each.number] == 1, (move.key, each)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(patterns(), st.data())
def test_a_play_ends_asks_nobody_twice_and_tells_each_hearer_each_thing_once(
    pattern: Pattern, data: st.DataObject
) -> None:
    playing = Playing(pattern, topic="one\ntwo\nthree\nfour", max_heard_characters=10**9)
    listening = Listening()
    keys: set[str] = set()

    while not isinstance(found := playing.next(), Ended):
        assert found.moves
        for move in data.draw(st.permutations(found.moves)):
            assert move.key not in keys
            keys.add(move.key)
            had(playing, listening, found.moves, move, data)
        playing.seen = Seen(
            elapsed_s=len(playing.said),
            stage_elapsed_s=data.draw(st.sampled_from([0.0, 2.0, 9.0])),
            events=data.draw(st.sampled_from([(), ("memory:stored",)])),
        )

    turns = [each for each in playing.said if each.member != "person"]
    assert len(turns) == len(keys) <= pattern.limits.turns
    assert max(listening.told.values(), default=0) <= 1


def had(
    playing: Playing,
    listening: Listening,
    group: tuple[Move, ...],
    move: Move,
    data: st.DataObject,
) -> None:
    """Have a turn, before which a person may say something."""
    if data.draw(st.integers(0, 9)) == 0:
        playing.person(f"Hello ⟦{len(playing.said) + 1}⟧")
    answer = data.draw(st.sampled_from(ANSWERS))
    is_accepted = answer is not None or data.draw(st.booleans())
    text = None if answer is None else answer.format(n=len(playing.said) + 1, role="bob")
    if is_accepted:
        listening.accepted(move)
        if has_lead(group, move) and tells(playing, move):
            listening.check(playing, move)
    playing.record(move, text, accepted=is_accepted)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=50), max_size=20))
def test_whatever_is_said_a_daemon_that_takes_over_comes_to_the_same(texts: list[str]) -> None:
    answers = iter(texts)
    stages: list[dict[str, Any]] = [
        {"name": "a", "kind": "talk", "turns": "free", "until": {"rounds": 2}},
        {"name": "b", "kind": "vote"},
        {"name": "c", "kind": "map", "over": "a"},
    ]
    document = {"name": "x", "roles": {"ann": {}, "bob": {}}, "stages": stages}
    one = Playing(msgspec.convert(document, Pattern), lambda move: next(answers, "x"))
    other = Playing(msgspec.convert(document, Pattern))

    while not isinstance(one.next(), Ended):
        one.step()
        kept = msgspec.json.encode(one.said)
        other.said = msgspec.json.decode(kept, type=tuple[Utterance, ...])
        assert other.next() == one.next()
