"""Answers ``content:*``: takes in bytes, and remembers files."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.principals import OWNER
from ksi_daemon.protocol import Context, Denied, InvalidData
from ksi_memory import events as e
from ksi_memory.items.store import Publish
from ksi_memory.loading.files import File, How, Loader
from ksi_memory.loading.uploads import Upload, Uploads
from ksi_memory.reading.documents import Extractor
from ksi_memory.reading.reader import Reader, media_type_of
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose, whose_of
from ksi_postgres.database import Database

__all__ = ["Content"]

SWEEP_EVERY_S: Final = 600.0


class Content:
    """Takes in files.

    Args:
        database: The store.
        settings: Sizes.
        home: ``KSI_HOME``.
        publish: Tells of what was remembered.
    """

    def __init__(
        self, database: Database, settings: MemorySettings, home: Path, publish: Publish
    ) -> None:
        extractor = Extractor(
            folder=home / "files" / "reading",
            timeout_s=settings.reader_timeout_s,
            memory_mb=settings.reader_memory_mb,
            max_characters=settings.max_document_characters,
            max_unpacked_bytes=settings.max_unpacked_bytes,
        )
        self._settings = settings
        self._uploads = Uploads(database, settings)
        reader = Reader(extractor, settings.max_document_characters)
        self._loader = Loader(database, settings, reader, publish)

    @event_handler("content:upload", scope="memory:write")
    async def upload(self, request: e.ContentUpload) -> e.ContentUploaded:
        """Take in a piece of a file; it is durable when this is answered."""
        return await self._uploads.put(whose_of(_context()), request)

    @event_handler("content:load")
    async def load(self, request: e.ContentLoad) -> AsyncIterator[e.ContentChunk]:
        """Remember a file or a directory; streams what became of each file, then of all."""
        context = _context()
        whose = whose_of(context)
        how = self._how(whose, request)
        if (request.path is None) == (request.upload_id is None):
            raise InvalidData("name either a path or an upload_id")
        if request.path is not None:
            work = self._loader.load_path(whose, how, _path(context, request.path), request.name)
        else:
            assert request.upload_id is not None
            work = self._load_upload(whose, how, request, request.upload_id)
        async with aclosing(work) as chunks:
            async for chunk in chunks:
                yield chunk

    def _how(self, whose: Whose, request: e.ContentLoad) -> How:
        if whose.user is not None and request.owner not in ("", whose.user):
            raise Denied("a user remembers in their own name alone")
        size = request.chunk_characters or self._settings.chunk_characters
        overlap = request.overlap_characters
        if overlap is None:
            overlap = min(self._settings.overlap_characters, size // 2)
        if overlap > size // 2:
            raise InvalidData(
                f"overlap_characters: at most half of chunk_characters, which is {size // 2}"
            )
        return How(
            owner=request.owner or whose.user or "",
            table=request.table or "",
            category=request.category,
            chunk_characters=size,
            overlap_characters=overlap,
            again=request.again,
            even_forgotten=request.even_forgotten,
        )

    async def _load_upload(
        self, whose: Whose, how: How, request: e.ContentLoad, upload_id: str
    ) -> AsyncGenerator[e.ContentChunk]:
        upload = await self._uploads.read(whose, upload_id)
        if upload.loaded_as is not None:
            yield e.ContentLoaded(
                files=1, unchanged_files=1, skipped_files=0, inserted=0, updated=0, unchanged=0
            )
            return
        file = await asyncio.to_thread(_file, upload, request.name)
        skipped = 0
        async for chunk in self._loader.load_data(whose, how, file):
            if isinstance(chunk, e.ContentLoaded):
                skipped = chunk.skipped_files
                if not skipped:
                    await self._uploads.close(whose, upload_id, file.key)
            yield chunk

    async def run_sweeps(self) -> None:
        """Let go, now and then, of uploads that nobody goes on with."""
        while True:
            await self._uploads.expire()
            await asyncio.sleep(SWEEP_EVERY_S)


def _file(upload: Upload, name: str | None) -> File:
    key = name or upload.name
    if hashlib.sha256(upload.data).hexdigest() != upload.sha256:
        raise InvalidData("what was uploaded is damaged: upload it again, by another upload_id")
    return File(
        key=key,
        name=upload.name.rpartition("/")[2] or upload.name,
        data=upload.data,
        media_type=upload.media_type or media_type_of(upload.name),
    )


def _path(context: Context, given: str) -> Path:
    """Return a path that the daemon may read for whoever asks: for its owner alone.

    Raises:
        Denied: Somebody else asks.
        InvalidData: It depends on where somebody stands.
    """
    is_owner = context.origin == OWNER.name and (context.user, context.agent, context.run) == (
        None,
        None,
        None,
    )
    if not is_owner:
        raise Denied("the daemon's owner alone may name a path: send the bytes by content:upload")
    path = Path(given)
    if not path.is_absolute() or "\0" in given:
        raise InvalidData(f"path: name it from the root on, not {given[:200]!r}")
    return path


def _context() -> Context:
    context = current_context()
    assert context is not None  # it is an event that is being handled
    return context
