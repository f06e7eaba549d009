"""One end of a connection: frames in both directions, requests in both directions.

The daemon and the client are the same kind of peer; each says in a subclass what it does with the
requests and events that arrive. Nothing here blocks: a reader that is too slow pauses its streams
and its own requests, and is cut off after ``reader_timeout_s``.
"""

import asyncio
import contextvars
import itertools
import os
import types
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator
from contextlib import aclosing
from types import AsyncGeneratorType
from typing import Any, cast

from msgspec import UNSET, Raw, Struct, UnsetType, structs

from ksi_daemon.protocol.errors import (
    Busy,
    Cancelled,
    Conflict,
    Failed,
    InvalidData,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
    error_from,
)
from ksi_daemon.protocol.wire import (
    DECODE_ERRORS,
    ENCODE_ERRORS,
    ENCODER,
    Ask,
    Cancel,
    Chunk,
    ErrorBody,
    Failure,
    Frame,
    Limits,
    Pause,
    Reply,
    decode_frame,
    decode_frames,
    id_of,
)

MAX_MESSAGE_CHARACTERS = 300
NOTHING = (UNSET, UNSET, UNSET)
HARD_LIMIT = 16  # times max_buffer_bytes: what a sender that ignores a pause is cut off at
CHUNK_OVERHEAD_BYTES = 64  # what a waiting chunk costs besides its content, about
CHUNKS_A_TURN = 64
BYTES_A_TURN = 64 * 1024


class Serving:
    """A request of the other side that is being answered."""

    __slots__ = ("cause", "deadline", "go", "id", "name", "task")

    def __init__(
        self, request_id: int | str | UnsetType, name: str, deadline: float | None
    ) -> None:
        self.id = request_id
        self.name = name
        self.deadline = deadline
        self.task: asyncio.Task[None] | None = None
        self.cause: KsiError | None = None
        self.go: asyncio.Event | None = None

    def stop(self, cause: KsiError) -> None:
        """End the work; the other side gets ``cause`` as its answer."""
        if self.cause is None:
            self.cause = cause
            if self.task is not None:  # else it has not begun, and looks at cause when it does
                self.task.cancel()


class Inbound:
    """A request of ours that the other side answers: its chunks, then its end.

    Iterate over it for a stream (chunks come as `Raw`); `result` waits for the answer of a plain
    request. When the reader lags a window behind, the sender is asked to pause.

    Raises:
        KsiError: what the other side answered, or `Unavailable` when the connection was lost.
    """

    def __init__(self, peer: "Peer", request_id: int) -> None:
        self._peer = peer
        self._id = request_id
        self._chunks: deque[Raw] = deque()
        self._bytes = 0
        self._streams = False
        self._paused = False
        self._ended: asyncio.Future[Raw] = peer.loop.create_future()
        self._news: asyncio.Future[None] | None = None

    def feed(self, chunk: Raw) -> None:
        """Take a chunk; ask the sender to pause where too many wait."""
        self._streams = True
        self._chunks.append(chunk.copy())  # a view would keep all that came with it
        self._bytes += memoryview(chunk).nbytes + CHUNK_OVERHEAD_BYTES
        if self._fill() >= 1 and not self._paused:
            self._paused = True
            self._peer.send(Pause(self._id, True))
        elif self._bytes > HARD_LIMIT * self._peer.limits.max_buffer_bytes:
            self.finish(Busy("the stream went on through a pause (max_buffer_bytes)"))
            self._peer.abandon(self._id)
        self._wake()

    def _fill(self) -> float:
        """Return how full the window is; 1 is full."""
        limits = self._peer.limits
        return max(
            len(self._chunks) / limits.stream_window_chunks, self._bytes / limits.max_buffer_bytes
        )

    def finish(self, end: Raw | KsiError) -> None:
        """Take the answer that ends it."""
        if self._ended.done():
            return
        if isinstance(end, KsiError):
            self._ended.set_exception(end)
            self._ended.exception()  # marks it as seen: nobody may be waiting for it any more
        else:
            self._ended.set_result(end)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def result(self) -> Raw:
        """Wait for the answer; a chunk in its place is an error that says what to call."""
        try:
            while not (self._chunks or self._ended.done()):
                await self._wait()
            if self._chunks:
                raise InvalidData("the event answers with a stream: read it with stream()")
            return self._ended.result()
        finally:
            await self.aclose()

    def __aiter__(self) -> AsyncIterator[Raw]:
        return self

    async def __anext__(self) -> Raw:
        while not self._chunks:
            if self._ended.done():
                if bytes(self._ended.result()) != b"null" and not self._streams:
                    raise InvalidData("the event answers once: ask with request()")
                raise StopAsyncIteration
            await self._wait()
        chunk = self._chunks.popleft()
        self._bytes -= memoryview(chunk).nbytes + CHUNK_OVERHEAD_BYTES
        if self._paused and self._fill() <= 0.5:
            self._paused = False
            self._peer.send(Pause(self._id, False))
        return chunk

    async def _wait(self) -> None:
        self._news = self._peer.loop.create_future()
        await self._news

    async def aclose(self) -> None:
        """Stop: what still runs on the other side is cancelled."""
        if not self._ended.done():
            self._peer.abandon(self._id)
            self._ended.cancel()


