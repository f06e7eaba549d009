"""Logs somebody in with a server, by the MCP SDK: in the command, beside the person's browser."""

import asyncio
import html
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from mcp_types import LATEST_PROTOCOL_VERSION
from pydantic import AnyUrl

from ksi_daemon import __version__
from ksi_daemon.protocol import Failed, TimedOut, Unavailable
from ksi_mcp.client.keys import logins
from ksi_mcp.client.keys.logins import Login
from ksi_mcp.client.tools.text import cleaned

PERSON_S: Final = 600.0
REQUEST_S: Final = 30.0
MAX_LINE_BYTES: Final = 16 * 1024
DONE: Final = "You are logged in. This page can be closed."


class Kept:
    """What the SDK keeps while somebody logs in; nothing of an earlier login."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        """Return the tokens."""
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep the tokens."""
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return as whom we are known."""
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Keep as whom we are known."""
        self.client = client_info


async def log_in(url: str, file: Path, show: Callable[[str], Awaitable[None]]) -> None:
    """Log in with a server, and keep that.

    Args:
        url: The server's.
        file: Where it is kept.
        show: Shows the person where to log in.

    Raises:
        Failed: The server lets nobody log in, or not this person.
        TimedOut: The person didn't.
        Unavailable: It can't be reached.
    """
    kept = Kept()
    async with _answer_of_the_browser() as (redirect_url, answer):

        async def answered() -> AuthorizationCodeResult:
            async with asyncio.timeout(PERSON_S):
                return await answer

        provider = OAuthClientProvider(
            server_url=url,
            client_metadata=OAuthClientMetadata(
                client_name="KSI",
                redirect_uris=[AnyUrl(redirect_url)],
                grant_types=["authorization_code", "refresh_token"],
                response_types=["code"],
            ),
            storage=kept,
            redirect_handler=show,
            callback_handler=answered,
        )
        try:
            status = await _first_request(url, provider)
        except TimeoutError as error:
            raise TimedOut(f"nobody logged in within {PERSON_S:g} s") from error
        except httpx2.HTTPError as error:
            raise Unavailable(f"{url} can't be reached: {error}") from error
        except OAuthFlowError as error:
            raise Failed(cleaned(str(error), 1000)) from error
    if kept.tokens is None:
        raise Failed(f"the server wants no login (it answered with HTTP {status})")
    await asyncio.to_thread(logins.write, file, _login(url, provider, kept))


async def _first_request(url: str, provider: OAuthClientProvider) -> int:
    """Begin a conversation, for which one has to be logged in; returns the status."""
    begin = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": LATEST_PROTOCOL_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "ksi", "version": __version__},
        },
    }
    headers = {"accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(auth=provider, timeout=REQUEST_S) as client:
        return (await client.post(url, json=begin, headers=headers)).status_code


def _login(url: str, provider: OAuthClientProvider, kept: Kept) -> Login:
    metadata = provider.context.oauth_metadata
    tokens, client = kept.tokens, kept.client
    assert tokens is not None
    return Login(
        url=url,
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expires_at=time.time() + tokens.expires_in if tokens.expires_in else 0.0,
        token_endpoint=None if metadata is None else str(metadata.token_endpoint),
        client_id=(client.client_id or "") if client is not None else "",
        client_secret=client.client_secret if client is not None else None,
        client_method=(client.token_endpoint_auth_method or "none") if client else "none",
    )


@asynccontextmanager
async def _answer_of_the_browser() -> AsyncIterator[
    tuple[str, asyncio.Future[AuthorizationCodeResult]]
]:
    """Listen on loopback for whom the browser is sent back to, once."""
    answer: asyncio.Future[AuthorizationCodeResult] = asyncio.get_running_loop().create_future()

    async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            page, status = _taken(_query(await reader.readline()), answer)
            body = f"<!doctype html><title>KSI</title><p>{html.escape(page)}".encode()
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
            writer.write(body)
            await writer.drain()
        except (OSError, ValueError):
            pass  # whoever that was, it was not the browser
        finally:
            writer.close()

    server = await asyncio.start_server(heard, "127.0.0.1", 0, limit=MAX_LINE_BYTES)
    async with server:
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/callback", answer
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # it has been told already
            answer.cancel()


def _query(line: bytes) -> dict[str, str]:
    """Return what the first line of a request says behind its question mark."""
    words = line.decode("ascii", "replace").split()
    query = urlsplit(words[1]).query if len(words) > 1 else ""
    return {name: values[0] for name, values in parse_qs(query).items()}


def _taken(
    told: dict[str, str], answer: asyncio.Future[AuthorizationCodeResult]
) -> tuple[str, str]:
    """Hand on what the browser was sent back with; returns the page for it, and its status."""
    if answer.done() or not {"code", "error"} & told.keys():
        return "There is nothing here.", "404 Not Found"
    if "code" in told:
        answer.set_result(
            AuthorizationCodeResult(code=told["code"], state=told.get("state"), iss=told.get("iss"))
        )
        return DONE, "200 OK"
    why = cleaned(told.get("error_description", told["error"]), 500)
    answer.set_exception(OAuthFlowError(why))
    return why, "200 OK"
