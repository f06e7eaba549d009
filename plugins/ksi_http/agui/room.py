"""The routes of AG-UI."""

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef
from msgspec.structs import replace

from ksi_completion.events import CompletionInject, CompletionInjected, ConversationCreate
from ksi_daemon.protocol import Conflict, InvalidData, KsiError
from ksi_http.agui import events as a
from ksi_http.agui import headers, inputs
from ksi_http.agui.headers import Told
from ksi_http.agui.inputs import News, RunAgentInput
from ksi_http.agui.running import ASK, Running, write
from ksi_http.agui.translation import Place, read_place
from ksi_http.sidecar import bodies, errors
from ksi_http.sidecar.openapi import described, path_parameter
from ksi_http.sidecar.streaming import event_stream

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

CONVERSATION: Final = "conversation_id"
MAX_ID: Final = 8000
MAX_THREAD: Final = 2000
RESUME: Final = "Last-Event-ID"

Turn = dict[str, Any]  # the payload of ``completion:async``


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the routes."""
    room = Room(app)
    return [web.post("/agui", room.run), web.post("/chat/{conversation_id}", room.chat)]


class Room:
    """Has runs for front ends.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app

    @described(headers.operation_of("Have a run of AG-UI: a turn, as its events."))
    async def run(self, request: web.Request) -> web.StreamResponse:
        """Have a run: the events of a turn, until it ends or waits for the front end."""
        given = await bodies.read_json(request, self._app.settings, RunAgentInput)
        return await self._have(request, given)

    @described(
        headers.operation_of("Have a run of AG-UI in a conversation.", path_parameter(CONVERSATION))
    )
    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Have a run in the conversation that the address names."""
        given = await bodies.read_json(request, self._app.settings, RunAgentInput)
        thread = request.match_info[CONVERSATION]
        if len(thread) > MAX_THREAD:
            raise InvalidData(f"{CONVERSATION}: up to {MAX_THREAD} characters")
        return await self._have(request, replace(given, thread_id=thread))

    async def _have(self, request: web.Request, given: RunAgentInput) -> web.StreamResponse:
        app = self._app
        caller = app.caller(request)
        marks = marks_of(request.headers.get(RESUME))
        if marks:
            news, turn = News(said=(), answers={}, resumed={}, before=()), None
        else:
            news, turn = await self._turn(request, caller, given)
        async with event_stream(app, request) as stream:
            running = Running(app, caller, given, news, stream, marks)
            try:
                if turn is None:
                    await running.resume()
                elif isinstance(turn, str):
                    await running.go_on(turn)
                else:
                    await running.have(turn)
            except* KsiError as group:
                error = errors.first(group)
                if not stream.is_open:
                    raise error from None
                app.note(request, error)
                shown = errors.shown(error)
                await stream.send(write(a.RunError(message=shown.message, code=shown.code)))
        return stream.response

    async def _turn(
        self, request: web.Request, caller: "Caller", given: RunAgentInput
    ) -> tuple[News, str | Turn]:
        """Return what is new, and what answers it: a turn that waits for it, or one to be had."""
        news = inputs.news_of(given)
        if news.answers or news.resumed:
            run = await self._at_work(caller, given.conversation)
            if run is not None:
                await self._inject(caller, given, news)
                return news, run
            if news.resumed or not news.said:
                raise Conflict(
                    "nothing waits for this any more: the run that asked has ended",
                    details={"kind": "not_waiting"},
                )
        elif calls := {k: tool for k, tool in inputs.open_calls(given).items() if tool != ASK}:
            found = await self._answered(caller, given, news, calls)
            if found is not None:
                return found
        return news, await self._new_turn(request, caller, given, news)

    async def _new_turn(
        self, request: web.Request, caller: "Caller", given: RunAgentInput, news: News
    ) -> Turn:
        """Return a turn that is to be had; its conversation is made where that is to be named."""
        told = headers.read(request.headers, caller)
        if told.agent != headers.AGENT:
            await self._app.chats.check_agent(caller, told.agent)
        said = inputs.messages_of(news.said)
        if not said:
            raise InvalidData("messages: the last one says nothing")
        if not news.before or await self._is_new(caller, given.conversation):
            said = inputs.messages_of(given.messages)  # it may have begun elsewhere
            await self._make(caller, given.conversation, told)
        options: dict[str, Any] = {
            "agent": told.agent,
            "instructions": inputs.instructions_of(given, told.instructions),
            "client_tools": inputs.client_tools_of(given),
        }
        return {
            **{key: value for key, value in options.items() if value},
            "conversation_id": given.conversation,
            "request_id": inputs.request_id_of(given.conversation, news.said, options),
            "messages": said,
        }

    async def _is_new(self, caller: "Caller", thread: str) -> bool:
        found = await self._app.chats.conversation(caller, thread)
        return found is None or not found.turns

    async def _make(self, caller: "Caller", thread: str, told: Told) -> None:
        """Make the conversation, where the front end says what it is called or for."""
        if told.title or told.kind:
            made = ConversationCreate(
                conversation_id=thread, title=told.title, kind=told.kind, agent=told.agent
            )
            await self._app.request(caller, "conversation:create", made)

    # -- turns that wait ------------------------------------------------------------------------

    async def _at_work(self, caller: "Caller", thread: str) -> str | None:
        turn = await self._app.chats.at_work(caller, thread)
        return None if turn is None else turn.run_id

    async def _answered(
        self, caller: "Caller", given: RunAgentInput, news: News, calls: dict[str, str]
    ) -> tuple[News, str] | None:
        """Take what the user says for the answer to what the agent's last message left open."""
        runs = [_run_of(call) for call in calls]
        run = await self._at_work(caller, given.conversation)
        if run is not None and run not in runs:
            return None  # what is at work there is none of what the front end knows
        if run is None:  # perhaps this is sent again, and its turn has ended meanwhile
            said = inputs.text_alone(news.said)
            if said and await self._app.chats.was_said(caller, given.conversation, runs[-1], said):
                return inputs.taken_as_answers(news, calls), runs[-1]
            return None
        taken = inputs.taken_as_answers(news, calls)
        await self._inject(caller, given, taken)
        return taken, run

    async def _inject(self, caller: "Caller", given: RunAgentInput, news: News) -> None:
        """Have the turn at work read what the user says besides."""
        if news.said:
            said = CompletionInject(
                conversation_id=given.conversation,
                prompt=inputs.prompt_of(news.said),
                request_id=inputs.request_id_of(given.conversation, news.said, {}),
            )
            await self._app.request(
                caller, "completion:inject", said, result_type=CompletionInjected
            )


def _run_of(call: str) -> str:
    """Return the turn that has made a call."""
    return call.rsplit(":", 2)[0]


def marks_of(header: str | None) -> dict[str, Place | None]:
    """Return how far a client has each turn of the stream that was cut, the first one first.

    Raises:
        InvalidData: The header is none that was sent.
    """
    if header is None:
        return {}
    if len(header) > MAX_ID:
        raise InvalidData(f"{RESUME} is longer than any that was sent: begin without it")
    marks: dict[str, Place | None] = {}
    for text in header.split("|"):
        if text.startswith("!~") and marks:
            marks[text[2:]] = None
        else:
            place = read_place(text)
            marks[place.run] = place
    return marks
