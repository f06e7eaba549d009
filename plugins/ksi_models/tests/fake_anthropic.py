"""A server that speaks Anthropic's messages, as far as the tests of pydantic-ai need it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web


def event(kind: str, **members: Any) -> bytes:
    data = msgspec.json.encode({"type": kind, **members})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        event("content_block_start", index=index, content_block=start),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


class FakeAnthropic:
    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.is_cut = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeAnthropic"]:
        application = web.Application()
        application.router.add_post("/v1/messages", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(msgspec.json.decode(await request.read()))
        self.keys.append(request.headers.get("Authorization"))
        if self.refusal is not None:
            status, headers = self.refusal
            error = {"type": "error", "error": {"type": "e", "message": "it is refused"}}
            return web.json_response(error, status=status, headers=headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = self._events()
        for each in events[: len(events) // 2] if self.is_cut else events:
            await response.write(each)
        await response.write_eof()
        return response

    def _events(self) -> list[bytes]:
        usage = {"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 1}
        message: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-served",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return [
            event("message_start", message=message),
            *block(
                0,
                {"type": "thinking", "thinking": "", "signature": ""},
                {"type": "thinking_delta", "thinking": "Hm"},
                {"type": "signature_delta", "signature": "c2lnbmVk"},
            ),
            *block(
                1,
                {"type": "text", "text": ""},
                {"type": "text_delta", "text": "Let me "},
                {"type": "text_delta", "text": "see"},
            ),
            *block(
                2,
                {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}},
                {"type": "input_json_delta", "partial_json": '{"a": '},
                {"type": "input_json_delta", "partial_json": "1}"},
            ),
            event(
                "message_delta",
                delta={"stop_reason": "tool_use", "stop_sequence": None},
                usage={"output_tokens": 5},
            ),
            event("message_stop"),
        ]
