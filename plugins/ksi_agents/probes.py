"""Asks an agent something whose answer is known, before it is given work."""

import hashlib
from typing import Any, Final

from msgspec import Struct

from ksi_agents.definition import Probe

WORD_CHARACTERS: Final = 8


class Question(Struct, frozen=True):
    """What an agent is asked, and the one answer that is right."""

    prompt: str
    expected: str

    def is_answered_by(self, said: Any) -> bool:
        """Say whether an answer is right: the whole of it, but for space around it."""
        return isinstance(said, str) and said.strip() == self.expected.strip()


def question_of(probe: Probe, seed: str) -> Question:
    """Return the question of a probe; for the same seed the same one.

    Args:
        probe: What is to be asked.
        seed: Says whose start it is: each has a word and a sum of its own, so that no answer of an
            earlier one, kept by whoever stands in between, is taken for this one's.
    """
    dice = hashlib.blake2b(seed.encode(), digest_size=16).digest()
    if probe.kind == "echo":
        word = f"KSI-{dice.hex()[:WORD_CHARACTERS].upper()}"
        return Question(f"Answer with exactly this word and nothing else: {word}", word)
    if probe.kind == "reasoning":
        one, other = 11 + dice[0] % 80, 11 + dice[1] % 80
        prompt = f"What is {one} plus {other}? Answer with the number in digits and nothing else."
        return Question(prompt, str(one + other))
    return Question(probe.prompt or "", probe.expect or "")
