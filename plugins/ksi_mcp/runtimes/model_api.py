"""A model's API on this machine that asks for tools: what a runtime's program is tried against.

It speaks Anthropic's messages, as far as such a program needs them, costs nothing and reaches no
network.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

Block = dict[str, Any]

MAX_HEAD_BYTES: Final = 65_536
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_REQUESTS: Final = 100


class ModelAPI:
    """Answers requests for messages.

    Args:
        say: Returns what is answered to a request.

    Attributes:
        url: Where it is.
        requests: What it was asked for messages.
        fetched: What else it was asked for, by the path.
    """

    def __init__(self, say: Callable[[dict[str, Any]], Sequence[Block]]) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.fetched: list[str] = []
        self._say = say

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ModelAPI"]:
        """Serve on a port of this machine."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head)}
            size = min(int(headers.get("content-length") or 0), MAX_BODY_BYTES)
            body = await reader.readexactly(size)
            kind, answer = self._answer(method, path, body)
            top = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n"
            writer.write(f"{top}Connection: close\r\n\r\n".encode() + answer)
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asks wrongly is told nothing
        finally:
            writer.close()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[str, bytes]:
        route = path.partition("?")[0]
        if method == "POST" and route.endswith("/messages") and len(self.requests) < MAX_REQUESTS:
            asked = json.loads(body)
            self.requests.append(asked)
            number, model = len(self.requests), str(asked.get("model"))
            return "text/event-stream", b"".join(events_of(number, model, self._say(asked)))
        if route.endswith("/count_tokens"):
            return "application/json", b'{"input_tokens": 1}'
        self.fetched.append(route)
        return "application/json", b"{}"


def events_of(number: int, model: str, blocks: Sequence[Block]) -> list[bytes]:
    """Return an answer as the events of its stream."""
    message: Block = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    events = [_event("message_start", message=message)]
    for index, block in enumerate(blocks):
        start, delta = _streamed(block)
        events += [
            _event("content_block_start", index=index, content_block=start),
            _event("content_block_delta", index=index, delta=delta),
            _event("content_block_stop", index=index),
        ]
    reason = "tool_use" if any(b["type"] == "tool_use" for b in blocks) else "end_turn"
    delta = {"stop_reason": reason, "stop_sequence": None}
    events.append(_event("message_delta", delta=delta, usage={"output_tokens": 1}))
    return [*events, _event("message_stop")]


def _streamed(block: Block) -> tuple[Block, Block]:
    if block["type"] == "text":
        return {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
    arguments = json.dumps(block["input"])
    return {**block, "input": {}}, {"type": "input_json_delta", "partial_json": arguments}


def _event(kind: str, **members: Any) -> bytes:
    data = json.dumps({"type": kind, **members})
    return f"event: {kind}\ndata: {data}\n\n".encode()
