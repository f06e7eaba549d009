"""The routes that are made by hand, where the ecosystem expects a shape."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.web_routedef import AbstractRouteDef
from msgspec import Meta, Raw, Struct

from ksi_agents.events import AgentDefinition, AgentDefinitions
from ksi_completion.events import (
    ConversationDelete,
    ConversationGet,
    ConversationHistory,
    ConversationList,
)
from ksi_daemon.protocol import InvalidData, NotFound
from ksi_daemon.protocol.names import did_you_mean
from ksi_http.rest.content import Uploads
from ksi_http.sidecar import bodies, errors
from ksi_http.sidecar.openapi import described, operation, path_parameter
from ksi_memory.events import (
    Item,
    MemoryForget,
    MemoryForgotten,
    MemoryFound,
    MemoryGet,
    MemoryList,
    MemoryMoments,
    MemoryQuery,
    SchemaGet,
    SchemaList,
)

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

# The kinds of memory as they are called elsewhere, and the tables that are these.
KINDS: Final = {
    "core": "facts",
    "associative": "associations",
    "episodic": "moments",
    "proactive": "patterns",
}


FORGET: Final = "memory:forget"
ITEM: Final = path_parameter("id")


class RawQuery(Struct, frozen=True, kw_only=True):
    """A question in the REM dialect, as it is."""

    query: Annotated[str, Meta(min_length=1, max_length=100_000)]


class Got(Struct, frozen=True, kw_only=True):
    """A route that is an event: its query and the parts of its address are the payload."""

    path: str
    event: str
    kind: type
    summary: str
    method: str = hdrs.METH_GET
    fixed: dict[str, Any] = {}


ROUTES: Final = (
    Got(path="/agents", event="agent:definitions", kind=AgentDefinitions, summary="List agents."),
    Got(
        path="/agents/{name}",
        event="agent:definition",
        kind=AgentDefinition,
        summary="Show an agent.",
    ),
    Got(
        path="/conversations",
        event="conversation:list",
        kind=ConversationList,
        summary="List conversations, the one that was used last first.",
    ),
    Got(
        path="/conversations/{conversation_id}",
        event="conversation:get",
        kind=ConversationGet,
        summary="Show a conversation, without its messages.",
    ),
    Got(
        path="/conversations/{conversation_id}/messages",
        event="conversation:history",
        kind=ConversationHistory,
        summary="Read a conversation's messages.",
    ),
    Got(
        path="/conversations/{conversation_id}",
        event="conversation:delete",
        kind=ConversationDelete,
        summary="Delete a conversation.",
        method=hdrs.METH_DELETE,
    ),
    Got(
        path="/moments",
        event="memory:moments",
        kind=MemoryMoments,
        summary="List moments, the newest first.",
    ),
    Got(path="/schemas", event="schema:list", kind=SchemaList, summary="List schemas."),
    Got(path="/schemas/{name}", event="schema:get", kind=SchemaGet, summary="Show a schema."),
    *(
        Got(
            path=f"/memory/{name}",
            event="memory:list",
            kind=MemoryList,
            summary=f"List the {name} memory: the table {table}.",
            fixed={"table": table},
        )
        for name, table in KINDS.items()
    ),
)


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the routes."""
    questions, uploads = Questions(app), Uploads(app)
    return [
        web.post("/query/", questions.ask),
        web.post("/query/raw", questions.ask_raw),
        web.post("/content/", uploads.take),
        web.delete("/memory/{kind}/{id}", questions.forget),
        *(web.route(each.method, each.path, _handler(app, each)) for each in ROUTES),
    ]


def _handler(app: "Sidecar", got: Got) -> Any:
    """Return the handler of a route that is an event."""

    async def handle(request: web.Request) -> web.Response:
        payload = payload_of(request, got)
        answer = await app.request(app.caller(request), got.event, payload, result_type=Raw)
        return _json(bytes(answer))

    return described(operation_of(got))(handle)


def payload_of(request: web.Request, got: Got) -> Any:
    """Return what a request asks for.

    Raises:
        InvalidData: It names what there isn't, or not as it has to be.
    """
    known = {field.name for field in msgspec.structs.fields(got.kind)} - got.fixed.keys()
    for name in request.query:
        if name not in known or name in request.match_info:
            raise InvalidData(f"there is no parameter {name!r}{did_you_mean(name, known)}")
    given = {**request.query, **request.match_info, **got.fixed}
    try:
        return msgspec.convert(given, got.kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidData(f"the address is not what is wanted: {error}") from error


def operation_of(got: Got) -> dict[str, Any]:
    """Describe a route that is an event."""
    schema = msgspec.json.schema(got.kind)
    fields: dict[str, Any] = schema["$defs"][got.kind.__name__]["properties"]
    in_path = [name for name in fields if f"{{{name}}}" in got.path]
    parameters = [{**path_parameter(name), "schema": fields[name]} for name in in_path]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": field}
        for name, field in fields.items()
        if name not in in_path and name not in got.fixed
    ]
    return operation(got.path.split("/")[1], got.summary, parameters=parameters)


class Questions:
    """Asks the memory.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app

    @described(operation("query", "Ask the memory.", answer=MemoryFound, body=MemoryQuery))
    async def ask(self, request: web.Request) -> web.Response:
        """Ask the memory, by a mode and what it takes; a query alone is a search."""
        asked = await bodies.read_json(request, self._app.settings, MemoryQuery)
        if asked.mode is None and asked.text is None and asked.query is not None:
            asked = msgspec.structs.replace(asked, mode="search")
        return await self._answer(request, asked)

    @described(
        operation("query", "Ask the memory in the REM dialect.", answer=MemoryFound, body=RawQuery)
    )
    async def ask_raw(self, request: web.Request) -> web.Response:
        """Ask the memory, in the REM dialect."""
        asked = await bodies.read_json(request, self._app.settings, RawQuery)
        return await self._answer(request, MemoryQuery(text=asked.query))

    @described(
        operation(
            "memory",
            "Forget an item, and what rests on it alone.",
            answer=MemoryForgotten,
            parameters=[{**path_parameter("kind"), "schema": {"enum": list(KINDS)}}, ITEM],
        )
    )
    async def forget(self, request: web.Request) -> web.Response:
        """Forget an item of a kind of memory, by its id."""
        app, caller = self._app, self._app.caller(request)
        kind, item_id = request.match_info["kind"], request.match_info["id"]
        await app.exposed.check(caller, FORGET)
        async with app.connections.taken() as client:
            item = await client.request(
                "memory:get", MemoryGet(id=item_id), result_type=Item, context=caller.context
            )
        if item.table != KINDS.get(kind):
            raise NotFound(f"the {kind} memory has no item {item_id}")
        return _json(
            bytes(await app.request(caller, FORGET, MemoryForget(id=item_id), result_type=Raw))
        )

    async def _answer(self, request: web.Request, asked: MemoryQuery) -> web.Response:
        caller = self._app.caller(request)
        found = await self._app.request(caller, "memory:query", asked, result_type=Raw)
        return _json(bytes(found))


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type=errors.JSON)
