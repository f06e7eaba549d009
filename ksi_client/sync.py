"""The blocking client, for scripts and commands: one request after the other."""

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import msgspec
from msgspec import UNSET, Raw

from ksi_daemon.protocol import Event, InvalidData, KsiError, Limits, TimedOut, Unavailable
from ksi_daemon.protocol.errors import error_from
from ksi_daemon.protocol.paths import check_owner, home_directory, socket_path
from ksi_daemon.protocol.wire import Ask, Cancel, Context, Frame, decode_frame, decode_plain, encode

if TYPE_CHECKING:  # most commands have no turns, and start quicker without
    from ksi_client.turns import Completion, CompletionChunk, TurnOptions

Result = TypeVar("Result")


class Client:
    """A connection to a daemon for code that does not use asyncio; not for several threads at once.

    Args:
        path: The daemon's socket; that of ``KSI_HOME`` unless given.
        token: Whom to act as; without one, the content of the file that ``KSI_TOKEN_FILE`` names,
            and without that the user who runs this program.
        timeout_s: How long to wait for each frame; ``None`` is for ever.

    Raises:
        Unavailable: No daemon listens.
        Denied: The token is not valid.

    Example:
        with Client() as client:
            print(client.request("system:hello"))
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        token: str | None = None,
        timeout_s: float | None = 300.0,
    ) -> None:
        self.path: Path = Path(path) if path is not None else socket_path(home_directory())
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._buffer = bytearray()
        self._token = token if token is not None else inherited_token()
        self._socket = self._connect()
        self._greet()

    def _greet(self) -> None:
        try:
            if self._token:
                self.request("router:authenticate", {"token": self._token})
        except BaseException:
            self.close()
            raise

    def reconnect(self) -> None:
        """Connect again, after a loss.

        Raises:
            Unavailable: No daemon listens.
        """
        self.close()
        self._buffer.clear()
        self._socket = self._connect()
        self._greet()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            check_owner(self.path.parent)
            connection.connect(str(self.path))
        except PermissionError as error:
            connection.close()
            raise Unavailable(f"{self.path} belongs to another user; set KSI_HOME") from error
        except OSError as error:
            connection.close()
            message = f"no daemon listens on {self.path}; start it with: ksi start"
            raise Unavailable(message, retry_after_s=0.5) from error
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    @overload
    def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: type[Result],
        timeout_s: float | None = None,
        context: dict[str, Any] | None = None,
    ) -> Result: ...

    @overload
    def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: None = None,
        timeout_s: float | None = None,
        context: dict[str, Any] | None = None,
    ) -> Any: ...

    def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: Any = None,
        timeout_s: float | None = None,
        context: dict[str, Any] | None = None,
    ) -> Any:
        """Send an event and return its answer.

        Args:
            event: Its name.
            data: Its payload.
            result_type: What the answer is made; plain data unless given.
            timeout_s: How long to wait; as long as for all unless given.
            context: In whose name to send it; needs the grant ``impersonate``.

        Raises:
            KsiError: What the daemon answered; `TimedOut`; `Unavailable` when it went away.
        """
        request_id = self._ask(event, data, context)
        frame = self._answer(request_id, event, timeout_s)
        if frame.chunk is not UNSET:
            self._send(Cancel(request_id))
            raise InvalidData(f"{event} answers with a stream: read it with stream()")
        return self._decode(event, frame.result, result_type)

    def stream(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: Any = None,
        timeout_s: float | None = None,
    ) -> Iterator[Any]:
        """Send an event and yield the chunks of its answer; stopping early cancels it.

        Raises:
            KsiError: What the daemon answered; `TimedOut` when no chunk came in time;
                `InvalidData` where the event answers once and with no stream.
        """
        request_id = self._ask(event, data)
        streams = False
        try:
            while True:
                frame = self._answer(request_id, event, timeout_s)
                if frame.chunk is UNSET:
                    if not streams and self._decode(event, frame.result, None) is not None:
                        raise InvalidData(f"{event} answers once: ask with request()")
                    return
                streams = True
                yield self._decode(event, frame.chunk, result_type)
        except GeneratorExit:
            with suppress(Unavailable):  # closed with the connection, it is cancelled already
                self._send(Cancel(request_id))
            raise

    def emit(self, event: str, data: Any = None) -> None:
        """Send an event and want no answer.

        Raises:
            KsiError: The daemon refused it; what goes wrong later is not told.
        """
        self._send(Ask(UNSET, event, {} if data is None else data))
        request_id = self._ask("system:hello", None)  # answered once the event was taken
        refusal = None
        while (frame := self._receive(self._timeout_s)).id != request_id:
            if _refuses(frame, event):
                refusal = frame.error
        if refusal:
            raise error_from(refusal)

    def events(self, pattern: str, *, outcomes: bool = False) -> Iterator[Event]:
        """Subscribe to a glob and yield the events that match, for ever."""
        self.request("router:subscribe", {"pattern": pattern, "outcomes": outcomes})
        while True:
            frame = self._receive(None)
            if frame.subscription is not UNSET and frame.event is not UNSET:
                context = UNSET if frame.context is UNSET else frame.context
                yield Event(
                    frame.event,
                    None if frame.data is UNSET else decode_plain(frame.data),
                    Context("unknown")
                    if context is UNSET
                    else msgspec.json.decode(context, type=Context),
                    None if frame.outcome is UNSET else frame.outcome,
                )

    # -- turns with a model ---------------------------------------------------------------------

    def create_completion(
        self,
        prompt: str | None = None,
        *,
        wait_s: float | None = None,
        reconnect_s: float = 60.0,
        **options: "Unpack[TurnOptions]",
    ) -> "Completion":
        """Have a turn with a model, and wait for its end: see `AsyncClient.create_completion`.

        Raises:
            KsiError: The turn was refused, or it failed.
        """
        from ksi_client import completions, turns  # noqa: PLC0415  most commands have no turns

        start = turns.turn_request(prompt, options)
        return completions.create(self, start, wait_s, reconnect_s)

    def stream_completion(
        self,
        prompt: str | None = None,
        *,
        run_id: str | None = None,
        offset: int = 0,
        reconnect_s: float = 60.0,
        **options: "Unpack[TurnOptions]",
    ) -> "Iterator[CompletionChunk]":
        """Have a turn with a model, and yield what comes of it; the last is the `Completion`.

        Takes what `create_completion` takes; or a ``run_id``, to follow a turn that was accepted
        before. A lost connection is found again; see `AsyncClient.stream_completion`.

        Raises:
            KsiError: The turn was refused, or it failed.
        """
        from ksi_client import completions, turns  # noqa: PLC0415  most commands have no turns

        start = None if run_id else turns.turn_request(prompt, options)
        place = turns.Following(start, run_id=run_id, offset=offset)
        return completions.stream(self, place, reconnect_s)

    def _ask(self, event: str, data: Any, context: dict[str, Any] | None = None) -> int:
        request_id = next(self._ids)
        given = UNSET if context is None else context
        self._send(Ask(request_id, event, {} if data is None else data, given))
        return request_id

    def _send(self, frame: Ask | Cancel) -> None:
        try:
            self._socket.sendall(encode(frame) + b"\n")
        except OSError as error:
            raise Unavailable("the connection was lost", retry_after_s=0.1) from error

    def _answer(self, request_id: int, event: str, timeout_s: float | None) -> Frame:
        """Return the next frame that answers a request; others belong to cancelled ones."""
        limit = self._timeout_s if timeout_s is None else timeout_s
        while True:
            try:
                frame = self._receive(limit)
            except TimedOut:
                self._send(Cancel(request_id))
                raise TimedOut(f"{event} was not answered in {limit} s") from None
            if frame.error is not UNSET and (frame.id == request_id or _is_general(frame)):
                raise error_from(frame.error)
            if frame.id == request_id:
                return frame

    def _receive(self, limit: float | None) -> Frame:
        while (end := self._buffer.find(b"\n")) < 0:
            self._socket.settimeout(limit)
            try:
                data = self._socket.recv(256 * 1024)
            except TimeoutError:
                raise TimedOut(f"nothing came in {limit} s") from None
            except OSError as error:
                raise Unavailable("the connection was lost", retry_after_s=0.1) from error
            if not data:
                raise Unavailable("the daemon closed the connection", retry_after_s=0.1)
            self._buffer += data
            if len(self._buffer) > 4 * Limits().max_frame_bytes:
                raise InvalidData("the daemon sent a frame without end")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return decode_frame(line)

    @staticmethod
    def _decode(event: str, raw: Any, kind: Any) -> Any:
        if not isinstance(raw, Raw):
            raise KsiError(f"{event} was answered with neither result nor error")
        return decode_plain(raw) if kind is None else msgspec.json.decode(raw, type=kind)


def inherited_token() -> str | None:
    """Return the token in the file that ``KSI_TOKEN_FILE`` names, if it names one."""
    path = os.environ.get("KSI_TOKEN_FILE")
    return Path(path).read_text(encoding="utf-8").strip() if path else None


def _is_general(frame: Frame) -> bool:
    """Say whether an error concerns the connection, not what was cancelled or emitted before."""
    if frame.id is not UNSET or frame.error is UNSET:
        return False
    return not {"id", "event"} & set(frame.error.details or ())


def _refuses(frame: Frame, event: str) -> bool:
    """Say whether a frame is the error of an event that was emitted."""
    error = frame.error
    return frame.id is UNSET and error is not UNSET and (error.details or {}).get("event") == event
