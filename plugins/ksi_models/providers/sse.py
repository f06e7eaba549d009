"""Reads server-sent events."""

from typing import Final

MAX_EVENT_BYTES: Final = 4 * 1024 * 1024


class TooLarge(Exception):
    """An event is larger than the bound."""


class EventReader:
    """Makes the payloads of events out of bytes as they come.

    Only ``data`` is of interest: names, ids and comments are dropped. A line that is JSON without
    ``data:`` before it counts as a payload, since servers write errors like that.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes, return the payloads that are complete.

        Raises:
            TooLarge: A payload is larger than ``max_event_bytes``.
        """
        lines = (self._rest + chunk if self._rest else chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self.max_event_bytes:
            raise TooLarge
        payloads: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._add(line[5:])
            elif line in (b"", b"\r"):
                self._end(payloads)
            elif line.startswith(b"{"):
                self._add(line)
        return payloads

    def close(self) -> list[bytes]:
        """Return the payload that no empty line has ended, if there is one."""
        payloads = self.feed(b"\n\n")
        self._rest = b""
        return payloads

    def _add(self, data: bytes) -> None:
        self._data_bytes += len(data)
        if self._data_bytes > self.max_event_bytes:
            raise TooLarge
        self._data.append(data)

    def _end(self, payloads: list[bytes]) -> None:
        if self._data:
            data = self._data
            payloads.append((data[0] if len(data) == 1 else b"\n".join(data)).strip())
            self._data = []
            self._data_bytes = 0
