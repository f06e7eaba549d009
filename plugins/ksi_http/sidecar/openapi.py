"""The description of all routes, made of what the daemon says of its events."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef

from ksi_daemon.protocol import Unavailable
from ksi_http.sidecar import errors
from ksi_system.events import EventDescription

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

Schema = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])

PREFIX: Final = "#/$defs/"
COMPONENTS: Final = "#/components/schemas/"
MAX_AGE_S: Final = 5.0
EVENT_STREAM: Final = "text/event-stream"
TYPE: Final = "x-type"  # in what routes say of themselves: a type in place of its schema
# The page brings its own script and style, and fetches from this server alone.
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]")
KEY_PARAMETER: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "description": "Makes the request safe to repeat: with the same key it is done once.",
}


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the routes."""
    described = Described(app)
    return [web.get("/openapi.json", described.document), web.get("/docs", described.page)]


class Described:
    """The OpenAPI document, and a page that shows it.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app
        self._made: tuple[int, bytes] = (-1, b"")
        self._page = (files(__package__) / "docs.html").read_bytes()

    async def document(self, request: web.Request) -> web.Response:
        """Answer with the document."""
        exposed = self._app.exposed
        with contextlib.suppress(Unavailable):  # what is known does, too
            await exposed.are_new(MAX_AGE_S)
        if self._made[0] != exposed.changes:
            document = made(exposed.events, hand_made(request.app))
            self._made = (exposed.changes, msgspec.json.encode(document))
        return web.Response(body=self._made[1], content_type=errors.JSON)

    async def page(self, request: web.Request) -> web.Response:
        """Answer with the page."""
        headers = {"Content-Security-Policy": PAGE_POLICY}
        return web.Response(
            body=self._page, content_type="text/html", charset="utf-8", headers=headers
        )


def described(operation: Schema) -> Callable[[Function], Function]:
    """Say of a route's handler what it is in the document: an OpenAPI Operation object."""

    def mark(function: Function) -> Function:
        function.openapi = operation  # type: ignore[attr-defined]  # read by `hand_made`
        return function

    return mark


def operation(
    tag: str,
    summary: str,
    *,
    answer: type | None = None,
    body: type | None = None,
    parameters: Sequence[Schema] = (),
) -> Schema:
    """Describe a route that takes and answers JSON; types stand for their schemas."""
    described: Schema = {
        "summary": summary,
        "tags": [tag],
        "parameters": list(parameters),
        "responses": {
            "200": _content("The answer.", errors.JSON, {} if answer is None else {TYPE: answer}),
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if body is not None:
        content = {errors.JSON: {"schema": {TYPE: body}}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def path_parameter(name: str) -> Schema:
    """Describe a part of an address."""
    schema = {"type": "string", "minLength": 1, "maxLength": 200}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def hand_made(application: web.Application) -> dict[str, Any]:
    """Return what routes say of themselves: the attribute ``openapi`` of a handler."""
    paths: dict[str, Any] = {}
    for route in application.router.routes():
        operation = getattr(route.handler, "openapi", None)
        if operation is not None and route.resource is not None:
            paths.setdefault(route.resource.canonical, {})[route.method.lower()] = operation
    return paths


def _with_schemas(value: Any, schemas: "Schemas") -> Any:
    """Return a description with schemas in place of types."""
    if isinstance(value, list):
        return [_with_schemas(each, schemas) for each in value]
    if not isinstance(value, dict):
        return value
    if TYPE in value:
        kind = value[TYPE]
        return schemas.take(msgspec.json.schema(kind), f"http:{kind.__name__}")
    return {key: _with_schemas(each, schemas) for key, each in value.items()}


class Schemas:
    """The definitions of all events, each under one name."""

    def __init__(self) -> None:
        self.components: Schema = {}
        self._as_given: Schema = {}

    def take(self, schema: Schema | None, event: str) -> Schema:
        """Put a schema's definitions among all others; return what refers to them.

        Two plugins may give one name to different things: then the event's namespace is put before.
        """
        schema = dict(schema or {})
        definitions: Schema = schema.pop("$defs", {})
        names = {name: self._name(name, given, event) for name, given in definitions.items()}
        for name, given in definitions.items():
            self._as_given[names[name]] = given
            self.components[names[name]] = _renamed(given, names)
        renamed: Schema = _renamed(schema, names)
        return renamed

    def _name(self, name: str, given: Any, event: str) -> str:
        plain = _NOT_IN_NAMES.sub("_", name)
        if self._as_given.get(plain, given) != given:
            plain = f"{event.partition(':')[0]}.{plain}"
        return plain


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return a schema whose references lead to the components."""
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: COMPONENTS + names.get(each.removeprefix(PREFIX), each.removeprefix(PREFIX))
        if key == "$ref" and isinstance(each, str)
        else _renamed(each, names)
        for key, each in value.items()
    }


def made(events: Mapping[str, EventDescription], more: dict[str, Any]) -> Schema:
    """Make the document.

    Args:
        events: Those that may be reached.
        more: The operations of routes that are made by hand, by path and method.
    """
    schemas = Schemas()
    error = schemas.take(msgspec.json.schema(errors.ErrorAnswer), "error")
    paths = {
        "/v1/" + name.replace(":", "/"): {"post": _operation(events[name], schemas)}
        for name in sorted(events)
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "KSI",
            "version": "1",
            "description": "Every event that a key may reach, and what the ecosystem expects.",
        },
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": {**_with_schemas(more, schemas), **paths},
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "responses": {"Error": _content("What went wrong.", errors.JSON, error)},
        },
    }


def _content(description: str, kind: str, schema: Schema) -> Schema:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _operation(event: EventDescription, schemas: Schemas) -> Schema:
    summary, _, rest = event.doc.partition("\n")
    asked = schemas.take(event.data_schema, event.event)
    answer = schemas.take(event.result_schema, event.event)
    if event.streams:
        good = _content("Such chunks, then `end` or `error`.", EVENT_STREAM, answer)
    else:
        good = _content("The answer.", errors.JSON, answer)
    operation: Schema = {
        "operationId": event.event.replace(":", "_"),
        "summary": summary,
        "tags": [event.event.partition(":")[0]],
        "requestBody": {
            "required": _needs_something(event.data_schema or {}),
            "content": {errors.JSON: {"schema": asked}},
        },
        "responses": {"200": good, "default": {"$ref": "#/components/responses/Error"}},
        "x-scope": event.scope,
    }
    if rest.strip():
        operation["description"] = rest.strip()
    if not event.streams:
        operation["parameters"] = [KEY_PARAMETER]
    return operation


def _needs_something(schema: Schema) -> bool:
    """Say whether a payload must have a field."""
    name = str(schema.get("$ref", "")).removeprefix(PREFIX)
    return bool(schema.get("required") or schema.get("$defs", {}).get(name, {}).get("required"))
