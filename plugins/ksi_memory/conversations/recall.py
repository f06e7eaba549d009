"""Says before a turn what is remembered that it should know; in time, or not at all."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

from ksi_completion.events import CompletionContext, ContextAdded
from ksi_daemon.event_system import event_contributor
from ksi_daemon.protocol import KsiError
from ksi_memory.conversations.store import ConversationStore, Recalled
from ksi_memory.language import extracts, junk
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose, current_whose

log = logging.getLogger(__name__)

TABLES: Final = ("associations", "moments", "resources", "ontologies", "entities")
FACTS: Final = "What is known about the user and the work"
FOUND: Final = "What is remembered about this"
PATTERNS: Final = "What has been noticed"
FACTS_SHARE: Final = 0.5  # of the tokens, at most
PATTERNS_SHARE: Final = 0.1
LINE_CHARACTERS: Final = 600  # of one thing: the rest is to be looked up
KEY_CHARACTERS: Final = 200
QUESTION_CHARACTERS: Final = 1000
LEAST_TOKENS: Final = 40  # of room: less is not worth a title
TOLD_EVERY_S: Final = 60.0


class FoundItem(Protocol):
    """What is taken of a result of a search."""

    @property
    def key(self) -> str:
        """What it is looked up by."""

    @property
    def title(self) -> str:
        """Its title."""

    @property
    def body(self) -> str:
        """Its text."""


Told = TypeVar("Told")
Finder = Callable[[Whose, str, Sequence[str], int], Awaitable[Sequence[FoundItem]]]


class Recall:
    """Contributes to what a model is sent.

    Args:
        store: Has facts and patterns.
        find: Searches the rest.
        settings: How much, and how long.
    """

    def __init__(self, store: ConversationStore, find: Finder, settings: MemorySettings) -> None:
        self._store = store
        self._find = find
        self._settings = settings
        self._told_at: dict[str, float] = {}

    @event_contributor("completion:context")
    async def context(self, request: CompletionContext) -> list[ContextAdded]:
        """Tell facts, what is found for the prompt, and recent patterns; each with its key.

        What takes longer than ``memory.recall_timeout_s`` is left out, and so is what fails: no
        turn waits for its memory, or fails for it.
        """
        whose = own(current_whose())
        if request.max_tokens < LEAST_TOKENS:
            return []
        known: list[Recalled] = []
        found: list[FoundItem] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._in_time("facts", self._known(whose), known), name="facts")
            if is_worth_a_search(request.prompt) and self._settings.recall_results:
                look = self._find(
                    whose,
                    request.prompt[:QUESTION_CHARACTERS],
                    TABLES,
                    self._settings.recall_results,
                )
                tasks.create_task(self._in_time("a search", look, found), name="search")
        return composed(known, found, request.max_tokens)

    async def _known(self, whose: Whose) -> Sequence[Recalled]:
        since = datetime.now(UTC) - timedelta(days=self._settings.pattern_days)
        return await self._store.recalled(
            whose.tenant,
            whose.user or "",
            self._settings.max_recalled_facts,
            self._settings.max_recalled_patterns,
            since,
        )

    async def _in_time(self, what: str, ask: Awaitable[Sequence[Told]], into: list[Told]) -> None:
        try:
            async with asyncio.timeout(self._settings.recall_timeout_s):
                into.extend(await ask)
        except TimeoutError:
            self._tell(what, "it took longer than memory.recall_timeout_s")
        except KsiError as error:
            self._tell(what, error.message)

    def _tell(self, what: str, why: str) -> None:
        """Log that a turn goes without its memory, now and then."""
        now = time.monotonic()
        if now - self._told_at.get(what, -TOLD_EVERY_S) >= TOLD_EVERY_S:
            self._told_at[what] = now
            log.warning(
                "a turn goes without a part of its memory", extra={"part": what, "why": why}
            )


class Line(Struct, frozen=True):
    """One thing as it is told: its key, so that it can be looked up, and what it says."""

    key: str
    text: str


def own(whose: Whose) -> Whose:
    """Return whose memory a turn has: its user's; where it has none, what belongs to everybody.

    The daemon's owner may look at what belongs to others; it is not told in his conversations.
    """
    return whose if whose.user is not None else msgspec.structs.replace(whose, user="")


def is_worth_a_search(prompt: str) -> bool:
    """Say whether there is anything in a prompt to be looked for."""
    return not junk.is_pleasantry(prompt[:QUESTION_CHARACTERS])


def composed(
    known: Sequence[Recalled], found: Sequence[FoundItem], max_tokens: int
) -> list[ContextAdded]:
    """Return what is told, the most important first, within a bound.

    Facts have half of the room, patterns a tenth, and what was found has the rest. Whatever is
    left out for want of room is the least important of its kind.
    """
    facts = [Line(each.key, each.body) for each in known if each.table == "facts"]
    patterns = [
        Line(each.key, f"{each.body} (confidence {each.confidence or 0.0:.2f})")
        for each in known
        if each.table == "patterns"
    ]
    others = [Line(each.key, _text_of(each)) for each in found]
    room = max_tokens
    told: list[ContextAdded] = []
    for title, lines, share in (
        (FACTS, facts, int(max_tokens * FACTS_SHARE)),
        (FOUND, others, max_tokens - int(max_tokens * PATTERNS_SHARE) if patterns else max_tokens),
        (PATTERNS, patterns, max_tokens),
    ):
        added, size = _added(title, lines, min(room, share))
        if added is not None:
            told.append(added)
            room -= size
    return told


def _text_of(found: FoundItem) -> str:
    """Return a result in one line: its title, where that says more, and its text."""
    title, body = found.title.strip(), found.body.strip()
    if not body or junk.folded(title) in junk.folded(body[: 2 * len(title) + 40]):
        return body or title
    return f"{title}: {body}" if title else body


def _added(title: str, lines: Sequence[Line], room: int) -> tuple[ContextAdded | None, int]:
    """Return as many lines as fit, under a title, and how many tokens that is."""
    size = extracts.tokens_of(title) + 30  # the tags around it
    kept: list[str] = []
    sources: list[str] = []
    seen: set[str] = set()
    for line in lines:
        text = _one_line(line)
        plain = junk.folded(line.text)
        if plain in seen:
            continue
        cost = extracts.tokens_of(text) + extracts.tokens_of(_key(line)) + 2
        if size + cost > room:
            break
        seen.add(plain)
        size += cost
        kept.append(text)
        sources.append(_key(line))
    if not kept:
        return None, 0
    return ContextAdded(title=title, text="\n".join(kept), sources=tuple(sources)), size


def _key(line: Line) -> str:
    key = " ".join(line.key.split())
    return key if len(key) <= KEY_CHARACTERS else f"{key[: KEY_CHARACTERS - 1]}…"


def _one_line(line: Line) -> str:
    """Return a thing as a line of its own, which no text can break or fake."""
    text = " ".join(line.text.split())
    if len(text) > LINE_CHARACTERS:
        text = f"{text[: LINE_CHARACTERS - 1]}…"
    return f"- [{_key(line)}] {text}"
