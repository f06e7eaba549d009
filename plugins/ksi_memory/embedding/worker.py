"""Works off the queue of texts that wait for vectors, by one embedder."""

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
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_memory.embedding.choice import BACKGROUND, PROBE
from ksi_memory.embedding.embedder import Embedder
from ksi_memory.embedding.vectors import Made, Vectors, Waiting
from ksi_memory.querying.hints import embedded_text
from ksi_memory.settings import MemorySettings

log = logging.getLogger(__name__)

INDEX_AFTER: Final = 200_000  # vectors; before that the index is made when nothing waits
LANES: Final = 2  # while one embeds, the other one stores and claims
FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 60.0
LONGEST, SHORTEST = 1e15, 1e-15
# What says nothing of the texts: later it may go well.
PASSING: Final = (Busy, Denied, NotFound, TimedOut, Unavailable)


class AnotherModel(Exception):
    """Behind the embedder's name there is another model now."""


class Current(Struct):
    """The embedder that is used, and how it is known.

    Attributes:
        is_complete: Whether all that was there before it has its vectors.
    """

    id: int
    embedder: Embedder
    is_complete: bool


class Worker:
    """Embeds what waits.

    Args:
        vectors: The queue, and where vectors are kept.
        settings: How much at once, and how long it may take.
        current: The embedder.
        wake: Set when something waits.
        idle: Is set whenever nothing waits any more.
    """

    def __init__(
        self,
        vectors: Vectors,
        settings: MemorySettings,
        current: Current,
        wake: asyncio.Event,
        idle: asyncio.Event,
    ) -> None:
        self._vectors = vectors
        self._settings = settings
        self._current = current
        self._id = current.id
        self._embedder = current.embedder
        self._wake = wake
        self._idle = idle
        self._embeds = asyncio.Semaphore(1)
        self._unindexed = 0

    async def run(self) -> None:
        """Embed what waits, and what comes, for ever.

        Raises:
            AnotherModel: In a group.
        """
        async with asyncio.TaskGroup() as tasks:
            for number in range(LANES):
                tasks.create_task(self._lane(), name=f"embedding {number}")

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
            except (asyncio.CancelledError, AnotherModel):
                await self._release(claimed)
                raise

    async def _claim(self) -> list[Waiting]:
        lease = timedelta(seconds=self._settings.embed_lease_s)
        return await self._vectors.claim(self._id, self._settings.embed_batch_texts, lease)

    async def _release(self, claimed: Sequence[Waiting]) -> None:
        """Give texts back; where that is not possible, their leases end some time."""
        with contextlib.suppress(KsiError):
            await self._vectors.release(self._id, claimed)

    async def _pause(self, error: KsiError, pause: float) -> None:
        log.warning("texts could not be embedded yet", extra={"why": error.message})
        await asyncio.sleep(max(pause, error.retry_after_s or 0))

    async def _rest(self) -> None:
        """Nothing waits: let the model answer, and wait for what comes."""
        await self._index()
        if not self._current.is_complete:
            self._current.is_complete = await self._vectors.complete(self._id)
        seconds = await self._vectors.next_lease_end(self._id)
        if seconds is None:
            self._idle.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _index(self) -> None:
        if await self._vectors.index(self._id):
            log.info("made an index of vectors", extra={"embedder": self._id})
        self._unindexed = 0

    async def _embed(self, claimed: Sequence[Waiting]) -> None:
        """Embed texts and store their vectors; set aside those that can't be embedded."""
        texts = [
            embedded_text(each.title, each.body, each.persons, each.session, each.said_at)
            for each in claimed
        ]
        hashes = [hashlib.sha256(text.encode(errors="replace")).digest() for text in texts]
        known = await self._vectors.known(self._id, [each.tenant for each in claimed], hashes)
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
        await self._vectors.store(self._id, good)
        for each, why in bad:
            await self._set_aside(each, why)
        self._unindexed += len(good)
        if self._unindexed >= INDEX_AFTER:
            await self._index()

    async def _set_aside(self, waiting: Waiting, why: str) -> None:
        log.warning(
            "a text can't be embedded and was set aside",
            extra={"item": str(waiting.item), "tenant": waiting.tenant, "why": why},
        )
        await self._vectors.set_aside(self._id, waiting, why)

    async def _made(
        self, fresh: Mapping[tuple[str, bytes], str]
    ) -> dict[tuple[str, bytes], list[float] | str]:
        """Return the vector of each text, or why it has none.

        What a provider is asked is asked in the name of the tenant whose text it is.
        """
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
        except (*PASSING, AnotherModel):
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises for a text
            if len(texts) == 1:
                return [getattr(error, "message", None) or repr(error)]
            half = len(texts) // 2
            return [
                *await self._tried(texts[:half], context),
                *await self._tried(texts[half:], context),
            ]
        dimension = self._embedder.dimension
        return [wrong_with(vector, dimension) or vector for vector in vectors]

    async def _asked(self, texts: list[str], context: Context) -> list[list[float]]:
        """Embed texts, one batch at a time.

        Raises:
            AnotherModel: It is another one now.
            TimedOut: It took too long.
        """
        embedder = self._embedder
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
            AnotherModel: There is.
        """
        probe = (await embedder.embed([PROBE], context))[0]
        if len(probe) == embedder.dimension:
            return
        raise AnotherModel(f"{embedder.name} makes vectors of {len(probe)} numbers now")


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
