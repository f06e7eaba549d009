"""A server that speaks OpenAI's protocol and answers what it is told to, with faults on demand.

In a test it is the fixture ``fake_openai``, whose `FakeOpenAI.script` says what comes next. As a
process of its own, ``python -m ksi_models.fakes.openai_server --port 0``, it prints its URL as a
line of JSON, and the script is posted to ``/fake/script``. What nobody has scripted it answers by
itself: a user's message that is a script (``{"say": …, "calls": […]}``, see
`ksi_models.providers.scripts`) is followed, anything else is answered with ``--chunks`` words.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from ksi_models.providers.scripts import ScriptedCall, next_step, pieces_of

MAX_REQUEST_BYTES: Final = 256 * 1024 * 1024
WORDS: Final = ("lorem", "ipsum", "dolor", "sit", "amet", "consetetur", "sadipscing", "elitr")
BLOCK: Final = "x" * 65_536

Fault = Literal[
    "",
    "stall_first",
    "stall_middle",
    "cut",
    "cut_at_end",
    "reset",
    "malformed",
    "invalid_utf8",
    "error_in_stream",
    "huge",
    "huge_line",
    "endless_comments",
    "page",
]


class Reply(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request is answered with.

    Attributes:
        text: What is said, in ``chunks`` pieces.
        thinking: What is thought before, in ``thinking_field``.
        calls: Tool calls, whose arguments come in ``call_fragments`` pieces.
        first_delay_s: How long nothing comes.
        delay_s: How long it takes from piece to piece.
        status: What is not 200 is a refusal with ``error`` as its message.
        retry_after: The header ``Retry-After``, as it stands.
        body: What is answered instead of all that.
        fault: What goes wrong: nothing comes at all (``stall_first``) or any more
            (``stall_middle``), the stream ends too early (``cut``; ``cut_at_end`` only lacks its
            end), the connection breaks (``reset``), half a chunk comes (``malformed``), the error
            is written into the stream, there is no end to it (``huge``, ``huge_line``,
            ``endless_comments``), or a page in HTML comes.
        usage: Whether tokens are told, and how many of the prompt's were cached.
        finish: Why it ended; found out unless given.
        model: As which model it answers; the one that was asked unless given.
        match: It answers only a request whose body holds this text.
        times: How many requests it answers.
        stream: Whether it streams where that is asked for; some servers never do.
    """

    text: str = ""
    chunks: int = 1
    thinking: str = ""
    thinking_field: str = "reasoning_content"
    calls: tuple[ScriptedCall, ...] = ()
    call_fragments: int = 3
    first_delay_s: float = 0.0
    delay_s: float = 0.0
    status: int = 200
    error: str = ""
    error_code: str = ""
    retry_after: str | None = None
    body: str | None = None
    fault: Fault = ""
    usage: bool = True
    cached_tokens: int = 0
    thinking_tokens: int = 0
    finish: str = ""
    model: str = ""
    match: str = ""
    times: int = 1
    stream: bool = True


class Received(Struct, frozen=True, kw_only=True):
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: Any


_REPLIES: Final = msgspec.json.Decoder(list[Reply] | Reply)


