"""Fits messages into a model's window: which are sent, and what of those that are too long.

What belongs together stays together: a message that calls tools and the results of its calls are
sent as a whole or not at all, and no call without a result, nor a result without its call. The
messages of the turn at hand are sent in any case, shortened where they have to be; of those before
the newest, as many as fit.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from ksi_completion import tokens
from ksi_models.events import (
    FilePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
)

OLD_SHARE: Final = 4  # one message of before takes at most this part of the window: a quarter
LEAST_TOKENS: Final = 64  # a message is not shortened below that while others can be left out
NO_RESULT: Final = "There is no result: the call was not made, or broken off."
LEFT_OUT: Final = "[What was said before is left out here.]"
NOTHING_LEFT: Final = "[…]"
NOTE_TOKENS: Final = 16  # what a note in the middle of a text takes at most


class Item(Struct, frozen=True, kw_only=True):
    """A message with its number; ``is_required`` is one of the turn at hand."""

    number: int
    message: Message
    tokens: int
    is_required: bool = False


class Unit(Struct, frozen=True, kw_only=True):
    """Messages that are sent together, or not at all."""

    number: int  # of the first
    last: int
    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    is_required: bool
    trimmed: int = 0

    @property
    def total(self) -> int:
        """The tokens of all."""
        return sum(self.tokens)

    @property
    def is_users(self) -> bool:
        """Whether a user says it."""
        return self.messages[0].role == "user"


class Fitted(Struct, frozen=True, kw_only=True):
    """What is sent; ``units`` are what it is made of, the oldest first."""

    messages: tuple[Message, ...]
    tokens: int
    trimmed: int
    units: tuple[Unit, ...]


class TooLong(Exception):
    """The turn at hand does not fit, however much of it is left out."""


def fit(items: Sequence[Item], budget: int) -> Fitted:
    """Return what can be sent within some tokens, in order.

    Raises:
        TooLong: Not even what is newest fits.
    """
    units = list(units_of(items))
    note = tokens.of_parts((TextPart(LEFT_OUT),))
    kept = [unit for unit in units if unit.is_required]
    if sum(unit.total for unit in kept) > budget - note:
        kept = shrunk(kept, budget - note)
    else:
        before = (unit for unit in reversed(units) if not unit.is_required)
        kept = [*_newest(before, budget - note - sum(each.total for each in kept), budget), *kept]
    messages = [message for unit in kept for message in unit.messages]
    total = sum(unit.total for unit in kept)
    if messages and messages[0].role not in ("user", "system"):
        messages.insert(0, Message("user", (TextPart(LEFT_OUT),)))
        total += note
    return Fitted(
        messages=tuple(messages),
        tokens=total,
        trimmed=sum(unit.trimmed for unit in kept),
        units=tuple(kept),
    )


def _newest(before: Iterable[Unit], room: int, budget: int) -> list[Unit]:
    """Return the newest units that fit, the oldest first; an oversized message shortened."""
    kept: list[Unit] = []
    for unit in before:
        small = capped(unit, max(budget // OLD_SHARE, LEAST_TOKENS))
        room -= small.total
        if room < 0:
            break
        kept.append(small)
    return kept[::-1]


# -- what belongs together -----------------------------------------------------------------------


def units_of(items: Sequence[Item]) -> Iterable[Unit]:
    """Yield what belongs together; calls and results that lack one another are mended."""
    place = 0
    while place < len(items):
        item = items[place]
        place += 1
        called = [part for part in item.message.parts if isinstance(part, ToolCallPart)]
        if item.message.role == "tool":
            continue  # of calls that are not there
        if item.message.role != "assistant" or not called:
            yield from _unit([_own(item)])
            continue
        end = place
        while end < len(items) and items[end].message.role == "tool":
            end += 1
        yield from _unit([_own(item), *_results(called, items[place:end], item)])
        place = end


def _own(item: Item) -> Item:
    """Return a message with the parts that its role can have; old thoughts are not sent again."""
    role, parts = item.message.role, item.message.parts
    is_thinking = role == "assistant" and item.is_required
    kept = tuple(
        part
        for part in parts
        if not isinstance(part, ToolResultPart)
        and (role == "assistant" or not isinstance(part, ToolCallPart))
        and (is_thinking or not isinstance(part, ThinkingPart))
    )
    return item if len(kept) == len(parts) else _with(item, kept)


def _results(called: list[ToolCallPart], found: Sequence[Item], caller: Item) -> Iterable[Item]:
    """Return the results of some calls, each once, and one that says so for what has none."""
    missing = {part.id: part for part in called}
    for item in found:
        kept = tuple(
            part
            for part in item.message.parts
            if not isinstance(part, ToolCallPart | ToolResultPart)
            or (isinstance(part, ToolResultPart) and missing.pop(part.id, None) is not None)
        )
        yield item if len(kept) == len(item.message.parts) else _with(item, kept)
    if missing:
        parts = tuple(
            ToolResultPart(part.id, part.name, NO_RESULT, is_error=True)
            for part in missing.values()
        )
        last = found[-1] if found else caller
        message = Message("tool", parts)
        yield Item(
            number=last.number,
            message=message,
            tokens=tokens.of_message(message),
            is_required=last.is_required,
        )


def _with(item: Item, parts: tuple[Part, ...]) -> Item:
    message = Message(item.message.role, parts)
    return msgspec.structs.replace(item, message=message, tokens=tokens.of_message(message))


def _unit(items: list[Item]) -> Iterable[Unit]:
    said = [item for item in items if item.message.parts]
    if said:
        yield Unit(
            number=items[0].number,
            last=items[-1].number,
            messages=tuple(item.message for item in said),
            tokens=tuple(item.tokens for item in said),
            is_required=any(item.is_required for item in items),
        )


# -- what is too long ----------------------------------------------------------------------------


def shrunk(units: list[Unit], budget: int) -> list[Unit]:
    """Shorten the longest messages until all fit; where that is not enough, leave out the oldest.

    What the user said last, and what came last, is never left out.

    Raises:
        TooLong: Not even that fits.
    """
    users = [place for place, unit in enumerate(units) if unit.is_users]
    newest = {users[-1] if users else 0, len(units) - 1}
    order = [place for place in range(len(units)) if place not in newest]
    gone: set[int] = set()
    while True:
        left = [unit for place, unit in enumerate(units) if place not in gone]
        least = LEAST_TOKENS if order else 0
        found = _level(left, budget, least)
        if found is not None:
            return found
        if not order:
            raise TooLong
        step = max(1, len(order) // 4)  # few rounds, however many there are
        gone.update(order[:step])
        del order[:step]


def _level(units: list[Unit], budget: int, least: int) -> list[Unit] | None:
    """Cut all messages to one length at which they fit, if there is one."""
    level = water_level([each for unit in units for each in unit.tokens], budget)
    while level >= least:
        cut = [capped(unit, level) for unit in units]
        over = sum(unit.total for unit in cut) - budget
        if over <= 0:
            return cut
        if level == 0:
            return None
        level = min(level * 3 // 4, level - 1)
    return None


def water_level(sizes: Sequence[int], budget: int) -> int:
    """Return the greatest bound on each at which the sum of all is within the budget."""
    left = budget
    for place, size in enumerate(sorted(sizes)):
        share = max(left, 0) // (len(sizes) - place)
        if size > share:
            return share
        left -= size
    return max(sizes, default=0)


def capped(unit: Unit, cap: int) -> Unit:
    """Return a unit whose messages are shortened to some tokens each, as far as they can be."""
    if all(each <= cap for each in unit.tokens):
        return unit
    pairs = [
        (message, size) if size <= cap else _smaller(message, size, cap)
        for message, size in zip(unit.messages, unit.tokens, strict=True)
    ]
    return msgspec.structs.replace(
        unit,
        messages=tuple(message for message, _ in pairs),
        tokens=tuple(size for _, size in pairs),
        trimmed=sum(size > cap for size in unit.tokens),
    )


def _smaller(message: Message, size: int, cap: int) -> tuple[Message, int]:
    short = trimmed(message, cap)
    count = tokens.of_message(short)
    return (short, count) if count < size else (message, size)


def trimmed(message: Message, cap: int) -> Message:
    """Shorten what a message says, each part in its middle; calls and results stay what they are.

    It may come to more than ``cap`` where even notes in place of all its parts do.
    """
    sizes = [tokens.of_part(part) for part in message.parts]
    level = water_level(sizes, cap - tokens.MESSAGE_TOKENS)
    parts = (
        part if size <= level else _shorter(part, level)
        for part, size in zip(message.parts, sizes, strict=True)
    )
    kept = tuple(part for part in parts if part is not None)
    return Message(message.role, kept or (TextPart(NOTHING_LEFT),))


def _shorter(part: Part, cap: int) -> Part | None:
    if isinstance(part, TextPart):
        return TextPart(shortened(part.text, cap))
    if isinstance(part, ToolResultPart):
        rest = cap - tokens.PART_TOKENS - tokens.of_text(part.name)
        return msgspec.structs.replace(part, content=shortened(part.content, rest))
    if isinstance(part, ToolCallPart):
        note = msgspec.json.encode({"left_out": f"{len(part.arguments)} characters"}).decode()
        return msgspec.structs.replace(part, arguments=min(note, part.arguments, key=len))
    if isinstance(part, FilePart):
        return TextPart(shortened(f"[The file {part.name or part.media_type} is left out.]", cap))
    return None  # a thought is whole, with its signature, or not there


def shortened(text: str, cap: int) -> str:
    """Leave out the middle of a text, with a note of how much, so that it has some tokens at most.

    What is left of the shortest is a sign that something was there.
    """
    count = tokens.of_text(text)
    if count <= cap:
        return text
    keep = int(len(text) / count * max(cap - NOTE_TOKENS, 0))
    while keep >= LEAST_TOKENS // 4:
        head, tail = keep * 2 // 3, keep - keep * 2 // 3
        note = f"\n[… {len(text) - keep} characters left out …]\n"
        short = f"{text[:head]}{note}{text[len(text) - tail :]}"
        if tokens.of_text(short) <= cap:
            return short
        keep = keep * 4 // 5
    return NOTHING_LEFT
