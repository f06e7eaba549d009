"""Says who hears what, and what a member has not been told yet."""

from collections.abc import Iterable, Sequence
from typing import Final

from ksi_daemon.protocol import InvalidData
from ksi_daemon.protocol.names import did_you_mean
from ksi_orchestration.answers import is_pass
from ksi_orchestration.events import Utterance
from ksi_orchestration.pattern import Route
from ksi_orchestration.scene import stage_of
from ksi_orchestration.score import PERSON, Score

__all__ = ["hearers", "in_order", "is_heard", "listening", "shortened", "told", "unheard"]

ALL: Final = ("all", "!sender")
ANYBODY: Final = "*"
MAX_ITEM_CHARACTERS: Final = 200
LEFT_OUT: Final = "[{count} earlier ones are left out: it would be too much]\n"
CUT: Final = "\n[… the rest is left out: it would be too much]"

_NO_MARKS: Final = str.maketrans({'"': "'", "<": "(", ">": ")"})


# -- routes ---------------------------------------------------------------------------------------


def hearers(score: Score, sender: str, to: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the members that hear what one says (a member's name, or ``person``).

    Raises:
        InvalidData: ``to`` names no member and no role.
    """
    others = [each for each in score.members if each.name != sender]
    if to:
        _check(score, to)
        return tuple(each.name for each in others if each.name in to or each.role in to)
    route = _route(score, sender)
    if route is None:
        return tuple(each.name for each in others)
    roles = (route.to,) if isinstance(route.to, str) else route.to
    if any(role in ALL for role in roles):
        return tuple(each.name for each in others)
    return tuple(each.name for each in others if each.role in roles)


def _check(score: Score, to: Sequence[str]) -> None:
    known = dict.fromkeys([*score.pattern.roles, *(each.name for each in score.members)])
    for name in to:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            message = f"there is no member and no role {name!r:.100}{hint}"
            raise InvalidData(message, details={"path": "to"})


def _route(score: Score, sender: str) -> Route | None:
    roles = [each.role for each in score.members if each.name == sender] or [sender]
    fitting = (each for each in score.pattern.routes if each.sender in (ANYBODY, *roles))
    return next(fitting, None)


# -- heard ----------------------------------------------------------------------------------------


def is_heard(score: Score, utterance: Utterance) -> bool:
    """Say whether something was said at all: a failure was not, nor is a pass told to anybody."""
    if utterance.error is not None or not utterance.text.strip():
        return False
    stage = stage_of(score, utterance.stage)
    passes = stage is not None and stage.turns == "free" and utterance.member != PERSON
    return not (passes and is_pass(utterance.text))


def in_order(score: Score, said: Iterable[Utterance]) -> list[Utterance]:
    """Return what was heard; what was said at once in the order of the members."""
    places = {each.name: place for place, each in enumerate(score.members)}
    begins: dict[tuple[str, int], int] = {}

    def place(utterance: Utterance) -> tuple[int, int, int]:
        if utterance.member == PERSON:
            return utterance.number, 0, 0
        begin = begins.setdefault((utterance.stage, utterance.after), utterance.number)
        return begin, places.get(utterance.member, 0), utterance.round

    return sorted((each for each in said if is_heard(score, each)), key=place)


def listening(said: Sequence[Utterance], member: str) -> list[Utterance]:
    """Return the turns with which a member was told what there was to hear.

    Of several turns that it was given at once that is the first one alone: the others follow in the
    same conversation. One that failed once it was accepted told it, too: what it was told stays in
    the conversation.
    """
    own = [each for each in said if each.member == member]
    first: dict[tuple[str, int], int] = {}
    for each in own:
        key = (each.stage, each.after)
        first[key] = min(each.round, first.get(key, each.round))
    return [
        each
        for each in own
        if each.round == first[each.stage, each.after] and (each.error is None or each.run_id)
    ]


def unheard(score: Score, said: Sequence[Utterance], member: str, up_to: int) -> list[Utterance]:
    """Return what a member hears that was said after a number."""
    fresh = in_order(score, said)
    return [each for each in fresh if each.number > up_to and member in each.to]


# -- told -----------------------------------------------------------------------------------------


def told(said: Sequence[Utterance], limit: int) -> str:
    """Write what was said for a prompt: who said it can't be forged by what it says.

    Where it is more than the limit the oldest is cut, and the prompt says so.
    """
    parts: list[str] = []
    left = limit
    for place in range(len(said) - 1, -1, -1):
        part = _quoted(said[place], left)
        if part is None:
            parts.append(LEFT_OUT.format(count=place + 1))
            break
        parts.append(part)
        left -= len(part)
    return "\n".join(reversed(parts)).rstrip("\n")


def _quoted(utterance: Utterance, limit: int) -> str | None:
    """Return something said between marks, cut to a limit; ``None`` where too little is left."""
    text = utterance.text.strip().replace("</said", "<\\/said").replace("<said", "<\\said")
    item = " ".join((utterance.item or "").split())[:MAX_ITEM_CHARACTERS].translate(_NO_MARKS)
    about = f' about="{item}"' if item else ""
    begin, end = f'<said by="{utterance.member}"{about}>\n', "\n</said>\n"
    room = limit - len(begin) - len(end)
    if len(text) > room:
        if room < 2 * len(CUT):
            return None
        text = shortened(text, room)
    return f"{begin}{text}{end}"


def shortened(text: str, limit: int) -> str:
    """Cut a text to a limit, and say in it that it was cut, where there is room for that."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - len(CUT)].rstrip()}{CUT}" if limit > len(CUT) else ""
