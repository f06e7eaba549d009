"""Takes files in: to disk as they come, to the daemon in pieces, and into the memory."""

import asyncio
import hashlib
import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import BodyPartReader, hdrs, web
from msgspec import Struct

from ksi_daemon.protocol import InvalidData, KsiError, TimedOut
from ksi_http.sidecar import bodies, errors
from ksi_http.sidecar.openapi import EVENT_STREAM, described
from ksi_http.sidecar.streaming import EventStream, event_stream
from ksi_memory.events import (
    ContentChunk,
    ContentLoad,
    ContentLoaded,
    ContentProgress,
    ContentUpload,
    ContentUploaded,
)

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

SCOPE: Final = "memory:write"
FORM: Final = "multipart/form-data"
PIECE_BYTES: Final = 1024 * 1024
MAX_FIELD_BYTES: Final = 2000
OVERHEAD_BYTES: Final = 16 * 1024  # of a form besides the file in it
FIELDS: Final = ("name", "table", "category")

DESCRIBED: Final = {
    "summary": "Upload a file, and remember what it holds.",
    "description": "Needs the scope memory:write. Who accepts text/event-stream is told how far it "
    "is.",
    "tags": ["content"],
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "name": {"type": "string", "maxLength": 1000},
                        "table": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,62}$"},
                        "category": {"type": "string", "maxLength": 200},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "What became of it.",
            "content": {
                errors.JSON: {"schema": {"x-type": ContentLoaded}},
                EVENT_STREAM: {"schema": {"type": "string"}},
            },
        },
        "default": {"$ref": "#/components/responses/Error"},
    },
}


class Received(Struct, tag="received", tag_field="kind"):
    """How much of a file the daemon has."""

    received_bytes: int
    size_bytes: int


class Form(Struct):
    """What was sent: fields, and the file on disk."""

    fields: dict[str, str]
    file_name: str = ""
    media_type: str | None = None
    size: int = -1
    sha256: str = ""


Progress = Received | ContentProgress | ContentLoaded


