"""Counts tokens without asking anybody: an estimate that reported usage sets right.

Models cut text into the pieces of a vocabulary that their makers keep or change; what they have in
common is how text is split before that (the regular expressions of OpenAI's *tiktoken* and of
Llama's tokenizer: a word with the space before it, up to three digits, a run of punctuation, a run
of line ends). The estimate counts such pieces, and more of them where vocabularies are known to be
poor: long words, scripts other than Latin, text without words such as base64.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from ksi_models.events import (
    FilePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolSchema,
)

MESSAGE_TOKENS: Final = 4  # what stands around a message, whoever's model it is
PART_TOKENS: Final = 8  # what stands around a call, a result or a schema, besides its texts
IMAGE_TOKENS: Final = 1600  # the most that an image is scaled down to
PAGE_BYTES: Final = 3000  # of a document; a page of text comes to some 800 tokens
PAGE_TOKENS: Final = 800
UNKNOWN_FILE_TOKENS: Final = 2000  # one that is somewhere else

# One match is one token. Only classes that overlap in nothing but their order: linear in the text.
_PIECE: Final = re.compile(
    r"""
    (?=[A-Za-z0-9+/_-]{40})[A-Za-z0-9+/_-]{1,2}  # in a text without words: base64, hashes, keys
    | [ ]?[A-Z]?[a-z]{1,8}      # a word, or a part of one, as in camelCase
    | [ ]?[A-Z]{1,3}            # capitals come in short pieces
    | [ ]?[0-9]{1,3}
    | [ ]?[\u00c0-\u024f\u0370-\u1fff]{1,2}  # letters of the other alphabets
    | [ ]?[!-/:-@\[-`{-~]{1,2}  # punctuation often comes in pairs
    | \s+                       # spaces and line ends run together
    | [^\U00010000-\U0010ffff]  # a character of Chinese, Japanese, Korean; a symbol
    """,
    re.VERBOSE,
)
_RARE: Final = re.compile(r"[\U00010000-\U0010ffff]")  # emoji and the like: several bytes each
RARE_TOKENS: Final = 3


def of_text(text: str) -> int:
    """Return about how many tokens a text is."""
    count = _PIECE.subn("", text)[1]
    return count if text.isascii() else count + RARE_TOKENS * len(_RARE.findall(text))


def of_part(part: Part) -> int:
    """Return about how many tokens a part of a message is."""
    if isinstance(part, TextPart | ThinkingPart):
        return of_text(part.text)
    if isinstance(part, ToolCallPart):
        return PART_TOKENS + of_text(part.name) + of_text(part.arguments)
    if isinstance(part, FilePart):
        return of_file(part)
    return PART_TOKENS + of_text(part.name) + of_text(part.content)


def of_file(part: FilePart) -> int:
    """Return about how many tokens a file is, by its kind and its size."""
    if part.media_type.startswith("image/"):
        return IMAGE_TOKENS
    if part.data is None:
        return UNKNOWN_FILE_TOKENS
    if part.media_type.startswith("text/") or part.media_type.endswith(("json", "xml")):
        return PART_TOKENS + of_text(part.data.decode("utf-8", "replace"))
    return PAGE_TOKENS * (1 + len(part.data) // PAGE_BYTES)


def of_parts(parts: Iterable[Part]) -> int:
    """Return about how many tokens a message of these parts is; what its row keeps."""
    return MESSAGE_TOKENS + sum(map(of_part, parts))


def of_message(message: Message) -> int:
    """Return about how many tokens a message is."""
    return of_parts(message.parts)


def of_tools(tools: Iterable[ToolSchema]) -> int:
    """Return about how many tokens the schemas of tools are."""
    return sum(
        PART_TOKENS
        + of_text(tool.name)
        + of_text(tool.description)
        + of_text(msgspec.json.encode(tool.parameters).decode())
        for tool in tools
    )


MAX_MODELS: Final = 500
WEIGHT: Final = 0.2  # of the newest call against those before it
LEAST, MOST = 0.4, 4.0  # what a provider reports beyond that counts something else
MIN_TOKENS: Final = 200  # of less nothing is learnt


class Calibration:
    """Learns of each model by how much the estimate is off, from the usage that is reported.

    It is kept in memory: after a restart the first calls teach it again.
    """

    def __init__(self) -> None:
        self._factors: OrderedDict[str, float] = OrderedDict()

    def observe(self, model: str, estimated: int, reported: int) -> None:
        """Take note that what was estimated at some tokens came to others."""
        if estimated < MIN_TOKENS or not LEAST <= reported / estimated <= MOST:
            return
        ratio = reported / estimated
        known = self._factors.pop(model, None)
        self._factors[model] = ratio if known is None else known + WEIGHT * (ratio - known)
        if len(self._factors) > MAX_MODELS:
            self._factors.popitem(last=False)

    def factor(self, model: str) -> float:
        """Return what an estimate is to be multiplied by for a model; 1 while nothing is known."""
        return self._factors.get(model, 1.0)
