"""Has texts turned into vectors: those that wait, and questions."""

import asyncio
import contextlib
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import (
    Busy,
    Context,
    Denied,
    Failed,
    InvalidData,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_memory.embedders.choice import BACKGROUND, NONE, PROBE, Choice
from ksi_memory.embedders.embedder import Embedder
from ksi_memory.events import MemoryReembedding
from ksi_memory.question import embedded_text
from ksi_memory.settings import MemorySettings
from ksi_memory.vectors import CHANNEL, EMBEDDERS_CHANNEL, KnownEmbedder, Made, Vectors, Waiting
from ksi_memory.whose import Whose
from ksi_postgres.database import Database

log = logging.getLogger(__name__)

INDEX_AFTER: Final = 50_000  # vectors; before that the index is made when nothing waits
LANES: Final = 2  # while one embeds, the other one stores and claims
FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 60.0
FOLDED_AT_ONCE: Final = 100
FOLD_PAUSE_S: Final = 60.0
LONGEST, SHORTEST = 1e15, 1e-15
# What says nothing of the texts: later it may go well.
PASSING: Final = (Busy, Denied, NotFound, TimedOut, Unavailable)


class Answering(Struct, frozen=True):
    """Who embeds a question: a model and its id, or none; and what the asker should know."""

    id: int | None
    embedder: Embedder | None
    note: str = ""


class Embedding:
    """Embeds what waits, and questions.

    Args:
        database: Notifies of what waits.
        settings: Which embedder, and how much at once.
        choice: Finds it.

    Attributes:
        why_none: Why there is no embedder, where there is none.
        id: The embedder's, when it is known.
        idle: Set whenever nothing waits any more.
    """

    def __init__(self, database: Database, settings: MemorySettings, choice: Choice) -> None:
        self.vectors = Vectors(database)
        self.id: int | None = None
        self.why_none = "the embedder is being looked for"
        self._database = database
        self._settings = settings
        self._choice = choice
        self._spec = settings.embedder
        self._embedder: Embedder | None = None
        self._others: dict[str, Embedder | None] = {}
        self._known: list[KnownEmbedder] | None = None
        self._is_complete = False
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self.idle = asyncio.Event()
        self._embeds = asyncio.Semaphore(1)
        self._unindexed = 0

    # -- questions ------------------------------------------------------------------------------

    async def answering(self) -> Answering:
        """Return who embeds questions now.

        While the vectors of a new model are being made, the one before answers.
        """
        if self._embedder is None or self.id is None:
            return Answering(None, None, f"searched without vectors: {self.why_none}")
        if self._is_complete:
            return Answering(self.id, self._embedder)
        before = await self._before()
        if before is not None:
            return before
        return Answering(
            self.id, self._embedder, f"vectors of {self._embedder.name} are still being made"
        )

    async def _before(self) -> Answering | None:
        """Return the model that answered before this one, if it still can."""
        assert self._embedder is not None
        if self._known is None:
            self._known = await self.vectors.embedders()
        for known in self._known:
            if known.id == self.id and known.is_complete:
                self._is_complete = True
                return Answering(self.id, self._embedder)
            if not known.is_complete:
                continue
            embedder = await self._other(known)
            if embedder is not None:
                note = f"{known.name} answers while vectors of {self._embedder.name} are being made"
                return Answering(known.id, embedder, note)
        return None

    async def _other(self, known: KnownEmbedder) -> Embedder | None:
        if known.name not in self._others:
            try:
                found = await self._choice.find_again(known.name, known.dimension)
            except KsiError as error:
                log.warning(
                    "an embedder of before is not there any more",
                    extra={"embedder": known.name, "why": error.message},
                )
                found = None
            self._others[known.name] = found
        return self._others[known.name]

    async def question(self, answering: Answering, text: str, context: Context) -> list[float]:
        """Embed a question.

        Raises:
            KsiError: It can't be done just now.
        """
        assert answering.embedder is not None
        limit = self._settings.question_timeout_s
        try:
            async with asyncio.timeout(limit):
                vector = (await answering.embedder.embed([text], context))[0]
        except TimeoutError as error:
            raise TimedOut(
                f"the question was not embedded within {limit} s (memory.question_timeout_s)"
            ) from error
        problem = wrong_with(vector, answering.embedder.dimension)
        if problem is not None:
            raise Failed(f"{answering.embedder.name} made a vector that {problem}")
        return vector

    # -- what waits -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Embed what waits, and what comes, for ever."""
        await self._database.listen(CHANNEL, self._notified)
        await self._database.listen(EMBEDDERS_CHANNEL, self._embedders_changed)
        try:
            while True:
                self._changed.clear()
                async with asyncio.TaskGroup() as tasks:
                    lanes = tasks.create_task(self._run_lanes(), name="lanes")
                    await self._changed.wait()
                    lanes.cancel()
        finally:
            self._database.unlisten(CHANNEL, self._notified)
            self._database.unlisten(EMBEDDERS_CHANNEL, self._embedders_changed)

    async def fold(self) -> None:
        """Fold the counts of words, now and then."""
        while True:
            while await self.vectors.fold(FOLDED_AT_ONCE):
                pass
            await asyncio.sleep(FOLD_PAUSE_S)

    async def close(self) -> None:
        """Close the embedders."""
        for embedder in (self._embedder, *self._others.values()):
            if embedder is not None:
                await embedder.close()

    async def reembed(
        self, whose: Whose, model: str | None, *, only_set_aside: bool
    ) -> MemoryReembedding:
        """Have a tenant's vectors made anew, or all vectors by another model.

        Raises:
            Denied: Another model is for all tenants, and a user asks for it.
            InvalidData: There is none of that name.
            Unavailable: There is no embedder.
        """
        if model is not None and model != self._spec:
            if whose.user is not None or whose.agent is not None:
                raise Denied("only the daemon's owner changes the embedder, which is everybody's")
            await self.use(model)
        elif self._embedder is not None and self.id is not None:
            await self.vectors.reembed(whose.tenant, self.id, only_set_aside=only_set_aside)
        if self._embedder is None:
            raise Unavailable(f"there is no embedder: {self.why_none}")
        stats = await self.vectors.stats(whose.tenant, self.id)
        waiting = sum(each.waiting for each in stats if each.is_current)
        return MemoryReembedding(model=self._embedder.name, waiting=waiting)

    async def use(self, spec: str) -> int:
        """Change to another embedder; return its id when it is known.

        Raises:
            InvalidData: There is none of that name.
            KsiError: It can't be had just now.
        """
        embedder = await self._choice.find(spec)
        if embedder is None:
            raise InvalidData("vectors are made by an embedder: name one")
        number, is_complete = await self.vectors.want(embedder.name, embedder.dimension)
        self._spec = spec
        self._take(embedder, number, is_complete)
        self._changed.set()
        return number

    def _take(self, embedder: Embedder, number: int, is_complete: bool) -> None:
        self._embedder, self.id, self._is_complete = embedder, number, is_complete
        self._known = None
        self.why_none = ""

    def _notified(self, payload: str | None) -> None:
        self._wake.set()

    def _embedders_changed(self, payload: str | None) -> None:
        self._known = None
        self._wake.set()

    async def _run_lanes(self) -> None:
        if self._embedder is None and not await self._found():
            return
        async with asyncio.TaskGroup() as tasks:
            for number in range(LANES):
                tasks.create_task(self._lane(), name=f"embedding {number}")

    async def _found(self) -> bool:
        """Look for the embedder until it is there; say whether there is to be one."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                embedder = await self._choice.find(self._spec)
                if embedder is None:
                    self.why_none = f"memory.embedder is {NONE!r}"
                    return False
                self._take(embedder, *await self.vectors.want(embedder.name, embedder.dimension))
                return True
            except InvalidData as error:
                self.why_none = error.message
                log.error("there is no embedder", extra={"why": error.message})
                return False
            except KsiError as error:
                if self.why_none != error.message:
                    log.warning("there is no embedder yet", extra={"why": error.message})
                self.why_none = error.message
                if (error.details or {}).get("extra"):
                    return False  # it is not installed while the daemon runs
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_S)

    async def _lane(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            self._wake.clear()
            claimed = await self._claim()
            if not claimed:
                await self._rest()
                continue
            try:
                await self._embed(claimed)
                pause = FIRST_PAUSE_S
            except TimedOut as error:  # their leases end, and they are counted as tried
                await self._pause(error, pause)
                pause = min(2 * pause, LAST_PAUSE_S)
            except PASSING as error:
                await self._release(claimed)
                await self._pause(error, pause)
                pause = min(2 * pause, LAST_PAUSE_S)
            except asyncio.CancelledError:
                await self._release(claimed)
                raise

    async def _claim(self) -> list[Waiting]:
        assert self.id is not None
        lease = timedelta(seconds=self._settings.embed_lease_s)
        return await self.vectors.claim(self.id, self._settings.embed_batch_texts, lease)

    async def _release(self, claimed: Sequence[Waiting]) -> None:
        """Give texts back; where that is not possible, their leases end some time."""
        assert self.id is not None
        with contextlib.suppress(KsiError):
            await self.vectors.release(self.id, claimed)

    async def _pause(self, error: KsiError, pause: float) -> None:
        log.warning("texts could not be embedded yet", extra={"why": error.message})
        await asyncio.sleep(max(pause, error.retry_after_s or 0))

    async def _rest(self) -> None:
        """Nothing waits: let the model answer, and wait for what comes."""
        assert self.id is not None
        await self._index()
        if not self._is_complete:
            self._is_complete = await self.vectors.complete(self.id)
        seconds = await self.vectors.next_lease_end(self.id)
        if seconds is None:
            self.idle.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _index(self) -> None:
        assert self.id is not None
        if await self.vectors.index(self.id):
            log.info("made an index of vectors", extra={"embedder": self.id})
        self._unindexed = 0

    async def _embed(self, claimed: Sequence[Waiting]) -> None:
        """Embed texts and store their vectors; set aside those that can't be embedded."""
        assert self.id is not None
        texts = [
            embedded_text(each.title, each.body, each.persons, each.session, each.said_at)
            for each in claimed
        ]
        hashes = [hashlib.sha256(text.encode(errors="replace")).digest() for text in texts]
        known = await self.vectors.known(self.id, [each.tenant for each in claimed], hashes)
        fresh = {
            (each.tenant, key): text
            for place, (each, key, text) in enumerate(zip(claimed, hashes, texts, strict=True))
            if place not in known
        }
        made = await self._made(fresh)
        good, bad = [], []
        for place, (each, key) in enumerate(zip(claimed, hashes, strict=True)):
            vector = None if place in known else made[each.tenant, key]
            if isinstance(vector, str):
                bad.append((each, vector))
            else:
                good.append(Made(each, key, vector))
        await self.vectors.store(self.id, good)
        for each, why in bad:
            await self._set_aside(each, why)
        self._unindexed += len(good)
        if self._unindexed >= INDEX_AFTER:
            await self._index()

    async def _set_aside(self, waiting: Waiting, why: str) -> None:
        assert self.id is not None
        log.warning(
            "a text can't be embedded and was set aside",
            extra={"item": str(waiting.item), "tenant": waiting.tenant, "why": why},
        )
        await self.vectors.set_aside(self.id, waiting, why)

    async def _made(
        self, fresh: Mapping[tuple[str, bytes], str]
    ) -> dict[tuple[str, bytes], list[float] | str]:
        """Return the vector of each text, or why it has none.

        What a provider is asked is asked in the name of the tenant whose text it is.
        """
        assert self._embedder is not None
        if not self._embedder.is_billed:
            texts = list(dict.fromkeys(fresh.values()))
            vectors = dict(zip(texts, await self._tried(texts, BACKGROUND), strict=True))
            return {key: vectors[text] for key, text in fresh.items()}
        made: dict[tuple[str, bytes], list[float] | str] = {}
        for tenant in dict.fromkeys(key[0] for key in fresh):
            own = {key: text for key, text in fresh.items() if key[0] == tenant}
            context = msgspec.structs.replace(BACKGROUND, tenant=tenant)
            vectors_of = await self._tried(list(own.values()), context)
            made.update(zip(own, vectors_of, strict=True))
        return made

    async def _tried(self, texts: list[str], context: Context) -> list[list[float] | str]:
        """Embed texts; where that fails, each half of them, until it is known which can't be."""
        if not texts:
            return []
        try:
            vectors = await self._asked(texts, context)
        except PASSING:
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises for a text
            if len(texts) == 1:
                return [getattr(error, "message", None) or repr(error)]
            half = len(texts) // 2
            return [
                *await self._tried(texts[:half], context),
                *await self._tried(texts[half:], context),
            ]
        assert self._embedder is not None
        dimension = self._embedder.dimension
        return [wrong_with(vector, dimension) or vector for vector in vectors]

    async def _asked(self, texts: list[str], context: Context) -> list[list[float]]:
        """Embed texts, one batch at a time.

        Raises:
            Unavailable: The model is another one now.
        """
        embedder = self._embedder
        assert embedder is not None
        limit = self._settings.embed_timeout_s
        async with self._embeds:
            try:
                async with asyncio.timeout(limit):
                    vectors = await embedder.embed(texts, context)
                    if any(len(vector) != embedder.dimension for vector in vectors):
                        await self._see_whether_it_is_another(embedder, context)
            except TimeoutError as error:
                raise TimedOut(
                    f"{len(texts)} texts were not embedded within {limit} s "
                    "(memory.embed_timeout_s)"
                ) from error
        if len(vectors) != len(texts):
            raise Failed(f"it made {len(vectors)} vectors of {len(texts)} texts")
        return vectors

    async def _see_whether_it_is_another(self, embedder: Embedder, context: Context) -> None:
        """See whether a vector is wrong because there is another model behind the name now.

        Raises:
            Unavailable: It is.
        """
        probe = (await embedder.embed([PROBE], context))[0]
        if len(probe) == embedder.dimension:
            return
        self._embedder = None
        self.id = None
        self.why_none = f"{embedder.name} makes vectors of another dimension now"
        self._changed.set()
        raise Unavailable(self.why_none)


def wrong_with(vector: Sequence[float], dimension: int) -> str | None:
    """Say what is wrong with a vector."""
    if len(vector) != dimension:
        return f"has {len(vector)} numbers, not {dimension}"
    length = math.hypot(*vector)
    if not math.isfinite(length) or length > LONGEST:
        return "is not made of finite numbers"
    if length < SHORTEST:
        return "is nothing but zeros"
    return None
