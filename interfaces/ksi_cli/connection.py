"""Connects a command to the daemon."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ksi_cli import output
from ksi_cli.output import NotRunning, UsageError
from ksi_client import Client, Unavailable
from ksi_client.sync import inherited_token

if TYPE_CHECKING:  # it brings asyncio, which most commands do without
    from ksi_client import AsyncClient


def connect(*, timeout_s: float | None = 300.0) -> Client:
    """Connect to the daemon of ``KSI_HOME``, as whom the file of ``KSI_TOKEN_FILE`` says.

    Raises:
        NotRunning: No daemon listens.
        UsageError: The token's file can't be read.
    """
    token = given_token()
    try:
        return Client(token=token, timeout_s=timeout_s)
    except Unavailable as error:
        raise _not_running(error) from error


@asynccontextmanager
async def connect_async() -> "AsyncIterator[AsyncClient]":
    """Connect as `connect` does, and find the daemon again whenever it goes away.

    Raises:
        NotRunning: No daemon listens.
        UsageError: The token's file can't be read.
    """
    from ksi_client import AsyncClient  # noqa: PLC0415  it brings asyncio

    client = AsyncClient(token=given_token() or "", on_error=lambda _: None)
    try:
        await client.__aenter__()
    except Unavailable as error:
        raise _not_running(error) from error
    try:
        yield client
    finally:
        await client.__aexit__(None, None, None)


def show_answer(
    event: str, data: Any, kind: Any, text: Callable[[Any], str], *, as_json: bool
) -> None:
    """Send one event and show its answer."""
    with connect() as client:
        answer = client.request(event, data, result_type=kind)
    output.show(answer, text, as_json=as_json)


def given_token() -> str | None:
    """Return the token in the file that ``KSI_TOKEN_FILE`` names, if it names one.

    Raises:
        UsageError: The file can't be read.
    """
    try:
        return inherited_token()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"the token's file, KSI_TOKEN_FILE, can't be read: {why}") from error


def _not_running(error: Unavailable) -> Unavailable | NotRunning:
    if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
        return NotRunning(error.message, retry_after_s=error.retry_after_s)
    return error
