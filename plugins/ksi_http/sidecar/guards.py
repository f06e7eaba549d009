"""What stands before every route: whose server this is, who calls, and how errors look."""

import ipaddress
import itertools
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from ksi_daemon.protocol import Denied, Failed, InvalidData, KsiError, NotFound
from ksi_http.settings import HttpSettings
from ksi_http.sidecar import errors
from ksi_http.sidecar.callers import Caller

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

log = logging.getLogger(__name__)

CALLER: Final = web.RequestKey("caller", Caller)
REQUEST_ID: Final = web.RequestKey("request_id", str)
PAGE: Final = web.RequestKey("page", str)  # the origin of the web page, where that may use this
ID_HEADER: Final = "X-Request-Id"
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# What is answered without a key: whether it is alive, and a page that has nothing of anybody.
PUBLIC: Final = frozenset({"/healthz", "/readyz", "/docs"})
METHODS: Final = "GET, POST, PUT, PATCH, DELETE"
EXPOSED_HEADERS: Final = "X-Request-Id, Retry-After, Mcp-Session-Id"
PREFLIGHT_S: Final = "600"
COMPRESSED: Final = (errors.JSON, "text/html", "text/plain")


def hosts_of(settings: HttpSettings) -> frozenset[str]:
    """Return the names by which this server may be called."""
    return frozenset({"localhost", settings.host.lower(), *(h.lower() for h in settings.hosts)})


def check_host(request: web.Request, hosts: frozenset[str]) -> None:
    """Refuse a request that means another server: a page whose name was made to lead here.

    Raises:
        Denied: Nobody calls this server so.
        InvalidData: It names none, or several.
    """
    named = request.headers.getall(hdrs.HOST, ())
    if len(named) != 1:
        raise InvalidData("send one header Host")
    name = _host_name(named[0])
    if name not in hosts and not _is_where_it_came_to(request, name):
        raise Denied(f"this server is not called {name[:100]!r}; see the setting http.hosts")


def _host_name(host: str) -> str:
    """Return the name of ``name:port``."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError as error:
        raise InvalidData("the header Host makes no sense") from error


def _is_where_it_came_to(request: web.Request, name: str) -> bool:
    """Say whether a name is the very address that the connection was made to."""
    transport = request.transport
    own = transport.get_extra_info("sockname") if transport is not None else None
    try:
        address = ipaddress.ip_address(name)
        return own is not None and address == ipaddress.ip_address(str(own[0]).partition("%")[0])
    except ValueError:
        return False


def check_origin(request: web.Request, origins: frozenset[str]) -> str | None:
    """Return the web page's origin that a request comes from; ``None`` where it is from none.

    Raises:
        Denied: It is not one of those that may use this server.
    """
    named = request.headers.getall(hdrs.ORIGIN, ())
    if not named:
        return None
    origin = named[0]
    own = urlsplit(origin).netloc.lower() == request.headers[hdrs.HOST].lower()
    if len(named) > 1 or not (origin in origins or (own and "://" in origin)):
        raise Denied(f"the page {origin[:200]!r} may not use this server; see http.origins")
    return origin


def _refuse_packed(request: web.Request) -> None:
    """Refuse bodies that are packed: nobody knows how large they are before they are unpacked."""
    packed = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if packed != "identity":
        raise errors.WrongType(f"send the body as it is, not packed by {packed[:50]!r}")


def given_id(request: web.Request) -> str | None:
    """Return the id that a request came with, if it makes sense."""
    given = request.headers.get(ID_HEADER, "")
    return given if _ID.fullmatch(given) else None


class Guard:
    """The one middleware: lets requests in, and makes answers of errors.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app
        self._hosts = hosts_of(app.settings)
        self._origins = frozenset(app.settings.origins)
        self._boot = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        check_host(request, self._hosts)
        _refuse_packed(request)
        origin = check_origin(request, self._origins)
        if origin is not None:
            request[PAGE] = origin
            if request.method == hdrs.METH_OPTIONS:
                return _preflight(request)
        if request.path not in PUBLIC:
            caller = request[CALLER] = await self._app.callers.of(request)
            self._app.limits.request(caller.id)
        return await handler(request)

    async def _in_shape(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await self._answered(request, handler)
        except KsiError as error:
            return _told(request, error)
        except web.HTTPException as error:
            return _told(request, *_translated(request, error))
        except ConnectionError:
            raise  # the client is gone
        except Exception as error:
            log.exception("a request broke", extra=fields_of(request))
            return errors.answer(Failed(str(error)))

    @web.middleware
    async def stand_before(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request by its route, if it is let in."""
        began_at = time.monotonic()
        request[REQUEST_ID] = given_id(request) or f"{self._boot}-{next(self._numbers):x}"
        response = await self._in_shape(request, handler)
        if request.writer.output_size and not response.prepared:
            raise ConnectionError("a stream broke: its client finds it cut off")
        _compress(self._app.settings, request, response)
        took_s = time.monotonic() - began_at
        self._app.metrics.answered(request.method, route_of(request), response.status, took_s)
        return response


def route_of(request: web.Request) -> str:
    """Return the pattern of the route that answers a request."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def fields_of(request: web.Request) -> dict[str, str]:
    """Return what the log says of a request."""
    return {"request": request[REQUEST_ID], "route": route_of(request)}


def _told(
    request: web.Request, error: KsiError, headers: Mapping[str, str] | None = None
) -> web.Response:
    errors.note(error, **fields_of(request))
    return errors.answer(error, headers)


def _translated(
    request: web.Request, error: web.HTTPException
) -> tuple[KsiError, Mapping[str, str]]:
    """Make an error of ours of one of aiohttp's, with the headers that go with it."""
    if isinstance(error, web.HTTPNotFound):
        return NotFound(f"nothing is here: {request.path[:200]}; see /docs"), {}
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{error.method} is not for this address; use {allowed}"
        return errors.WrongMethod(message), {hdrs.ALLOW: allowed}
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return errors.TooLarge("the body is too large"), {}
    kind = InvalidData if error.status < errors.STATUSES["failed"] else Failed
    return kind(error.reason), {}


def _preflight(request: web.Request) -> web.Response:
    """Answer a browser that asks whether a page may send a request."""
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
        hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_S,
    }
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
    if wanted:
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    return web.Response(status=204, headers=headers)


def _compress(settings: HttpSettings, request: web.Request, response: web.StreamResponse) -> None:
    if (
        isinstance(response, web.Response)
        and settings.min_compressed_bytes
        and "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")
        and response.content_type in COMPRESSED
        and (response.content_length or 0) >= settings.min_compressed_bytes
    ):
        response.enable_compression(web.ContentCoding.gzip)


async def prepared(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the headers that all have; those of streams, too."""
    headers = response.headers
    if REQUEST_ID in request:  # else it was no request that could be read
        headers[ID_HEADER] = request[REQUEST_ID]
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers[hdrs.SERVER] = "ksi"
    if PAGE in request:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request[PAGE]
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
        headers[hdrs.VARY] = hdrs.ORIGIN
