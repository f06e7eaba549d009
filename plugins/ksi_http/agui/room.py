"""The routes of AG-UI."""

import time
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef
from msgspec.structs import replace

from ksi_agents.events import AgentDefinition, AgentGet
from ksi_completion.events import CompletionAccepted, CompletionList, CompletionListed
from ksi_daemon.protocol import Conflict, InvalidData, KsiError, NotFound
from ksi_http.agui import events as a
from ksi_http.agui import inputs
from ksi_http.agui.inputs import News, RunAgentInput
from ksi_http.agui.running import Running, write
from ksi_http.agui.translation import Place, read_place
from ksi_http.sidecar import bodies, errors
from ksi_http.sidecar.streaming import event_stream

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

AGENT: Final = "general"
KNOWN_S: Final = 30.0
MAX_KNOWN: Final = 1000
MAX_ID: Final = 8000
MAX_INSTRUCTION: Final = 8000
SESSION_TYPES: Final = ("chat", "workflow", "eval")
RESUME: Final = "Last-Event-ID"


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the routes."""
    room = Room(app)
    return [web.post("/agui", room.run), web.post("/chat/{conversation_id}", room.run)]


class Room:
    """Has runs for front ends.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app
        self._agents: dict[tuple[str, str], float] = {}

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Have a run: the events of a turn, until it ends or waits for the front end."""
        app = self._app
        caller = app.caller(request)
        given = await bodies.read_json(request, app.settings, RunAgentInput)
        given = in_thread(given, request.match_info.get("conversation_id"))
        marks = marks_of(request.headers.get(RESUME))
        if marks:
            news = News(said=(), answers={}, resumed={}, before=())
            run, is_resumed = next(iter(marks)), False
        else:
            news = inputs.news_of(given)
            run, is_resumed = await self._turn(request, caller, given, news)
        async with event_stream(app, request) as stream:
            running = Running(app, caller, given, news, stream, marks)
            try:
                if not marks:
                    await running.begin(run)
                await running.follow(run, is_resumed=is_resumed)
            except* KsiError as group:
                error = errors.first(group)
                if not stream.is_open:
                    raise error from None
                app.note(request, error)
                shown = errors.shown(error)
                await stream.send(write(a.RunError(message=shown.message, code=shown.code)))
        return stream.response

    async def _turn(
        self, request: web.Request, caller: "Caller", given: RunAgentInput, news: News
    ) -> tuple[str, bool]:
        """Return the turn that answers, and whether it is one that went on before."""
        if news.answers or news.resumed:
            return await self._waiting(caller, given, news), True
        agent = request.headers.get("x-agent-schema-name") or AGENT
        await self._check_agent(caller, agent)
        await self._name(request, caller, given, agent)
        return await self._accept(request, caller, given, news, agent), False

    async def _accept(
        self,
        request: web.Request,
        caller: "Caller",
        given: RunAgentInput,
        news: News,
        agent: str,
    ) -> str:
        added = request.headers.get("x-added-instruction")
        if added is not None and len(added) > MAX_INSTRUCTION:
            raise InvalidData(f"x-added-instruction: up to {MAX_INSTRUCTION} characters")
        options: dict[str, Any] = {
            "agent": agent,
            "instructions": inputs.instructions_of(given, added),
            "client_tools": inputs.client_tools_of(given),
        }
        prompt = inputs.prompt_of(news.said)
        if not prompt:
            raise InvalidData("messages: the last one says nothing")
        turn: dict[str, Any] = {key: value for key, value in options.items() if value}
        turn["conversation_id"] = given.thread_id
        turn["request_id"] = inputs.request_id_of(given.thread_id, news.said, options)
        history = inputs.history_of(news.before)
        if history and await self._is_new(caller, given.thread_id):
            said = {"role": "user", "parts": [{"kind": "text", "text": prompt}]}
            turn["messages"] = [*history, said]
        else:
            turn["prompt"] = prompt
        accepted = await self._app.request(
            caller, "completion:async", turn, result_type=CompletionAccepted
        )
        return str(accepted.run_id)

    async def _is_new(self, caller: "Caller", thread: str) -> bool:
        async with self._app.connections.taken() as client:
            try:
                await client.request(
                    "conversation:get", {"conversation_id": thread}, context=caller.context
                )
            except NotFound:
                return True
        return False

    async def _name(
        self, request: web.Request, caller: "Caller", given: RunAgentInput, agent: str
    ) -> None:
        """Make the conversation by its name, where the front end gives one."""
        name, kind = request.headers.get("x-session-name"), request.headers.get("x-session-type")
        if kind is not None and kind not in SESSION_TYPES:
            raise InvalidData(f"x-session-type: one of {', '.join(SESSION_TYPES)}")
        if name:
            made = {"conversation_id": given.thread_id, "title": name[:200], "agent": agent}
            await self._app.request(caller, "conversation:create", made)

    async def _waiting(self, caller: "Caller", given: RunAgentInput, news: News) -> str:
        """Return the turn of a conversation that waits for what the front end says now."""
        asked = CompletionList(
            conversation_id=given.thread_id, status=("paused", "running"), limit=10
        )
        listed = await self._app.request(
            caller, "completion:list", asked, result_type=CompletionListed
        )
        if not listed.turns:
            raise Conflict(
                "nothing waits for this any more: the run that asked has ended",
                details={"kind": "not_waiting"},
            )
        run = min(listed.turns, key=lambda turn: turn.turn).run_id
        if news.said:
            said = {"conversation_id": given.thread_id, "prompt": inputs.prompt_of(news.said)}
            said["request_id"] = inputs.request_id_of(given.thread_id, news.said, {})
            await self._app.request(caller, "completion:inject", said)
        return str(run)

    async def _check_agent(self, caller: "Caller", agent: str) -> None:
        """Go on only if there is such an agent.

        Raises:
            NotFound: There is none; the message names the nearest.
        """
        now, key = time.monotonic(), (caller.tenant, agent)
        if agent == AGENT or self._agents.get(key, 0.0) > now:
            return
        async with self._app.connections.taken() as client:
            try:
                await client.request("agent:get", AgentGet(name=agent), context=caller.context)
            except NotFound:
                shown = AgentDefinition(name=agent)
                await client.request("agent:definition", shown, context=caller.context)
        if len(self._agents) >= MAX_KNOWN:
            self._agents.clear()
        self._agents[key] = now + KNOWN_S


def in_thread(given: RunAgentInput, conversation: str | None) -> RunAgentInput:
    """Return the input in the conversation that the address names."""
    return given if conversation is None else replace(given, thread_id=conversation)


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
