"""Writes what a member is told in a turn."""

from collections.abc import Callable, Mapping
from typing import Final

from ksi_orchestration.events import Utterance
from ksi_orchestration.hearing import in_order, listening, shortened, told, unheard
from ksi_orchestration.pattern import Kind, Stage
from ksi_orchestration.results import BALLOT, options_of, result_for_prompt, tied_of
from ksi_orchestration.scene import TIE_BREAK, Scene, Slot, one_of, stage_of
from ksi_orchestration.score import Score
from ksi_orchestration.templates import fill, names_in

__all__ = ["NEXT", "NOBODY", "PLAIN_NAMES", "RESULTS", "ROLE_NAMES", "prompt_of"]

NEXT: Final = "next"
NOBODY: Final = "nobody"
RESULTS: Final = "results."
ROLE_NAMES: Final = ("topic", "role", "member", "everyone")
PLAIN_NAMES: Final = (
    *ROLE_NAMES,
    "members",
    "heard",
    "transcript",
    "round",
    "rounds",
    "item",
    "options",
)
ROOM_FOR_NOTES: Final = 300  # such as that something was left out
MAX_FILLED_CHARACTERS: Final = 500_000
TELLING: Final = ("heard", "transcript")

INTRODUCTION: Final = """\
You work on something together with others. You are {{ member }}; these take part: {{ everyone }}.
"""
TOPIC: Final = "What it is about:\n\n{{ topic }}\n"

DEFAULTS: Final[Mapping[Kind, str]] = {
    "talk": """\
{{ heard }}

It is your turn: say what you have to say, to the point.
""",
    "sequence": """\
{{ heard }}

It is your turn: do your part with what those before you have done, and give all of what comes of
it, since who is next goes on from there.
""",
    "parallel": """\
{{ heard }}

Give your answer. The others answer at the same time; you will not hear them before.
""",
    "map": """\
This is your part of the work:

{{ item }}

Do it, and give what comes of it.
""",
    "vote": """\
{{ heard }}

It comes to a vote.
""",
    "judge": """\
{{ heard }}

Say what comes of it all: your judgement first, then what it rests on.
""",
}
VOTING: Final = f"""
Choose one of these:

{{{{ options }}}}

Say shortly why, and end with a line of this form, with what you choose as it is written above, or
with its number:

{BALLOT}: …
"""
TIE: Final = """\
{{ heard }}

The votes are equal, and you decide.
"""
CALLING: Final = f"""\
{{{{ heard }}}}

You lead this talk. Who is to speak next? These can: {{{{ members }}}}. Say shortly to whom you give
the word and what you want to hear of them, and end with a line of this form:

{NEXT}: NAME

Where nothing more is to be gained write {NEXT}: {NOBODY}
"""
PASSING: Final = """
If you have nothing to add to what was said, answer with the one word PASS.
"""


def prompt_of(scene: Scene, slot: Slot, *, is_first: bool) -> str:
    """Return what a member is told in a turn.

    ``is_first`` is not so of the second and later ones of turns that it is given at once: what
    there is to hear, and who it is here, stands in the first one's prompt.
    """
    template = template_of(scene.score, scene.stage, slot)
    values = _Values(scene, slot, is_first=is_first)
    listened = listening(scene.said, slot.member)
    parts = [] if listened or not is_first else [_opening(scene, slot)]
    filled = (fill(part, values.of) for part in (*parts, template))
    return "\n\n".join(part for part in filled if part) or "It is your turn."


def template_of(score: Score, stage: Stage, slot: Slot) -> str:
    """Return what a turn's prompt is made of."""
    if slot.member == one_of(score, stage.moderator):
        return CALLING
    if stage.kind == "vote":
        asked = TIE if slot.round == TIE_BREAK else stage.prompt or DEFAULTS["vote"]
        return asked.rstrip() + "\n" + VOTING
    own = stage.prompt or DEFAULTS[stage.kind]
    if stage.kind == "talk" and stage.turns == "free":
        return own.rstrip() + "\n" + PASSING
    return own


def _opening(scene: Scene, slot: Slot) -> str:
    """Return what a member is told with its first turn."""
    role = scene.score.pattern.roles[scene.cast_of(slot.member).role]
    opening = role.prompt or INTRODUCTION
    if scene.stage.prompt or "topic" in names_in(opening):
        return opening
    return f"{opening.rstrip()}\n\n{TOPIC}"


class _Values:
    """What the names in a prompt stand for, up to what all of them may come to."""

    def __init__(self, scene: Scene, slot: Slot, *, is_first: bool) -> None:
        self._scene = scene
        self._slot = slot
        self._is_first = is_first
        self._limit = scene.score.max_heard_characters
        self._left = MAX_FILLED_CHARACTERS
        self._known: dict[str, str | None] = {}

    def of(self, name: str) -> str | None:
        """Return what a name stands for; ``None`` where there is no such name."""
        if name not in self._known:
            self._known[name] = self._find(name)
        found = self._known[name]
        if found is not None and len(found) > self._left:
            found = shortened(found, self._left)
        self._left -= len(found or "")
        return found

    def _find(self, name: str) -> str | None:
        scene = self._scene
        if name.startswith(RESULTS):
            result = result_for_prompt(scene.score, scene.said, name.removeprefix(RESULTS))
            return shortened(result, self._limit + ROOM_FOR_NOTES)
        written = self.WRITTEN.get(name)
        return None if written is None else written(self)

    def _heard(self) -> str:
        if not self._is_first:
            return ""
        return told(not_told(self._scene, self._slot.member), self._limit)

    def _transcript(self) -> str:
        return told(in_order(self._scene.score, self._scene.said), self._limit)

    def _options(self) -> str:
        is_tie = self._slot.round == TIE_BREAK
        options = tied_of(self._scene) if is_tie else options_of(self._scene)
        return "\n".join(f"{number}. {option}" for number, option in enumerate(options, 1))

    WRITTEN: Final[Mapping[str, Callable[["_Values"], str]]] = {
        "topic": lambda values: values._scene.score.topic,
        "role": lambda values: values._scene.cast_of(values._slot.member).role,
        "member": lambda values: values._slot.member,
        "members": lambda values: ", ".join(values._scene.members),
        "round": lambda values: str(values._slot.round),
        "everyone": lambda values: ", ".join(each.name for each in values._scene.score.members),
        "rounds": lambda values: str(values._scene.stage.until.rounds or ""),
        "item": lambda values: values._slot.item or "",
        "heard": _heard,
        "transcript": _transcript,
        "options": _options,
    }


def not_told(scene: Scene, member: str) -> list[Utterance]:
    """Return what a member hears and has not been told in any prompt."""
    telling = (each.after for each in listening(scene.said, member) if _tells(scene.score, each))
    return unheard(scene.score, scene.said, member, max(telling, default=0))


def _tells(score: Score, utterance: Utterance) -> bool:
    """Say whether the prompt of a turn told what there was to hear."""
    stage = stage_of(score, utterance.stage)
    if stage is None:
        return False
    template = template_of(score, stage, Slot(utterance.round, utterance.member))
    return any(name in TELLING for name in names_in(template))
