"""The routes of OpenAI's shape."""

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef
from msgspec import UNSET, Struct

from ksi_client import turns as c
from ksi_completion.events import (
    CompletionAccepted,
    CompletionAnswer,
    CompletionAnswered,
    CompletionInject,
)
from ksi_daemon.protocol import Conflict, KsiError
from ksi_http.openai import inputs
from ksi_http.openai import shapes as s
from ksi_http.openai.answering import Answering, End, Piece, Text, Thinking, Void
from ksi_http.openai.inputs import News
from ksi_http.openai.names import Names
from ksi_http.openai.shapes import ChatMessage, ChatRequest
from ksi_http.sidecar import bodies, errors
from ksi_http.sidecar.generated import idempotency_key
from ksi_http.sidecar.openapi import KEY_PARAMETER, described, operation, path_parameter
from ksi_http.sidecar.streaming import EventStream, event_stream

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

MAX_THREADS: Final = 10_000
AGAIN: Final = "\n\n(That was cut off; once more:)\n\n"
DONE: Final = b"data: [DONE]\n\n"
SCOPE: Final = "chat:write"


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the routes."""
    room = Room(app)
    return [
        web.post("/v1/chat/completions", room.complete),
        web.get("/v1/models", room.models),
        web.get("/v1/models/{model:.+}", room.model),
    ]


class Thread(Struct, frozen=True):
    """A conversation whose history a client has, and the last turn that it knows."""

    conversation: str
    turn: int


class Asked(Struct, frozen=True, kw_only=True):
    """The turn that answers a request.

    ``past`` are calls whose results the client has, or has sent.
    """

    run: str
    thread: Thread | None = None
    past: frozenset[str] = frozenset()


class Room:
    """Answers chats.

    Clients of this shape know no conversations: they send the whole history each time. It is looked
    up which conversation here has come to just that history, and the turn is had there; where there
    is none (any more), a new one is made with all of it.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app
        self._names = Names(app)
        self._threads: OrderedDict[str, Thread] = OrderedDict()

    @described(operation("openai", "List the agents and models.", answer=s.ModelsShown))
    async def models(self, request: web.Request) -> web.Response:
        """List the agents and models that may be named."""
        caller = self._app.caller(request)
        caller.demand(SCOPE)
        return _json(s.ModelsShown(data=await self._names.listed(caller)))

    @described(
        operation(
            "openai",
            "Show an agent or a model.",
            answer=s.ModelShown,
            parameters=[path_parameter("model")],
        )
    )
    async def model(self, request: web.Request) -> web.Response:
        """Show one of them."""
        caller, name = self._app.caller(request), request.match_info["model"]
        caller.demand(SCOPE)
        meant = await self._names.find(caller, name)
        return _json(s.ModelShown(id=name, owned_by="ksi" if meant.agent else "model"))

    @described(
        operation(
            "openai",
            "Have an agent or a model answer; with stream it comes as server-sent events.",
            answer=s.ChatAnswer,
            body=ChatRequest,
            parameters=[KEY_PARAMETER],
        )
    )
    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Have an agent or a model answer, at once or in pieces."""
        app, caller = self._app, self._app.caller(request)
        asked = await bodies.read_json(request, app.settings, ChatRequest)
        news = inputs.news_of(asked)
        client_tools = inputs.client_tools_of(asked)
        turn = await self._turn(request, caller, asked, news)
        answering = Answering(
            app,
            caller,
            turn.run,
            dict(news.answers),
            {*turn.past, *news.answers},
            frozenset(each["name"] for each in client_tools),
        )
        answer = Answer(asked, turn.run, answering)
        if asked.stream:
            response = await self._stream(request, answer)
        else:
            response = await self._whole(request, answer)
        self._remember(caller, asked, turn.thread, answering.text)
        return response

    async def _whole(self, request: web.Request, answer: "Answer") -> web.StreamResponse:
        with self._app.limits.stream(self._app.caller(request).id):
            return _json(await answer.whole(), headers=answer.headers)

    async def _stream(self, request: web.Request, answer: "Answer") -> web.StreamResponse:
        async with event_stream(self._app, request, answer.headers) as stream:
            try:
                await answer.send(stream)
            except KsiError as error:
                if not stream.is_open:
                    raise
                self._app.note(request, error)
                await stream.send(errors.body_of(error))
        return stream.response

    # -- the turn -------------------------------------------------------------------------------

    async def _turn(
        self, request: web.Request, caller: "Caller", asked: ChatRequest, news: News
    ) -> Asked:
        """Return the turn that answers: a new one, or one that waits for the client."""
        if news.answers:
            return await self._waiting(caller, news)
        key = idempotency_key(request)
        thread = await self._thread(caller, asked, news.before, is_keyed=key is not None)
        if thread is not None:
            answered = await self._answered(caller, thread, news)
            if answered is not None:
                return answered
        return await self._accept(caller, asked, news, thread, key)

    async def _accept(
        self,
        caller: "Caller",
        asked: ChatRequest,
        news: News,
        thread: Thread | None,
        key: str | None,
    ) -> Asked:
        meant = await self._names.find(caller, asked.model)
        turn: dict[str, Any] = inputs.options_of(asked)
        system = inputs.system_of(asked.messages)
        if meant.agent is not None:
            turn["agent"] = meant.agent
        else:
            turn |= {"model": meant.model, "tools": ()}  # a model has no more than is sent along
        if system is not None:
            turn["system" if meant.agent is None else "instructions"] = system
        history = inputs.history_of(news.before) if thread is None else []
        turn["messages"] = [*history, {"role": "user", "parts": news.said}]
        made = secrets.token_hex(12)
        if key is not None:
            made = inputs.digest_of((caller.id, key), ())[:40]
            turn["request_id"] = f"openai-{made}"
        conversation = inputs.conversation_of(asked) or (thread and thread.conversation)
        turn["conversation_id"] = conversation or f"chat-{made}"
        accepted: CompletionAccepted = await self._app.request(
            caller, "completion:async", turn, result_type=CompletionAccepted
        )
        return Asked(run=accepted.run_id, thread=Thread(accepted.conversation_id, accepted.turn))

    async def _waiting(self, caller: "Caller", news: News) -> Asked:
        """Return the turn that the client's tools were called by."""
        runs = {call.rsplit(":", 2)[0] for call in news.answers if call.count(":") > 1}
        if len(runs) != 1:
            raise Conflict(
                "nothing here waits for these tool messages: their calls were none of one answer "
                "of this server's",
                details={"kind": "not_waiting"},
            )
        (run,) = runs
        found: CompletionAccepted = await self._app.chats.look(
            caller, "completion:status", {"run_id": run}, CompletionAccepted
        )
        if news.said:
            text = "\n\n".join(part.get("text", "") for part in news.said)
            said = CompletionInject(
                conversation_id=found.conversation_id,
                prompt=text,
                request_id=f"openai-{inputs.digest_of((run, text, *news.answers), ())[:40]}",
            )
            await self._app.request(caller, "completion:inject", said)
        return Asked(run=run, thread=Thread(found.conversation_id, found.turn))

    async def _answered(self, caller: "Caller", thread: Thread, news: News) -> Asked | None:
        """Take what the user says for the answer that a turn of the conversation waits for."""
        turn = await self._app.chats.at_work(caller, thread.conversation)
        if turn is None or turn.status != "paused":
            return None
        text = "\n\n".join(part.get("text", "") for part in news.said)
        answer = CompletionAnswer(run_id=turn.run_id, content=text)
        answered = await self._app.request(
            caller, "completion:answer", answer, result_type=CompletionAnswered
        )
        return Asked(run=turn.run_id, thread=thread, past=frozenset({answered.call_id}))

    # -- conversations --------------------------------------------------------------------------

    async def _thread(
        self,
        caller: "Caller",
        asked: ChatRequest,
        before: tuple[ChatMessage, ...],
        *,
        is_keyed: bool,
    ) -> Thread | None:
        """Return the conversation that is named, or that has come to just this history.

        A request with an idempotency key has to be the same when it is sent again, when the
        conversation has got on: it has one of its own.
        """
        named = inputs.conversation_of(asked)
        if named is not None:
            known = await self._app.chats.conversation(caller, named)
            return None if known is None else Thread(named, known.turns)
        thread = None if is_keyed else self._threads.pop(_key(caller, asked, before), None)
        if thread is None:
            return None
        found = await self._app.chats.conversation(caller, thread.conversation)
        is_as_it_was = found is not None and found.turns == thread.turn and not found.archived_at
        return thread if is_as_it_was else None

    def _remember(
        self, caller: "Caller", asked: ChatRequest, thread: Thread | None, text: str
    ) -> None:
        if thread is None or not text:
            return
        messages = (*asked.messages, ChatMessage(role="assistant", content=text))
        self._threads[_key(caller, asked, messages)] = thread
        if len(self._threads) > MAX_THREADS:
            self._threads.popitem(last=False)


