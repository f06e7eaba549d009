"""Reads the bodies of requests: bounded, in time, and of the right kind."""

import asyncio
from typing import Any, Final, TypeVar, overload

import msgspec
from aiohttp import hdrs, web

from ksi_daemon.protocol import InvalidData, TimedOut
from ksi_daemon.protocol.wire import DECODE_ERRORS
from ksi_http.settings import HttpSettings
from ksi_http.sidecar.errors import TooLarge, WrongType

Kind = TypeVar("Kind")

JSON_TYPES: Final = ("application/json",)


def check_size(request: web.Request, bound: int, setting: str) -> None:
    """Go on only if a body is not said to be larger than it may be: before any of it is read.

    Raises:
        TooLarge: It is.
    """
    if (request.content_length or 0) > bound:
        raise TooLarge(f"a body may have {bound} bytes here ({setting})")


async def read(request: web.Request, settings: HttpSettings) -> bytes:
    """Return the whole body of a request.

    Raises:
        TooLarge: It is larger than it may be.
        TimedOut: It did not come in time.
        InvalidData: It broke off, or can't be unpacked.
    """
    bound = settings.max_body_bytes
    check_size(request, bound, "http.max_body_bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for part in request.content.iter_any():
                body += part
                if len(body) > bound:
                    raise TooLarge(f"a body may have {bound} bytes here (http.max_body_bytes)")
    except TimeoutError as error:
        bound_s = settings.body_timeout_s
        raise TimedOut(
            f"the body did not come within {bound_s:g} s (http.body_timeout_s)"
        ) from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise InvalidData("the body broke off, or can't be unpacked") from error
    return bytes(body)


@overload
async def read_json(request: web.Request, settings: HttpSettings, kind: type[Kind]) -> Kind: ...
@overload
async def read_json(request: web.Request, settings: HttpSettings) -> Any: ...
async def read_json(request: web.Request, settings: HttpSettings, kind: Any = Any) -> Any:
    """Return the JSON body of a request; an empty one is an empty object.

    Args:
        request: The request.
        settings: Have the bounds.
        kind: What to decode it into; plain data unless given.

    Raises:
        WrongType: It says that it is something else.
        InvalidData: It is no JSON, or not what is wanted.
    """
    check_type(request)
    body = await read(request, settings)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except DECODE_ERRORS as error:
        raise InvalidData(f"the body is not what is wanted: {error}") from error


def check_type(request: web.Request) -> None:
    """Go on only if a body is JSON, or there is none.

    A web page can send other types to anybody without being asked whether it may.

    Raises:
        WrongType: It says that it is something else.
    """
    if request.body_exists and request.content_type not in JSON_TYPES:
        sent = request.headers.get(hdrs.CONTENT_TYPE, "nothing")[:100]
        raise WrongType(f"send application/json, not {sent!r}")
