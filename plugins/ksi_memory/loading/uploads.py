"""Keeps uploads: pieces of a file in any order, each durable when it is answered."""

from datetime import timedelta
from typing import Any, Final

from msgspec import Struct

from ksi_daemon.protocol import Busy, Conflict, InvalidData, NotFound
from ksi_memory.events import ContentUpload, ContentUploaded
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

__all__ = ["SQL", "Upload", "Uploads"]

SQL: Final = load_queries(__package__)
MAX_PIECES: Final = 20_000  # of one upload
PAGE: Final = 8  # pieces that are read at once
RETRY_S: Final = 60.0


class Upload(Struct, frozen=True, kw_only=True):
    """A file that was uploaded; one that was loaded already has no data any more."""

    upload_id: str
    name: str
    media_type: str | None
    sha256: str
    loaded_as: str | None
    data: bytes


class Uploads:
    """The uploads of all tenants.

    Args:
        database: The store.
        settings: Sizes.
    """

    def __init__(self, database: Database, settings: MemorySettings) -> None:
        self._database = database
        self._settings = settings

    async def put(self, whose: Whose, request: ContentUpload) -> ContentUploaded:
        """Keep a piece, if there is one, and tell how far the upload is.

        Raises:
            Busy: Too many uploads are under way.
            Conflict: It is said to be another file than before.
            InvalidData: It is too large, or not what was announced.
            NotFound: There is no such upload, and this does not begin one.
        """
        state = await self._open(whose, request)
        begins_empty = request.data is None and state["size_bytes"] == 0
        if request.data is not None or begins_empty:
            state = await self._add(whose, request)
        known_as = await self._database.fetchval(
            SQL["content"], whose.tenant, whose.user, state["sha256"]
        )
        return ContentUploaded(
            upload_id=request.upload_id,
            received_bytes=state["received_bytes"],
            size_bytes=state["size_bytes"],
            is_complete=state["is_checked"],
            known_as=known_as,
        )

    async def _open(self, whose: Whose, request: ContentUpload) -> Any:
        size, most = request.size_bytes, self._settings.max_upload_bytes
        if size is not None and size > most:
            raise InvalidData(
                f"the file has {size:,} bytes; at most {most:,} are taken (memory.max_upload_bytes)"
            )
        state = await self._database.fetchrow(
            SQL["open"],
            *_id(whose, request.upload_id),
            request.name,
            request.media_type,
            size,
            request.sha256,
            self._settings.max_open_uploads,
        )
        assert state is not None
        self._check(state["verdict"], request)
        return state

    async def _add(self, whose: Whose, request: ContentUpload) -> Any:
        state = await self._database.fetchrow(
            SQL["add"],
            *_id(whose, request.upload_id),
            request.offset,
            request.data or b"",
            MAX_PIECES,
        )
        assert state is not None
        self._check(
            "too_many_pieces" if state["verdict"] == "too_many" else state["verdict"], request
        )
        return state

    def _check(self, verdict: str, request: ContentUpload) -> None:
        upload = request.upload_id
        if verdict == "unknown":
            raise NotFound(
                f"there is no upload {upload}: begin it with size_bytes and sha256, from offset 0"
            )
        if verdict == "another":
            raise Conflict(f"the upload {upload} is one of another file: take another upload_id")
        if verdict == "too_many":
            bound = self._settings.max_open_uploads
            raise Busy(
                f"{bound} uploads are under way (memory.max_open_uploads): load some, or wait",
                retry_after_s=RETRY_S,
            )
        if verdict == "too_many_pieces":
            raise InvalidData(f"the upload {upload} has {MAX_PIECES:,} pieces: send larger ones")
        if verdict == "too_far":
            raise InvalidData(
                f"the piece reaches past the {request.size_bytes or 'announced'} bytes of the file"
            )
        if verdict == "wrong":
            raise InvalidData(
                "what came is not what was announced: its sha256 differs. The upload is gone; "
                "begin again"
            )

    async def read(self, whose: Whose, upload_id: str) -> Upload:
        """Return what was uploaded.

        Raises:
            Conflict: It is not complete yet.
            NotFound: There is no such upload.
        """
        request = ContentUpload(upload_id=upload_id)
        state = await self._open(whose, request)
        if not state["is_checked"]:
            raise Conflict(
                f"the upload {upload_id} is not complete: {state['received_bytes']:,} of "
                f"{state['size_bytes']:,} bytes are there without a gap"
            )
        return Upload(
            upload_id=upload_id,
            name=state["name"],
            media_type=state["media_type"],
            sha256=state["sha256"],
            loaded_as=state["loaded_as"],
            data=b"" if state["loaded_as"] else await self._data(whose, upload_id),
        )

    async def _data(self, whose: Whose, upload_id: str) -> bytes:
        data = bytearray()
        while True:
            pieces = await self._database.fetch(
                SQL["pieces"], *_id(whose, upload_id), len(data), PAGE
            )
            for piece in pieces:
                data += piece["content"]
            if not pieces:
                return bytes(data)

    async def close(self, whose: Whose, upload_id: str, key: str) -> None:
        """Let the bytes go of what was remembered as ``key``."""
        await self._database.execute(SQL["close"], *_id(whose, upload_id), key)

    async def expire(self) -> int:
        """Let go what nobody goes on with; return how many that were."""
        kept = timedelta(seconds=self._settings.upload_keep_s)
        gone: int = await self._database.fetchval(SQL["expire"], kept)
        return gone


def _id(whose: Whose, upload_id: str) -> tuple[str, str, str]:
    return whose.tenant, whose.user or "", upload_id