class Answer:
    """Writes an answer in OpenAI's shape.

    Args:
        asked: What is answered.
        run: The turn that answers.
        answering: What it says.
    """

    def __init__(self, asked: ChatRequest, run: str, answering: Answering) -> None:
        self._asked = asked
        self._answering = answering
        self._id = f"chatcmpl-{run}"
        self._created = int(time.time())
        self.headers = {"X-Run-Id": run}

    async def whole(self) -> s.ChatAnswer:
        """Return it when it is over."""
        end = End("stop")
        async for piece in self._pieces():
            if isinstance(piece, End):
                end = piece
        text, thinking = self._answering.text, self._answering.thinking
        message = s.AnsweredMessage(
            content=text if text or not end.calls else None,
            reasoning_content=thinking or UNSET,
            tool_calls=tuple(map(_call, end.calls)) or UNSET,
        )
        return s.ChatAnswer(
            id=self._id,
            created=self._created,
            model=self._asked.model,
            choices=(s.Choice(message=message, finish_reason=end.reason),),
            usage=s.used(self._answering.usage),
        )

    async def send(self, stream: EventStream) -> None:
        """Send it as it comes."""
        role: str | None = "assistant"
        async for piece in self._pieces():
            await stream.write(self._written(_delta(piece, role), piece))
            role = None
        options = self._asked.stream_options
        end = DONE
        if options is not None and options.include_usage:
            end = self._event((), s.used(self._answering.usage)) + DONE
        await stream.write(end)

    async def _pieces(self) -> AsyncIterator[Piece]:
        async with aclosing(self._answering.pieces()) as pieces:
            async for piece in pieces:
                yield piece

    def _written(self, delta: s.Delta, piece: Piece) -> bytes:
        written = self._event((s.ChunkChoice(delta=delta),)) if delta != s.Delta() else b""
        if isinstance(piece, End):
            ended = s.ChunkChoice(delta=s.Delta(), finish_reason=piece.reason)
            written += self._event((ended,))
        return written

    def _event(self, choices: tuple[s.ChunkChoice, ...], usage: Any = UNSET) -> bytes:
        chunk = s.ChatChunk(
            id=self._id,
            created=self._created,
            model=self._asked.model,
            choices=choices,
            usage=usage,
        )
        return b"data: " + s.write(chunk) + b"\n\n"


def _delta(piece: Piece, role: str | None) -> s.Delta:
    if isinstance(piece, Text):
        return s.Delta(role=role, content=piece.text)
    if isinstance(piece, Thinking):
        return s.Delta(role=role, reasoning_content=piece.text)
    if isinstance(piece, Void):
        return s.Delta(role=role, content=AGAIN)
    calls = tuple(_call(call, place) for place, call in enumerate(piece.calls))
    return s.Delta(role=role, tool_calls=calls or None)


def _call(call: c.ToolCallChunk, place: int | Any = UNSET) -> s.AnsweredCall:
    function = s.Function(call.name, call.arguments)
    return s.AnsweredCall(index=place, id=call.call_id, type="function", function=function)


def _key(caller: "Caller", asked: ChatRequest, messages: tuple[ChatMessage, ...]) -> str:
    return inputs.digest_of((caller.tenant, caller.id, caller.user, asked.model), messages)


def _json(value: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=s.write(value), content_type=errors.JSON, headers=headers)
