"""Sends a login's token with each request, and has it renewed in time.

Not the SDK's provider, which would look for the servers of others' choice and ask a person whenever
a token isn't taken: the daemon renews tokens where somebody once logged in, and does no more.
"""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import anyio
import httpx2
import msgspec
from msgspec import Struct, structs

from ksi_mcp.client.keys import logins
from ksi_mcp.client.keys.logins import Login
from ksi_mcp.client.wires.by_http import Endpoint
from ksi_mcp.lines import Bounds

RENEW_S: Final = 20.0
MAX_BYTES: Final = 65_536


class Renewed(Struct, frozen=True):
    """What a server answers that renews a token."""

    access_token: str
    expires_in: float | None = None
    refresh_token: str | None = None


class Bearer(httpx2.Auth):
    """A login with a server.

    Args:
        file: Where it is kept; read each time, since somebody may log in meanwhile.
        url: The server's.
        note: Told what is secret of it.
    """

    def __init__(self, file: Path, url: str, note: Callable[..., None]) -> None:
        self._file = file
        self._url = url
        self._note = note
        self._renewing = asyncio.Lock()

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Send a request with the token; once more with a new one where that isn't taken."""
        login = await self._read()
        if login is not None and login.is_expiring and login.can_be_renewed:
            async with self._renewing:
                login = await self._read() or login
                if login.is_expiring and login.can_be_renewed:
                    login = await self._renewed(login) or login
        response = yield _with(request, login)
        if response.status_code != 401 or login is None or not login.can_be_renewed:
            return
        async with self._renewing:
            newer = await self._read()
            if newer is None or newer.access_token == login.access_token:
                newer = await self._renewed(login)
        yield _with(request, newer or login)  # in any case: the last answer is what the caller gets

    async def _read(self) -> Login | None:
        login = await asyncio.to_thread(logins.read, self._file, self._url)
        if login is not None:
            self._note(login.access_token, login.refresh_token, login.client_secret)
        return login

    async def _renewed(self, login: Login) -> Login | None:
        """Have a token renewed, and keep that, if it can be.

        Whoever asked for it may give up meanwhile: the server may not know the old one any more, so
        the new one is waited for and kept all the same.
        """
        with anyio.CancelScope(shield=True):
            told = await _answer(_renewal(login))
            if told is None:
                return None
            made = structs.replace(
                login,
                access_token=told.access_token,
                refresh_token=told.refresh_token or login.refresh_token,
                expires_at=time.time() + told.expires_in if told.expires_in else 0.0,
            )
            await asyncio.to_thread(logins.write, self._file, made)
        self._note(made.access_token, made.refresh_token)
        return made


async def _answer(request: httpx2.Request) -> Renewed | None:
    """Return what is answered to a request for a new token, if that is one."""
    transport = Endpoint("", Bounds(MAX_BYTES), httpx2.AsyncHTTPTransport())
    try:
        async with httpx2.AsyncClient(
            transport=transport, timeout=RENEW_S, headers={"accept-encoding": "identity"}
        ) as client:
            response = await client.send(request)
            if response.status_code != 200:
                return None
            return msgspec.json.decode(await response.aread(), type=Renewed)
    except (msgspec.DecodeError, httpx2.HTTPError):
        return None


def _with(request: httpx2.Request, login: Login | None) -> httpx2.Request:
    if login is not None:
        request.headers["authorization"] = f"Bearer {login.access_token}"
    return request


def _renewal(login: Login) -> httpx2.Request:
    """Make the request for a new token (RFC 6749, section 6; RFC 8707)."""
    data = {
        "grant_type": "refresh_token",
        "refresh_token": login.refresh_token or "",
        "resource": login.url,
    }
    headers = {"accept": "application/json"}
    if login.client_method == "client_secret_basic":
        pair = f"{quote(login.client_id, safe='')}:{quote(login.client_secret or '', safe='')}"
        headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        data["client_id"] = login.client_id
        if login.client_method == "client_secret_post":
            data["client_secret"] = login.client_secret or ""
    return httpx2.Request("POST", login.token_endpoint or "", data=data, headers=headers)
