"""Gives what can go wrong with Postgres the form that callers know."""

import logging
from typing import Final

import asyncpg

from ksi_daemon.protocol import Busy, InvalidData, KsiError, TimedOut, Unavailable

log = logging.getLogger(__name__)

RETRY_S: Final = 0.1
AGAIN_S: Final = 0.05

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_GONE: Final = ("08", "57P01", "57P02", "57P03", "57P05")
_FULL: Final = {
    "53100": "its disk is full: make room under its data directory",
    "53200": "it is out of memory",
    "53300": "it has too many connections: lower postgres.pool_connections, or raise its limit",
    "53400": "a limit of its configuration was reached",
    "58030": "it can't read or write its files: look at its disk",
}
_TEXT: Final = ("22021", "22P05")  # a NUL character, most of all
_AGAIN: Final = ("40001", "40P01", "55P03")


def told_of(error: BaseException) -> str:
    """Describe an error in one line, without anything secret."""
    return str(error).partition("\n")[0] or type(error).__name__


def translated(error: Exception, *, lost: bool = False) -> Exception:
    """Return the typed error for one of asyncpg's; what a store should know stays as it is.

    Args:
        error: What was raised.
        lost: Whether the connection is closed now.
    """
    if isinstance(error, KsiError):
        return error
    if isinstance(error, asyncpg.PostgresError):
        return _of_state(error, str(error.sqlstate))
    if isinstance(error, TimeoutError):
        return TimedOut("the query took too long (postgres.query_timeout_s)")
    if isinstance(error, OSError | asyncpg.InternalClientError) or (
        lost and isinstance(error, asyncpg.InterfaceError)
    ):
        return gone(error)
    return error


def is_gone(error: Exception) -> bool:
    """Say whether an error means that Postgres can't be reached, and not that it refuses more."""
    state = str(getattr(error, "sqlstate", None) or "")
    return not state or state.startswith(_GONE)


def gone(error: BaseException) -> Unavailable:
    """Return the error for a Postgres that can't be reached."""
    return Unavailable(f"Postgres can't be reached: {told_of(error)}", retry_after_s=RETRY_S)


def _of_state(error: asyncpg.PostgresError, state: str) -> Exception:
    if state.startswith(_GONE):
        return gone(error)
    if state in _FULL:
        log.error("Postgres can't go on", extra={"error": told_of(error), "why": _FULL[state]})
        return Unavailable(f"Postgres can't go on: {_FULL[state]}", retry_after_s=1.0)
    if state in _TEXT:
        return InvalidData(f"a text can't be kept: {told_of(error)}")
    if state == "57014":
        return TimedOut("the query took too long, or was cancelled")
    if state in _AGAIN:
        return Busy("another transaction stood in the way", retry_after_s=AGAIN_S)
    kept: Exception = error
    return kept
