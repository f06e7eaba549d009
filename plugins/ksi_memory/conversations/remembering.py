"""Reads conversations after their turns, and keeps what is worth it; durable, and once."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Struct

from ksi_completion.events import (
    AgentProfile,
    CompletionAgent,
    Conversation,
    ConversationGet,
    NumberedMessage,
)
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, current_context, event_observer
from ksi_daemon.protocol import Busy, Context, Event, KsiError, NotFound, TimedOut, Unavailable
from ksi_memory.conversations import talk
from ksi_memory.conversations.compaction import Compaction, Written
from ksi_memory.conversations.extraction import Extracted, Extraction
from ksi_memory.conversations.store import ConversationStore, Reading
from ksi_memory.events import MemoryRemembered, NewItem, Source
from ksi_memory.items.ids import item_id
from ksi_memory.items.store import Items
from ksi_memory.language import junk, rules
from ksi_memory.language.rules import Finding
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_workflows.api import Retry, Workflows, current_run, step, workflow

log = logging.getLogger(__name__)

PATIENT: Final = Retry(on=(Unavailable, TimedOut, Busy), max_attempts=10, max_delay_s=30.0)
STEP_S: Final = 300.0
LEFT_WITHIN: Final = timedelta(days=7)
AT_ONCE: Final = 100
MAX_WAITING: Final = 10_000  # conversations whose turns have ended; more are found by the sweep
MAX_GRAMS: Final = 2000  # runs of words of a message that may be an entity's name
GRAM_WORDS: Final = 4
SHORT_CHARACTERS: Final = 1000  # of a message that is read at once
MAX_TOGETHER: Final = 8  # entities of one message that are paired


class Remember(Struct, frozen=True):
    """Which conversation to read.

    Attributes:
        threshold_tokens: From how many on it is summed up; the setting says that unless given.
        may_ask_models: Whether those that the settings name may help.
    """

    conversation_id: str
    threshold_tokens: int | None = None
    may_ask_models: bool = True


class Read(Struct, frozen=True):
    """What came of reading: what was kept, and whether a model is to look, too."""

    owner: str | None = None
    through: int = 0
    through_turn: int = 0
    kept: tuple[str, ...] = ()
    left: dict[str, int] = {}
    found: tuple[str, ...] = ()
    wants_model: bool = False
    is_left_alone: bool = False


class Outcome(Struct, frozen=True):
    """What a run comes to."""

    through: int = 0
    kept: int = 0
    moments: tuple[str, ...] = ()
    tokens: int = 0
    cost_usd: float | None = 0.0


class Remembering:
    """Reads conversations.

    Args:
        store: Knows how far each was read.
        items: Keeps what is worth it.
        compaction: Sums up what was read.
        extraction: Has a model look, where that is switched on.
        bus: Reads messages, and publishes.
        workflows: Has it done although the daemon dies.
        settings: The plugin's.
    """

    def __init__(
        self,
        store: ConversationStore,
        items: Items,
        compaction: Compaction,
        extraction: Extraction,
        bus: Bus,
        workflows: Workflows,
        settings: MemorySettings,
    ) -> None:
        self._store = store
        self._items = items
        self._compaction = compaction
        self._extraction = extraction
        self._bus = bus
        self._workflows = workflows
        self._settings = settings
        self._ended: dict[tuple[str, str], tuple[Context, int]] = {}
        self._news = asyncio.Event()

    # -- when -----------------------------------------------------------------------------------

    @event_observer("completion:result")
    def turn_ended(self, event: Event) -> None:
        """Note that a conversation is to be read."""
        context = event.context
        conversation = getattr(event.data, "conversation_id", None) or context.conversation
        if not self._settings.remember or conversation is None or len(self._ended) >= MAX_WAITING:
            return
        turn = int(getattr(event.data, "turn", 0))
        self._ended[context.tenant, conversation] = context, turn
        self._news.set()

    async def run_reading(self) -> None:
        """Have conversations read whose turns have ended, for as long as the plugin runs."""
        while True:
            await self._news.wait()
            await asyncio.sleep(self._settings.remember_after_s)
            self._news.clear()
            ended, self._ended = self._ended, {}
            for (tenant, conversation), (context, turn) in ended.items():
                await self._begin(context_in(tenant, context.user, conversation), f"{turn}")

    async def run_sweeps(self) -> None:
        """Have conversations read that a daemon left when it died."""
        while self._settings.remember:
            with suppress(Unavailable, TimedOut, Busy):  # there will be another time
                await self.sweep()
            await asyncio.sleep(self._settings.sweep_interval_s)

    async def sweep(self) -> None:
        """Begin to read what was left, once in each of the sweep's intervals."""
        interval_s = self._settings.sweep_interval_s
        recent = timedelta(seconds=max(30.0, 2 * self._settings.remember_after_s))
        for left in await self._store.unread(LEFT_WITHIN, recent, AT_ONCE):
            context = context_in(left.tenant, left.owner, left.conversation)
            await self._begin(context, f"{left.turn}-{int(time.time() / interval_s)}")

    @event_observer("memory:forgot")
    async def forgot(self, event: Event) -> None:
        """Have moments written anew from which something was taken."""
        for left in await self._store.unread(LEFT_WITHIN, timedelta(0), AT_ONCE):
            context = context_in(left.tenant, left.owner, left.conversation)
            await self._begin(context, f"{left.turn}-{event.context.id}")

    async def _begin(self, context: Context, mark: str) -> None:
        """Start a run that reads a conversation; one that can't be started is swept later."""
        assert context.conversation is not None
        with acting_as(context):
            try:
                await self.start(Remember(context.conversation), mark=mark, is_light=True)
            except KsiError as error:
                log.info("a conversation is read later", extra={"why": error.message})

    async def start(
        self, args: Remember, *, mark: str | None = None, is_light: bool = False
    ) -> str:
        """Start a run in the name of the event at hand, and return its id.

        Runs of one conversation are had one at a time, in the order in which they were started.
        """
        context = current_context()
        tenant = "default" if context is None else context.tenant
        place = hashlib.sha256(f"{tenant}\n{args.conversation_id}".encode()).hexdigest()[:32]
        run = None if mark is None else _id(f"remember-{place}-{mark}")
        return await self._workflows.start(
            self.remember, args, id=run, key=f"memory-{place}", is_light=is_light
        )

    # -- what -----------------------------------------------------------------------------------

    @workflow("remember")
    async def remember(self, args: Remember) -> Outcome:
        """Read a conversation: keep what is said in it, then sum up what is uncovered."""
        run = current_run()
        read = await self.read(args.conversation_id, run.id)
        if read.owner is None:
            return Outcome()
        extracted = Extracted()
        if read.wants_model and args.may_ask_models:
            extracted = await self.look(args.conversation_id, read, run.id)
        waiting = await self.cover(args, read, run.id)
        moments: list[Written] = []
        for _ in range(waiting):
            moments += [each for each in [await self.write(args, read, run.id)] if each]
        costs = [extracted.cost_usd, *(each.cost_usd for each in moments)]
        outcome = Outcome(
            through=read.through,
            kept=len(read.kept) + len(extracted.kept),
            moments=tuple(each.key for each in moments if each.key is not None),
            tokens=extracted.tokens + sum(each.tokens for each in moments),
            cost_usd=None if None in costs else sum(each or 0.0 for each in costs),
        )
        self._tell(args.conversation_id, read, extracted, outcome)
        return outcome

    def _tell(self, conversation: str, read: Read, extracted: Extracted, outcome: Outcome) -> None:
        left = dict(read.left)
        for why, count in extracted.left.items():
            left[why] = left.get(why, 0) + count
        told = MemoryRemembered(
            conversation_id=conversation,
            through=outcome.through,
            kept=(*read.kept, *extracted.kept),
            left=left,
            moments=outcome.moments,
            tokens=outcome.tokens,
            cost_usd=outcome.cost_usd,
        )
        self._bus.publish("memory:remembered", told)

    @step(name="read", retries=PATIENT, timeout_s=STEP_S)
    async def read(self, conversation: str, run: str) -> Read:
        """Keep what rules find in the messages that were not read yet."""
        tenant = _tenant()
        reading = await self._store.begin_reading(tenant, conversation)
        if reading is None:
            return Read()
        whose = _whose(tenant, reading.owner, conversation, run)
        if await self._is_left_alone(whose, conversation):
            return Read(
                owner=reading.owner,
                through=reading.through,
                through_turn=reading.through_turn,
                is_left_alone=True,
            )
        kept: list[str] = []
        found: list[str] = []
        left: dict[str, int] = {}
        is_telling = False
        with self._as(whose):
            try:
                async for message in self._spoken(conversation, reading):
                    findings = await _found_in(message)
                    found += [each.item.key for each in findings]
                    kept += await self._keep(whose, conversation, message, findings, left)
                    await self._note_together(whose, conversation, message)
                    is_telling = True
            except NotFound:
                return Read()  # the conversation was deleted meanwhile
        return Read(
            owner=reading.owner,
            through=reading.through,
            through_turn=reading.through_turn,
            kept=tuple(dict.fromkeys(kept)),
            left=left,
            found=tuple(dict.fromkeys(found))[:MAX_WAITING],
            wants_model=is_telling and bool(self._settings.extraction_model),
        )

    async def _is_left_alone(self, whose: Whose, conversation: str) -> bool:
        """Say whether a conversation's agent is declared to be remembered nothing of."""
        with self._as(whose):
            try:
                found = await self._bus.request(
                    "conversation:get",
                    ConversationGet(conversation_id=conversation),
                    result_type=Conversation,
                )
            except NotFound:
                return True
            if found.agent is None:
                return False
            answers = await self._bus.gather("completion:agent", CompletionAgent(agent=found.agent))
        for answer in answers:
            if answer.error is not None:
                raise Unavailable(f"who {found.agent} is can't be told: {answer.error.message}")
            if answer.result is not None:
                return not msgspec.convert(answer.result, AgentProfile).is_remembered
        return False

    async def _spoken(self, conversation: str, reading: Reading) -> AsyncIterator[NumberedMessage]:
        """Yield what a person said."""
        async for message in talk.messages(self._bus, conversation, reading.after, reading.through):
            if message.role == "user" and message.turn in reading.spoken:
                yield message

    @step(name="look", retries=PATIENT, timeout_s=STEP_S)
    async def look(self, conversation: str, read: Read, run: str) -> Extracted:
        """Have a model look for facts in the same messages."""
        reading = await self._store.begin_reading(_tenant(), conversation)
        if reading is None or read.owner is None:
            return Extracted()
        whose = _whose(_tenant(), read.owner, conversation, run)
        with self._as(whose):
            try:
                said = talk.said_in([each async for each in self._spoken(conversation, reading)])
            except NotFound:
                return Extracted()
            return await self._extraction.extract(whose, conversation, said, read.found)

    @step(name="cover", retries=PATIENT, timeout_s=STEP_S)
    async def cover(self, args: Remember, read: Read, run: str) -> int:
        """Note how far was read, and plan moments; return how many are to be written."""
        tenant, conversation = _tenant(), args.conversation_id
        whose = _whose(tenant, read.owner or "", conversation, run)
        threshold = args.threshold_tokens
        if threshold is None:
            threshold = self._settings.compact_tokens
        with self._as(whose):
            try:
                await self._end(conversation, read)
                if read.is_left_alone:
                    return 0
                return await self._compaction.plan(whose, conversation, threshold)
            except NotFound:
                return 0

    async def _end(self, conversation: str, read: Read) -> None:
        """Note that everything was read up to where it was, with what it counts for."""
        tenant = _tenant()
        reading = await self._store.begin_reading(tenant, conversation)
        if reading is None or reading.after_turn >= read.through_turn:
            return  # it was noted before a crash
        reading = msgspec.structs.replace(
            reading, through=read.through, through_turn=read.through_turn
        )
        tokens = 0
        if not read.is_left_alone:
            some = talk.messages(self._bus, conversation, reading.after, reading.through)
            tokens = sum([each.tokens async for each in some])
        await self._store.end_reading(tenant, conversation, reading, tokens)

    @step(name="write", retries=PATIENT, timeout_s=STEP_S)
    async def write(self, args: Remember, read: Read, run: str) -> Written | None:
        """Write the first moment that is planned."""
        whose = _whose(_tenant(), read.owner or "", args.conversation_id, run)
        with self._as(whose):
            try:
                return await self._compaction.write_next(
                    whose, args.conversation_id, may_ask_model=args.may_ask_models
                )
            except NotFound:
                return None

    # -- keeping --------------------------------------------------------------------------------

    async def _keep(
        self,
        whose: Whose,
        conversation: str,
        message: NumberedMessage,
        findings: Sequence[Finding],
        left: dict[str, int],
    ) -> list[str]:
        """Remember what was found in a message, each with it as its source."""
        kept: list[str] = []
        if any(each.table == "entities" for each in findings):
            user = NewItem(key=rules.USER, title="the user", category="person")
            findings = [Finding(table="entities", item=user, origin="derived"), *findings]
        anew = await self._forgotten_before(whose, message, findings)
        for finding in findings:
            item = msgspec.structs.replace(
                finding.item,
                owner=whose.user or "",
                valid_from=message.created_at,
                sources=(
                    Source(kind="message", conversation_id=conversation, message=message.number),
                    Source(kind="person", told=f"{whose.user or 'the user'}, in a conversation"),
                ),
            )
            done = await self._items.upsert(
                whose,
                finding.table,
                [item],
                origin=finding.origin,
                even_forgotten=finding.origin == "said" and finding.item.key in anew,
            )
            kept += [*done.ids] if done.inserted or done.updated else []
            why = done.refused[0].why if done.refused else "it is remembered already"
            if not (done.inserted or done.updated):
                left[why] = left.get(why, 0) + 1
        return kept

    async def _forgotten_before(
        self, whose: Whose, message: NumberedMessage, findings: Sequence[Finding]
    ) -> set[str]:
        """Return the keys of what was forgotten, and which a user has said anew since then."""
        said = {
            item_id(each.table, each.item.key, whose.user or ""): each.item.key
            for each in findings
            if each.origin == "said"
        }
        forgotten = await self._store.forgotten(whose.tenant, list(said))
        return {said[each] for each, at in forgotten.items() if at < message.created_at}

    async def _note_together(
        self, whose: Whose, conversation: str, message: NumberedMessage
    ) -> None:
        """Note which known people and things a message mentions together."""
        grams: dict[str, None] = {}
        for sentence in junk.own_sentences(talk.text_of(message)):
            words = junk.words_of(sentence)
            for size in range(1, GRAM_WORDS + 1):
                for first in range(len(words) - size + 1):
                    grams.setdefault(" ".join(words[first : first + size]))
        if len(grams) < 2:
            return
        await self._store.note_together(
            whose.tenant,
            whose.user or "",
            (conversation, message.number),
            message.created_at,
            list(grams)[:MAX_GRAMS],
            MAX_TOGETHER,
        )

    @contextmanager
    def _as(self, whose: Whose) -> Iterator[None]:
        """Act in a conversation, and in the name of whose it is."""
        context = current_context() or Context("")
        acting = msgspec.structs.replace(
            context, user=whose.user, agent=None, conversation=whose.conversation
        )
        with acting_as(acting):
            yield


async def _found_in(message: NumberedMessage) -> list[Finding]:
    """Return what rules find in a message; a long one is read in a thread."""
    text = talk.text_of(message)
    if len(text) <= SHORT_CHARACTERS:
        return rules.find(text, message.created_at)
    return await asyncio.to_thread(rules.find, text, message.created_at)


def _tenant() -> str:
    context = current_context()
    return "default" if context is None else context.tenant


def _whose(tenant: str, owner: str, conversation: str, run: str) -> Whose:
    return Whose(
        tenant=tenant,
        user=owner or None,
        conversation=conversation,
        run=run,
        origin="memory",
    )


def context_in(tenant: str, user: str | None, conversation: str) -> Context:
    """Return the context of work in a conversation."""
    return Context(
        f"remember-{conversation}"[:100],
        origin="memory",
        tenant=tenant,
        user=user or None,
        conversation=conversation,
    )


def _id(text: str) -> str:
    """Return an id for a run, however long what it is made of."""
    if len(text) <= 100 and text.replace("-", "").replace("_", "").isalnum():
        return text
    return f"remember-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
