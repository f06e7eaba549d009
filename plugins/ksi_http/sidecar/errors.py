"""Errors as they leave: one shape, the right status, and nothing of what is inside."""

import logging
import math
from collections.abc import Mapping
from typing import Final

import msgspec
from aiohttp import web
from msgspec import Struct

from ksi_daemon.protocol import InvalidData, KsiError

log = logging.getLogger(__name__)

JSON: Final = "application/json"
STATUSES: Final = {
    "invalid_data": 400,
    "unauthenticated": 401,
    "denied": 403,
    "not_found": 404,
    "conflict": 409,
    "busy": 429,
    "failed": 500,
    "unavailable": 503,
    "cancelled": 503,
    "timeout": 504,
}
# What these say is about the inside: it is for the log.
KEPT_BACK: Final = {
    "failed": "this failed; the log of the server has why, under the request's id",
    "unavailable": "the service is away just now; try again",
}
RETRY_S: Final = 1.0


class Unauthenticated(KsiError):
    """Send a valid key: ``Authorization: Bearer …``, or ``x-api-key``."""

    code = "unauthenticated"


class TooLarge(InvalidData):
    """Send less; the message names the bound."""

    status = 413


class WrongType(InvalidData):
    """Send another content type; the message names it."""

    status = 415


class WrongMethod(InvalidData):
    """Use another method; the header ``Allow`` has them."""

    status = 405


class ErrorShown(Struct, frozen=True, omit_defaults=True):
    """An error as everybody sees it."""

    code: str
    message: str
    retry_after_s: float | None = None


class ErrorAnswer(Struct, frozen=True):
    """The one shape of every error."""

    error: ErrorShown


def first(group: BaseExceptionGroup[KsiError]) -> KsiError:
    """Return the first error of a group of a task group's."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KsiError)
    return error


def shown(error: KsiError) -> ErrorShown:
    """Return what of an error leaves this process."""
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.code in ("unavailable", "busy"):
        retry_after_s = RETRY_S
    return ErrorShown(error.code, KEPT_BACK.get(error.code, error.message), retry_after_s)


def status_of(error: KsiError) -> int:
    """Return the HTTP status of an error."""
    own: int | None = getattr(error, "status", None)
    return own or STATUSES.get(error.code, 500)


def body_of(error: KsiError) -> bytes:
    """Return an error's JSON."""
    return msgspec.json.encode(ErrorAnswer(shown(error)))


def answer(error: KsiError, headers: Mapping[str, str] | None = None) -> web.Response:
    """Make the answer for an error."""
    status, told = status_of(error), shown(error)
    response = web.Response(
        body=msgspec.json.encode(ErrorAnswer(told)),
        status=status,
        content_type=JSON,
        headers=headers,
    )
    if told.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(told.retry_after_s)))
    if status == STATUSES["unauthenticated"]:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def note(error: KsiError, **fields: object) -> None:
    """Log what is wrong on our side, with what is kept back from the client."""
    if error.code in KEPT_BACK:
        log.warning("a request failed", extra={"code": error.code, "why": error.message, **fields})
