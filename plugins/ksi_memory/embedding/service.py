"""Has texts turned into vectors: those that wait, and questions."""

import asyncio
import logging
from typing import Final

from msgspec import Struct

from ksi_daemon.protocol import (
    Context,
    Denied,
    Failed,
    InvalidData,
    KsiError,
    TimedOut,
    Unavailable,
)
from ksi_memory.embedding.choice import NONE, Choice
from ksi_memory.embedding.embedder import Embedder
from ksi_memory.embedding.vectors import CHANNEL, EMBEDDERS_CHANNEL, KnownEmbedder, Vectors
from ksi_memory.embedding.worker import AnotherModel, Current, Worker, wrong_with
from ksi_memory.events import MemoryReembedding
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 60.0
FOLDED_AT_ONCE: Final = 100
FOLD_PAUSE_S: Final = 60.0


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
        idle: Set whenever nothing waits any more.
        looked: Set when it was looked for the embedder.
    """

    def __init__(self, database: Database, settings: MemorySettings, choice: Choice) -> None:
        self.vectors = Vectors(database)
        self.why_none = "the embedder is being looked for"
        self.idle = asyncio.Event()
        self.looked = asyncio.Event()
        self._database = database
        self._settings = settings
        self._choice = choice
        self._spec = settings.embedder
        self._current: Current | None = None
        self._others: dict[str, Embedder | None] = {}
        self._known: list[KnownEmbedder] | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def id(self) -> int | None:
        """The embedder's id, once it is known."""
        return self._current.id if self._current is not None else None

    # -- questions ------------------------------------------------------------------------------

    async def answering(self) -> Answering:
        """Return who embeds questions now.

        While the vectors of a new model are being made, the one before answers.
        """
        current = self._current
        if current is None:
            return Answering(None, None, f"searched without vectors: {self.why_none}")
        if current.is_complete:
            return Answering(current.id, current.embedder)
        for known in await self._complete():
            if known.id == current.id:
                current.is_complete = True
                return Answering(current.id, current.embedder)
            embedder = await self._other(known)
            if embedder is not None:
                note = f"{known.name} answers while vectors of {current.embedder.name} are made"
                return Answering(known.id, embedder, note)
        note = f"vectors of {current.embedder.name} are still being made"
        return Answering(current.id, current.embedder, note)

    async def _complete(self) -> list[KnownEmbedder]:
        """Return the models that have vectors of all there was, what was wanted last first."""
        if self._known is None:
            self._known = [each for each in await self.vectors.embedders() if each.is_complete]
        return self._known

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
                    work = tasks.create_task(self._work(), name="embedding")
                    await self._changed.wait()
                    work.cancel()
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
        current = [self._current.embedder] if self._current is not None else []
        for embedder in (*current, *self._others.values()):
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
        elif self._current is not None:
            await self.vectors.reembed(
                whose.tenant, self._current.id, only_set_aside=only_set_aside
            )
        current = self._current
        if current is None:
            raise Unavailable(f"there is no embedder: {self.why_none}")
        stats = await self.vectors.stats(whose.tenant, current.id)
        waiting = sum(each.waiting for each in stats if each.is_current)
        return MemoryReembedding(model=current.embedder.name, waiting=waiting)

    async def use(self, spec: str) -> None:
        """Change to another embedder, until the daemon's next start.

        Raises:
            InvalidData: There is none of that name.
            KsiError: It can't be had just now.
        """
        embedder = await self._choice.find(spec)
        if embedder is None:
            raise InvalidData("vectors are made by an embedder: name one")
        await self._take(embedder)
        self._spec = spec
        self._changed.set()

    async def _take(self, embedder: Embedder) -> None:
        number, is_complete = await self.vectors.want(embedder.name, embedder.dimension)
        self._current = Current(number, embedder, is_complete)
        self._known = None
        self.why_none = ""

    def _notified(self, payload: str | None) -> None:
        self._wake.set()

    def _embedders_changed(self, payload: str | None) -> None:
        self._known = None
        if self._current is not None:
            self._current.is_complete = False  # perhaps another one is wanted now
        self._wake.set()

    async def _work(self) -> None:
        """Look for the embedder, and have it embed what waits."""
        is_there = self._current is not None or await self._found()
        self.looked.set()
        if not is_there:
            return
        assert self._current is not None
        worker = Worker(self.vectors, self._settings, self._current, self._wake, self.idle)
        try:
            await worker.run()
        except* AnotherModel as group:
            self._current = None
            self.why_none = str(group.exceptions[0])
            log.warning("the embedder is another one now", extra={"why": self.why_none})
            self._changed.set()

    async def _found(self) -> bool:
        """Look for the embedder until it is there; say whether there is to be one."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                embedder = await self._choice.find(self._spec)
                if embedder is None:
                    self.why_none = f"memory.embedder is {NONE!r}"
                    return False
                await self._take(embedder)
                return True
            except InvalidData as error:
                self.why_none = error.message
                log.error("there is no embedder", extra={"why": error.message})
                return False
            except KsiError as error:
                self.looked.set()
                if self.why_none != error.message:
                    log.warning("there is no embedder yet", extra={"why": error.message})
                self.why_none = error.message
                if (error.details or {}).get("extra"):
                    return False  # it is not installed while the daemon runs
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_S)