class FakeOpenAI:
    """The server.

    Attributes:
        url: Its ``base_url``.
        requests: All requests so far.
        running: How many are being answered now.
        most_running: How many were at once.
        models: What ``/models`` lists.
        key: What it wants to see as the key; anything will do where it is empty.
        chunks: In how many pieces it answers what nobody has scripted.
    """

    def __init__(self, *, chunks: int = 5, delay_s: float = 0.0, key: str = "") -> None:
        self.url = ""
        self.requests: list[Received] = []
        self.running = 0
        self.most_running = 0
        self.models = ["fake-large", "fake-small"]
        self.key = key
        self.chunks = chunks
        self.delay_s = delay_s
        self.max_log = 10_000
        self._replies: deque[list[Any]] = deque()  # the reply, and how often it still is given
        self._released = asyncio.Event()
        self._seen = asyncio.Condition()
        self._plain: dict[int, list[bytes]] = {}

    # -- what a test says -----------------------------------------------------------------------

    def script(self, *replies: Reply) -> None:
        """Say what the next requests are answered with, in this order."""
        self._replies.extend([reply, reply.times] for reply in replies)

    def clear(self) -> None:
        """Forget what was scripted, and what was asked."""
        self._replies.clear()
        self.requests.clear()

    def release(self) -> None:
        """Let all go on that stand still."""
        self._released.set()

    @property
    def calls(self) -> list[Received]:
        """The requests for an answer of a model."""
        return [r for r in self.requests if r.path.endswith("/chat/completions")]

    async def until_asked(self, count: int) -> None:
        """Wait until so many answers of a model were asked for."""
        async with self._seen:
            await self._seen.wait_for(lambda: len(self.calls) >= count)

    async def until_idle(self) -> None:
        """Wait until nothing is being answered any more."""
        async with self._seen:
            await self._seen.wait_for(lambda: self.running == 0)

    # -- its life -------------------------------------------------------------------------------

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator["FakeOpenAI"]:
        """Serve."""
        application = web.Application(client_max_size=MAX_REQUEST_BYTES)
        add = application.router
        add.add_post("/v1/chat/completions", self._chat)
        add.add_post("/v1/embeddings", self._embed)
        add.add_get("/v1/models", self._list)
        add.add_post("/fake/script", self._take_script)
        add.add_post("/fake/release", self._take_release)
        add.add_get("/fake/log", self._show_log)
        runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            bound = runner.addresses[0]
            self.url = f"http://{bound[0]}:{bound[1]}/v1"
            yield self
        finally:
            self.release()
            await runner.cleanup()

    # -- what it answers ------------------------------------------------------------------------

    async def _take(self, request: web.Request) -> Any:
        told = await request.read()
        try:
            body = msgspec.json.decode(told) if told else None
        except msgspec.DecodeError:
            body = told.decode(errors="replace")
        received = Received(path=request.path, headers=dict(request.headers), body=body)
        if len(self.requests) < self.max_log:
            self.requests.append(received)
        return body

    def _refused(self, request: web.Request) -> web.Response | None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            given = request.headers.get("Authorization", "")
            return _error(401, f"Incorrect API key provided: {given}", "invalid_api_key")
        return None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            body = await self._take(request)
            async with self._seen:
                self._seen.notify_all()
            if (refused := self._refused(request)) is not None:
                return refused
            if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
                return _error(400, "messages: field required", "invalid_request_error")
            return await self._answer(request, body, self._reply(body))
        finally:
            self.running -= 1
            with contextlib.suppress(RuntimeError):
                async with self._seen:
                    self._seen.notify_all()

    def _reply(self, body: dict[str, Any]) -> Reply:
        text = None
        for entry in self._replies:
            reply: Reply = entry[0]
            if reply.match:
                text = text or msgspec.json.encode(body).decode()
                if reply.match not in text:
                    continue
            entry[1] -= 1
            if entry[1] <= 0:
                self._replies.remove(entry)
            return reply
        return self._own_reply(body)

    def _own_reply(self, body: dict[str, Any]) -> Reply:
        texts = [(m.get("role", ""), _text(m.get("content"))) for m in body["messages"]]
        step = next_step(texts)
        if step is None:
            words = " ".join(WORDS[i % len(WORDS)] for i in range(self.chunks))
            return Reply(text=words, chunks=self.chunks, delay_s=self.delay_s)
        return Reply(
            text=step.say,
            thinking=step.think,
            calls=step.calls,
            chunks=step.chunks,
            delay_s=step.delay_s,
            first_delay_s=step.first_delay_s,
        )

    async def _answer(
        self, request: web.Request, body: dict[str, Any], reply: Reply
    ) -> web.StreamResponse:
        if reply.first_delay_s:
            await asyncio.sleep(reply.first_delay_s)
        if reply.fault == "stall_first":
            await self._released.wait()
        if reply.fault == "page":
            return web.Response(text="<html>hello</html>", content_type="text/html")
        if reply.status != 200 or reply.body is not None:
            return _refusal(reply)
        if not (body.get("stream") and reply.stream):
            return _json(_whole(body, reply))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await self._stream(request, response, body, reply)
        return response

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: dict[str, Any],
        reply: Reply,
    ) -> None:
        chunks = _chunks(body, reply)
        middle = len(chunks) // 2
        for index, chunk in enumerate(chunks):
            if index == middle and reply.fault:
                ended = await self._go_wrong(request, response, reply)
                if ended:
                    return
            await response.write(chunk)
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
        if reply.fault != "cut_at_end":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    async def _go_wrong(
        self, request: web.Request, response: web.StreamResponse, reply: Reply
    ) -> bool:
        """Do what the fault says; returns whether that was the end."""
        match reply.fault:
            case "stall_middle":
                await self._released.wait()
                return False
            case "cut":
                await response.write_eof()
            case "reset":
                assert request.transport is not None
                request.transport.abort()
            case "malformed":
                await response.write(b'data: {"choices": [{"delta": {"content": "half\n\n')
            case "invalid_utf8":
                await response.write(b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n')
            case "error_in_stream":
                told = {"error": {"message": reply.error or "it broke", "code": reply.error_code}}
                await response.write(b"data: " + msgspec.json.encode(told) + b"\n\n")
            case "huge" | "huge_line" | "endless_comments":
                await self._never_end(response, body_of(reply.fault))
            case _:
                return False
        return True

    async def _never_end(self, response: web.StreamResponse, block: bytes) -> None:
        while not self._released.is_set():
            await response.write(block)

    async def _embed(self, request: web.Request) -> web.Response:
        body = await self._take(request)
        if (refused := self._refused(request)) is not None:
            return refused
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [
            {"object": "embedding", "index": i, "embedding": _vector(text)}
            for i, text in enumerate(texts)
        ]
        tokens = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def _list(self, request: web.Request) -> web.Response:
        await self._take(request)
        if (refused := self._refused(request)) is not None:
            return refused
        data = [{"id": name, "object": "model", "owned_by": "fake"} for name in self.models]
        return _json({"object": "list", "data": data})

    # -- from another process -------------------------------------------------------------------

    async def _take_script(self, request: web.Request) -> web.Response:
        try:
            replies = _REPLIES.decode(await request.read())
        except msgspec.DecodeError as error:
            return _error(400, str(error), "script")
        self.script(*([replies] if isinstance(replies, Reply) else replies))
        return _json({"waiting": len(self._replies)})

    async def _take_release(self, request: web.Request) -> web.Response:
        self.release()
        return _json({})

    async def _show_log(self, request: web.Request) -> web.Response:
        return _json(
            {
                "running": self.running,
                "most_running": self.most_running,
                "requests": msgspec.to_builtins(self.requests),
            }
        )


def body_of(fault: str) -> bytes:
    """Return what is written again and again for a fault that has no end."""
    if fault == "huge":
        chunk = {"choices": [{"index": 0, "delta": {"content": BLOCK}}]}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
    return (": " + BLOCK + "\n").encode() if fault == "endless_comments" else BLOCK.encode()


def _json(body: Any, status: int = 200) -> web.Response:
    encoded = msgspec.json.encode(body)
    return web.Response(body=encoded, status=status, content_type="application/json")


def _error(status: int, message: str, code: str = "") -> web.Response:
    return _json({"error": {"message": message, "type": code, "code": code}}, status)


def _refusal(reply: Reply) -> web.Response:
    if reply.body is not None:
        response = web.Response(
            text=reply.body, status=reply.status, content_type="application/json"
        )
    else:
        response = _error(reply.status, reply.error or "it is refused", reply.error_code)
    if reply.retry_after is not None:
        response.headers["Retry-After"] = reply.retry_after
    return response


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def _vector(text: str) -> list[float]:
    """Return a vector that is the same for the same text, of letters' frequencies."""
    counts = [1.0 + text.lower().count(letter) for letter in "abcdefghijklmnop"]
    length = sum(count * count for count in counts) ** 0.5
    return [count / length for count in counts]


def _usage(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    asked = sum(len(_text(message.get("content")).split()) for message in body["messages"])
    answered = len(reply.text.split()) + len(reply.thinking.split()) + 5 * len(reply.calls)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reply.thinking_tokens},
    }