class Peer(asyncio.Protocol):
    """Reads and writes frames, matches answers to requests, answers requests in tasks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._partial = bytearray()
        self._out = bytearray()
        self._flush_due = False
        self._half_closed = False
        self._asked: dict[object, Inbound] = {}
        self._ids = itertools.count(1)
        self.serving: dict[object, Serving] = {}
        self._waiting: deque[tuple[Serving, Coroutine[Any, Any, None]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._writable: asyncio.Event = asyncio.Event()
        self._writable.set()
        self._cut_off: asyncio.TimerHandle | None = None

    # -- what a subclass says -------------------------------------------------------------------

    def frame_received(self, frame: Frame) -> None:
        """Take a request, or an event that wants no answer."""
        raise NotImplementedError

    def error_received(self, error: KsiError) -> None:
        """Take an error that concerns the connection and no request."""

    def error_of(self, error: BaseException, serving: Serving) -> KsiError:
        """Make an error for the wire of whatever a handler raised."""
        raise NotImplementedError

    # -- reading --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that there is a connection."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.transport.set_write_buffer_limits(high=self.limits.max_buffer_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what was asked, and stop what was being answered."""
        self.transport = None
        self._resume()
        lost = Unavailable("the connection was lost", retry_after_s=0.1)
        self._give_up_asking(lost)
        for request_id, serving in list(self.serving.items()):
            if isinstance(request_id, int | str):  # what wants no answer needs nobody to be there
                serving.stop(lost)
        self._close_if_done()

    def _give_up_asking(self, cause: KsiError) -> None:
        for inbound in self._asked.values():
            inbound.finish(cause)
        self._asked.clear()

    def eof_received(self) -> bool:
        """Go on answering a side that has nothing more to ask, as ``echo … | nc -U`` has not."""
        self._half_closed = True
        self._give_up_asking(Unavailable("the other side sends nothing more", retry_after_s=0.1))
        self.loop.call_soon(self._close_if_done)
        self.check_gone()
        return True

    def check_gone(self) -> None:
        """Notice that a side which has nothing more to ask does not listen any more either.

        Both look the same to a reader; only a write, even of nothing, tells them apart.
        """
        if self._half_closed and self.transport is not None:
            try:
                os.write(self.transport.get_extra_info("socket").fileno(), b"")
            except OSError:
                self.transport.abort()

    def released(self) -> None:
        """Take note that the connection is gone, and all that was being answered is done."""

    def lingers(self) -> bool:
        """Say whether something may still be sent to a side that asks nothing more."""
        return bool(self.serving)

    def _close_if_done(self) -> None:
        if self.transport is None and not self.serving:
            self.released()
        elif self._half_closed and not self.lingers():
            self.close()

    def data_received(self, data: bytes) -> None:
        """Cut what has arrived into lines; the rest waits for its end."""
        end = data.rfind(b"\n") + 1
        lines = data[:end]
        if self._partial and end:
            lines = bytes(self._partial) + lines
            self._partial.clear()
        if end < len(data):
            self._partial += data[end:]
            if len(self._partial) > self.limits.max_frame_bytes:
                self.refuse_oversized()
                return
        if lines:
            self._decode(lines)

    def _decode(self, lines: bytes) -> None:
        """Decode a whole chunk at once, or line by line where one of them is broken."""
        limit = self.limits.max_frame_bytes
        try:
            frames = decode_frames(lines)
        except DECODE_ERRORS:
            frames = []
        if len(frames) == lines.count(b"\n") and len(lines) <= limit:
            self.frames_received(frames)
            return
        for line in lines.split(b"\n"):
            if len(line) > limit:
                self.refuse_oversized()
                return
            if line and not line.isspace():
                self._decode_one(line)

    def _decode_one(self, line: bytes) -> None:
        try:
            frame = decode_frame(line)
        except DECODE_ERRORS as error:
            self.fail(id_of(line), InvalidData(f"this line is no frame: {error}"))
        else:
            self.frames_received([frame])

    def refuse_oversized(self) -> None:
        """Close the connection: what follows an oversized frame can't be told apart from it."""
        bound = self.limits.max_frame_bytes
        self.fail(UNSET, InvalidData(f"a frame may have {bound} bytes (max_frame_bytes); closing"))
        self.close()

    def frames_received(self, frames: list[Frame]) -> None:
        """Take the frames of one chunk."""
        for frame in frames:
            self.take(frame)

    def take(self, frame: Frame) -> None:
        """Give one frame to whoever it is for."""
        if frame.event is not UNSET:
            self.frame_received(frame)
        elif frame.cancel or frame.pause is not UNSET:
            self._control(frame)
        elif frame.id in self._asked:
            self._answered(frame)
        elif frame.id is UNSET and frame.error is not UNSET:
            self.error_received(error_from(frame.error))
        elif not isinstance(frame.id, int) or (frame.result, frame.chunk, frame.error) == NOTHING:
            self.fail(UNSET, InvalidData("a frame needs an event, or the id of a request"))
        # Else it was asked for, and given up while its answer was on the way.

    def _answered(self, frame: Frame) -> None:
        inbound = self._asked[frame.id]
        if frame.chunk is not UNSET:
            inbound.feed(frame.chunk)
            return
        del self._asked[frame.id]
        if frame.error is not UNSET:
            inbound.finish(error_from(frame.error))
        elif frame.result is not UNSET:
            inbound.finish(frame.result)
        else:
            inbound.finish(Failed("the answer had no result, chunk or error"))

    def _control(self, frame: Frame) -> None:
        serving = self.serving.get(frame.id)
        if serving is None:
            # Not an answer to that id: the request may just have ended, or its id be in use again.
            details = {"id": None if frame.id is UNSET else frame.id}
            self.fail(UNSET, NotFound("no request with this id is in flight", details=details))
        elif frame.cancel:
            serving.stop(Cancelled(f"{serving.name} was cancelled by its sender"))
        elif serving.go is not None:
            serving.go.clear() if frame.pause else serving.go.set()

    # -- writing --------------------------------------------------------------------------------

    def send(self, frame: Struct) -> None:
        """Queue a frame; all that is queued in one turn of the loop goes out in one write.

        Raises:
            InvalidData: It has no JSON form, or it is larger than ``max_frame_bytes``.
        """
        out, start = self._out, len(self._out)
        try:
            ENCODER.encode_into(frame, out, -1)
        except ENCODE_ERRORS as error:
            del out[start:]
            raise InvalidData(f"it has no JSON form: {error}") from error
        size = len(out) - start
        if size > self.limits.max_frame_bytes:
            del out[start:]
            bound = self.limits.max_frame_bytes
            raise InvalidData(f"a frame of {size} bytes; max_frame_bytes is {bound}")
        out += b"\n"
        self.schedule_flush()

    def schedule_flush(self) -> None:
        """Have what is queued sent at the end of this turn of the loop."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand what is queued to the transport."""
        self._flush_due = False
        if self._out:
            out, self._out = self._out, bytearray()
            if self.transport is not None and not self.transport.is_closing():
                self.transport.write(out)

    def fail(
        self, request_id: int | str | UnsetType, error: KsiError, event: str | None = None
    ) -> None:
        """Answer with an error; where its details can't be sent, its code and message are.

        An event that wanted no answer is named in the details: nothing else tells whose it is.
        """
        body = error.body
        if request_id is UNSET and event is not None:
            body = structs.replace(body, details={**(body.details or {}), "event": event})
        try:
            self.send(Failure(request_id, body))
        except InvalidData:
            message = error.message[:MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()
            self.send(Failure(request_id, ErrorBody(error.code, message, error.retry_after_s)))

    def pause_writing(self) -> None:
        """Stop reading from who does not read, and cut it off if that goes on."""
        self._writable.clear()
        if self.transport is not None:
            self.transport.pause_reading()
            delay = self.limits.reader_timeout_s
            self._cut_off = self.loop.call_later(delay, self.transport.abort)

    def resume_writing(self) -> None:
        """Read again: the other side has caught up."""
        self._writable.set()
        if self.transport is not None and not self.transport.is_closing():
            self._resume()  # else the limit stands: what is left may never be read
            self.transport.resume_reading()

    def _resume(self) -> None:
        self._writable.set()
        if self._cut_off is not None:
            self._cut_off.cancel()
            self._cut_off = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known here."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def paused(self) -> bool:
        """Whether the other side reads too slowly."""
        return not self._writable.is_set()

    def close(self) -> None:
        """Send what is queued, then close."""
        self.flush()
        if self.transport is not None:
            self.transport.close()
            if self._cut_off is None:  # what is queued may be for somebody who never reads it
                delay = self.limits.reader_timeout_s
                self._cut_off = self.loop.call_later(delay, self.transport.abort)

    def running_tasks(self) -> set[asyncio.Task[None]]:
        """List the tasks of all requests that are being answered."""
        return {each.task for each in self.serving.values() if each.task is not None}

    def stop_serving(self, cause: KsiError) -> None:
        """Stop all that is being answered; ``cause`` is the answer."""
        for serving in list(self.serving.values()):
            serving.stop(cause)

    # -- asking ---------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Wait while the other side reads too slowly; return at once when it is gone."""
        await self._writable.wait()

    def ask(
        self,
        event: str,
        data: Any,
        context: Any = UNSET,
        idempotency_key: str | UnsetType = UNSET,
    ) -> Inbound:
        """Send a request; what comes back is read from the `Inbound`.

        Raises:
            Unavailable: There is no connection.
        """
        if not self.connected:
            raise Unavailable("there is no connection", retry_after_s=0.1)
        request_id = next(self._ids)
        self.send(Ask(request_id, event, data, context, idempotency_key))
        inbound = self._asked[request_id] = Inbound(self, request_id)
        return inbound

    def abandon(self, request_id: int) -> None:
        """Forget a request of ours and tell the other side to stop."""
        if self._asked.pop(request_id, None) is not None and self.transport is not None:
            self.send(Cancel(request_id))

    # -- answering ------------------------------------------------------------------------------

    def admit(self, frame: Frame) -> bool:
        """Say whether a request may start: its id is free and the connection has room."""
        if frame.id in self.serving:
            error = Conflict("a request with this id is in flight", details={"id": frame.id})
            self.fail(UNSET, error)
            return False
        if len(self.serving) >= self.limits.max_in_flight:
            bound = self.limits.max_in_flight
            busy = Busy(f"{bound} requests are in flight (max_in_flight)", retry_after_s=0.1)
            self.fail(frame.id, busy)
            return False
        return True

    def answer(
        self, frame: Frame, reply: Coroutine[Any, Any, Any], deadline: float | None = None
    ) -> None:
        """Work on a request in a task of its own; ``reply`` gives a value or a stream of them."""
        serving = Serving(frame.id, str(frame.event), deadline)
        key: object = serving if frame.id is UNSET else frame.id
        self.serving[key] = serving
        self._waiting.append((serving, self._work(key, serving, reply)))
        if self._worker is None or self._worker.done():
            self._start_worker()

    def _start_worker(self) -> None:
        # In no task group, whose bookkeeping costs as much again as the task: this connection owns
        # it, ends it, and is asked for it (running_tasks).
        self._worker = asyncio.Task(self._answer_waiting(), loop=self.loop)

    async def _answer_waiting(self) -> None:
        """Answer what waits, one after the other, as long as none of it has to wait for anything.

        A task costs more than all the rest of a request, and most requests end in one step. So the
        first that waits keeps this task, and another takes on what is left.
        """
        while self._waiting:
            serving, work = self._waiting.popleft()
            serving.task = self._worker
            if await self._drive(work, serving):
                return

    @types.coroutine
    def _drive(
        self, work: Coroutine[Any, Any, None], serving: Serving
    ) -> Generator[Any, None, bool]:
        """Run a coroutine in a context of its own, as a task would; say whether it had to wait."""
        run, step, value = contextvars.copy_context().run, work.send, None
        waited = False
        while True:
            try:
                awaited = run(step, value)
            except StopIteration:
                return waited
            if not waited:
                waited = True
                if serving.task is not None:
                    serving.task.set_name(serving.name)
                self._worker = None
                if self._waiting:
                    self._start_worker()
            try:
                yield awaited
                step, value = work.send, None
            except BaseException as error:  # noqa: BLE001  it is the coroutine's to handle
                step, value = work.throw, error

    async def _work(self, key: object, serving: Serving, reply: Coroutine[Any, Any, Any]) -> None:
        try:
            if serving.cause is not None:
                reply.close()
                raise serving.cause
            result = await reply
            if type(result) is AsyncGeneratorType:
                await self._stream(serving, result)
                result = None
            self._send_answer(serving, Reply, result)
        except BaseException as error:  # noqa: BLE001  the boundary: error_of knows every kind
            self.fail(serving.id, self.error_of(error, serving), serving.name)
        finally:
            del self.serving[key]
            self._close_if_done()

    async def _stream(self, serving: Serving, chunks: AsyncGenerator[Any]) -> None:
        serving.go = asyncio.Event()
        serving.go.set()
        count = 0
        async with aclosing(chunks):
            async for chunk in chunks:
                self._send_answer(serving, Chunk, chunk)
                count += 1
                if not count % CHUNKS_A_TURN or len(self._out) > BYTES_A_TURN:
                    await asyncio.sleep(0)  # a generator that never waits would keep the loop
                await self._writable.wait()
                if not serving.go.is_set():
                    await self._await_reader(serving.name, serving.go)

    async def _await_reader(self, name: str, go: asyncio.Event) -> None:
        limit = self.limits.reader_timeout_s
        try:
            async with asyncio.timeout(limit):
                await go.wait()
        except TimeoutError as error:
            raise TimedOut(f"{name} was paused for {limit} s (reader_timeout_s)") from error

    def _send_answer(self, serving: Serving, kind: type[Reply | Chunk], value: Any) -> None:
        if serving.id is UNSET:
            return
        try:
            self.send(kind(serving.id, value))
        except InvalidData as error:
            raise Failed(f"the answer of {serving.name} can't be sent: {error.message}") from error
