"""What KSI is measured against: an `asyncio.Protocol` that decodes frames and encodes answers.

It knows no names, no principals, no limits and no errors. A line that does not end within a chunk
is kept for the next one, since without that it would be no server. All lines of a chunk are decoded
by one call and answered by one write, and frame and payload are one Struct: a server of Python
code on asyncio and msgspec can hardly do less.

Usage: python bare_server.py SOCKET
"""

import asyncio
import sys
from typing import Final

import msgspec
from msgspec import Struct


class Echo(Struct, frozen=True):
    """The payload."""

    text: str


class Request(Struct, frozen=True, gc=False):
    """A frame that asks."""

    id: int
    event: str
    data: Echo


class Reply(Struct, frozen=True, gc=False):
    """A frame that answers."""

    id: int
    result: Echo


DECODE_LINES: Final = msgspec.json.Decoder(Request).decode_lines
ENCODE: Final = msgspec.json.encode


class BareServer(asyncio.Protocol):
    """Echoes the payload of every frame."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._partial = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the frames that are complete."""
        end = data.rfind(b"\n") + 1
        lines, self._partial = self._partial + data[:end], data[end:]
        if lines and self._transport is not None:
            replies = [ENCODE(Reply(frame.id, frame.data)) for frame in DECODE_LINES(lines)]
            self._transport.write(b"\n".join([*replies, b""]))


async def serve(path: str) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_unix_server(BareServer, path, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