def _finish(reply: Reply) -> str:
    return reply.finish or ("tool_calls" if reply.calls else "stop")


def _call_ids(reply: Reply) -> list[str]:
    return [call.id or f"call_fake_{index}" for index, call in enumerate(reply.calls)]


def _whole(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    if reply.thinking:
        message[reply.thinking_field] = reply.thinking
    if reply.calls:
        message["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": c.name, "arguments": c.text}}
            for i, c in zip(_call_ids(reply), reply.calls, strict=True)
        ]
    whole: dict[str, Any] = {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "model": reply.model or body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": _finish(reply)}],
    }
    if reply.usage:
        whole["usage"] = _usage(body, reply)
    return whole


def _chunks(body: dict[str, Any], reply: Reply) -> list[bytes]:
    """Return the events of a streamed answer."""
    model = reply.model or body.get("model")

    def event(delta: dict[str, Any], finish: str | None = None, **members: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": model,
            "choices": [choice],
            **members,
        }
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    events = [event({"role": "assistant", "content": ""})]
    thoughts = pieces_of(reply.thinking, reply.chunks)
    events += [event({reply.thinking_field: piece}) for piece in thoughts]
    events += [event({"content": piece}) for piece in pieces_of(reply.text, reply.chunks)]
    events += [event({"tool_calls": [call]}) for call in _fragments(reply)]
    events.append(event({}, _finish(reply)))
    if reply.usage and (body.get("stream_options") or {}).get("include_usage"):
        events.append(event({}, usage=_usage(body, reply), choices=[]))
    return events


def _fragments(reply: Reply) -> list[dict[str, Any]]:
    """Return tool calls in the pieces that they come in."""
    found: list[dict[str, Any]] = []
    for index, (call_id, call) in enumerate(zip(_call_ids(reply), reply.calls, strict=True)):
        function = {"name": call.name, "arguments": ""}
        found.append({"index": index, "id": call_id, "type": "function", "function": function})
        found += [
            {"index": index, "function": {"arguments": piece}}
            for piece in pieces_of(call.text, reply.call_fragments)
        ]
    return found


# -- a process of its own -------------------------------------------------------------------------


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it, or the one that reads its output has gone."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    fake = FakeOpenAI(chunks=arguments.chunks, delay_s=arguments.delay_ms / 1000)
    fake.max_log = arguments.max_log
    async with fake.serving(arguments.host, arguments.port):
        sys.stdout.write(msgspec.json.encode({"url": fake.url}).decode() + "\n")
        sys.stdout.flush()
        await ended.wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="A fake server that speaks OpenAI's protocol.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 is any that is free")
    parser.add_argument("--chunks", type=int, default=5, help="pieces of an unscripted answer")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="from piece to piece")
    parser.add_argument("--max-log", type=int, default=10_000, help="requests that are kept")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