class Uploads:
    """Takes files in.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app

    @described(DESCRIBED)
    async def take(self, request: web.Request) -> web.StreamResponse:
        """Take a file in, and tell what became of it: in the end, or as it goes."""
        app, caller = self._app, self._app.caller(request)
        caller.demand(SCOPE)
        bound = app.settings.max_upload_bytes
        if request.content_type != FORM:
            raise errors.WrongType(f"send {FORM}, with the file as 'file'")
        bodies.check_size(request, bound + OVERHEAD_BYTES, "http.max_upload_bytes")
        with tempfile.TemporaryFile() as file:
            form = await self._receive(request, file)
            load = self._load_of(form)
            async with aclosing(self._remembered(caller, form, file, load)) as steps:
                if EVENT_STREAM in request.headers.get(hdrs.ACCEPT, ""):
                    return await self._told(request, steps)
                async for step in steps:
                    if isinstance(step, ContentLoaded):
                        return _json(step)
        raise InvalidData("nothing became of the file")

    # -- from the client ------------------------------------------------------------------------

    async def _receive(self, request: web.Request, file: IO[bytes]) -> Form:
        form = Form({})
        try:
            parts = await request.multipart()
            while (part := await self._next(parts)) is not None:
                if not isinstance(part, BodyPartReader):
                    raise InvalidData("a form has no forms within")
                if part.name == "file":
                    await self._receive_file(part, form, file)
                else:
                    await self._receive_field(part, form)
        except (ValueError, web.RequestPayloadError, ConnectionError) as error:
            raise InvalidData(f"the form broke off, or is none: {error}") from error
        if form.size < 0:
            raise InvalidData("the form has no part 'file'")
        return form

    async def _next(self, parts: Any) -> Any:
        return await self._in_time(parts.next())

    async def _in_time(self, coming: Any) -> Any:
        bound_s = self._app.settings.body_timeout_s
        try:
            async with asyncio.timeout(bound_s):
                return await coming
        except TimeoutError as error:
            raise TimedOut(f"nothing came for {bound_s:g} s (http.body_timeout_s)") from error

    async def _receive_field(self, part: BodyPartReader, form: Form) -> None:
        if part.name not in FIELDS:
            raise InvalidData(
                f"the form has a part {part.name!r}; there are file, name, table and category"
            )
        value = bytearray()
        while piece := await self._in_time(part.read_chunk()):
            value += piece
            if len(value) > MAX_FIELD_BYTES:
                raise errors.TooLarge(f"{part.name}: {MAX_FIELD_BYTES} bytes at most")
        try:
            form.fields[part.name] = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidData(f"{part.name}: UTF-8") from error

    async def _receive_file(self, part: BodyPartReader, form: Form, file: IO[bytes]) -> None:
        if form.size >= 0:
            raise InvalidData("send one file")
        bound, size, digest = self._app.settings.max_upload_bytes, 0, hashlib.sha256()
        while piece := await self._in_time(part.read_chunk(PIECE_BYTES)):
            size += len(piece)
            if size > bound:
                raise errors.TooLarge(f"a file may have {bound} bytes (http.max_upload_bytes)")
            digest.update(piece)
            await asyncio.to_thread(file.write, piece)
        form.size, form.sha256 = size, digest.hexdigest()
        form.file_name = part.filename or ""
        form.media_type = part.headers.get(hdrs.CONTENT_TYPE)

    # -- to the daemon --------------------------------------------------------------------------

    def _load_of(self, form: Form) -> ContentLoad:
        given = {**form.fields, "name": form.fields.get("name") or form.file_name}
        if not given["name"]:
            raise InvalidData("the file has no name: send one as 'name'")
        given["upload_id"] = uuid.uuid4().hex
        try:
            return msgspec.convert(given, ContentLoad)
        except msgspec.ValidationError as error:
            raise InvalidData(f"the form is not what is wanted: {error}") from error

    async def _remembered(
        self, caller: "Caller", form: Form, file: IO[bytes], load: ContentLoad
    ) -> AsyncGenerator[Progress]:
        """Hand a file on, and have it remembered; yields how far that is."""
        await asyncio.to_thread(file.seek, 0)
        offset = 0
        while offset < form.size or not offset:
            data = await asyncio.to_thread(file.read, PIECE_BYTES)
            upload = _piece(load, form, data, offset)
            uploaded = await self._app.request(
                caller, "content:upload", upload, result_type=ContentUploaded
            )
            yield Received(uploaded.received_bytes, form.size)
            offset += len(data)
            if not data:
                break
        # It has no scope of its own, since it also takes paths; here it is given none.
        async with self._app.connections.taken() as client:
            chunks = client.stream(
                "content:load", load, result_type=ContentChunk, context=caller.context
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def _told(
        self, request: web.Request, steps: AsyncGenerator[Progress]
    ) -> web.StreamResponse:
        async with event_stream(self._app, request) as stream:
            try:
                await _tell(stream, steps)
            except KsiError as error:
                if not stream.is_open:
                    raise
                self._app.note(request, error)
                await stream.send(errors.body_of(error), event="error")
        return stream.response


async def _tell(stream: EventStream, steps: AsyncGenerator[Progress]) -> None:
    async for step in steps:
        await stream.send(msgspec.json.encode(step))
    await stream.send(b"{}", event="end")


def _piece(load: ContentLoad, form: Form, data: bytes, offset: int) -> ContentUpload:
    assert load.upload_id is not None
    if offset:
        return ContentUpload(upload_id=load.upload_id, offset=offset, data=data)
    return ContentUpload(
        upload_id=load.upload_id,
        name=load.name,
        size_bytes=form.size,
        sha256=form.sha256,
        media_type=form.media_type,
        data=data,
    )


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type=errors.JSON)
