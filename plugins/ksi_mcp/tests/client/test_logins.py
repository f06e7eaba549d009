"""Logging in with a server, and staying so."""

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import anyio
import httpx2
import pytest
from aiohttp import web

from ksi_daemon.protocol import Failed
from ksi_mcp.client.errors import AnswerError
from ksi_mcp.client.keys import logins
from ksi_mcp.client.keys.login import log_in
from ksi_mcp.client.keys.logins import Login
from ksi_mcp.client.wires.bearer import Bearer
from ksi_mcp.events import McpServer
from ksi_mcp.tests.client.conftest import Connected
from ksi_mcp.tests.client.test_http import Far


class Guarded(Far):
    """A server that wants a token, and gives them out itself."""

    def __init__(self) -> None:
        super().__init__()
        self.valid = "token-1"
        self.renewals: list[dict[str, str]] = []
        self.root = ""
        self.is_renewing = asyncio.Event()
        self.may_renew = asyncio.Event()
        self.may_renew.set()

    async def post(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.valid}":
            where = f'Bearer resource_metadata="{self.root}/.well-known/oauth-protected-resource"'
            return web.Response(status=401, headers={"WWW-Authenticate": where})
        return await super().post(request)

    async def resource(self, request: web.Request) -> web.Response:
        return web.json_response({"resource": self.url, "authorization_servers": [self.root]})

    async def issuer(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": self.root,
                "authorization_endpoint": f"{self.root}/authorize",
                "token_endpoint": f"{self.root}/token",
                "registration_endpoint": f"{self.root}/register",
                "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    async def register(self, request: web.Request) -> web.Response:
        given = await request.json()
        made = {"client_id": "ksi-1", "token_endpoint_auth_method": "none"}
        return web.json_response({**given, **made}, status=201)

    async def token(self, request: web.Request) -> web.Response:
        given = {name: str(value) for name, value in (await request.post()).items()}
        self.renewals.append(given)
        self.is_renewing.set()
        await self.may_renew.wait()
        if given["grant_type"] == "refresh_token" and given["refresh_token"] != "again-1":
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response(
            {
                "access_token": self.valid,
                "token_type": "Bearer",
                "expires_in": 3600,
                "refresh_token": "again-1",
            }
        )


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    """Run a server that wants a token."""
    made = Guarded()
    app = web.Application()
    app.router.add_post("/mcp", made.post)
    app.router.add_get("/.well-known/oauth-protected-resource", made.resource)
    app.router.add_get("/.well-known/oauth-authorization-server", made.issuer)
    app.router.add_post("/register", made.register)
    app.router.add_post("/token", made.token)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    made.root = f"http://{host}:{port}"
    made.url = f"{made.root}/mcp"
    yield made
    await runner.cleanup()


def sent_back_to(url: str, **more: str) -> tuple[str, dict[str, str]]:
    """Return where the page to log in sends the browser, and with what."""
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    return asked["redirect_uri"], {"state": asked["state"], **more}


async def browse(url: str, query: dict[str, str]) -> tuple[int, str]:
    """Go where a browser is sent."""
    async with aiohttp.ClientSession() as browser, browser.get(url, params=query) as response:
        return response.status, await response.text()


def guarded_server(guarded: Guarded) -> McpServer:
    """Return how it is reached."""
    return McpServer(url=guarded.url, oauth=True, handshake="legacy")


async def test_somebody_logs_in_and_the_daemon_calls_in_their_name(
    guarded: Guarded, connected: Connected, tmp_path: Path
) -> None:
    file = tmp_path / "logins" / "far.json"
    pages: list[Any] = []

    async def person(url: str) -> None:
        where, query = sent_back_to(url, code="code-1")
        pages.append(await browse(where, {}))
        pages.append(await browse(where, query))

    await log_in(guarded.url, file, person)
    async with connected(guarded_server(guarded), login=file) as (connection, told):
        result = await connection.call("echo", {}, told.progressed)

    assert result["content"][0]["text"] == "done"
    assert [status for status, _ in pages] == [404, 200]
    assert guarded.renewals[0]["code"] == "code-1"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    login = logins.read(file, guarded.url)
    assert login is not None
    assert login.token_endpoint == f"{guarded.root}/token"
    assert logins.read(file, "https://elsewhere.test/mcp") is None


async def test_one_who_refuses_is_not_logged_in(guarded: Guarded, tmp_path: Path) -> None:
    async def person(url: str) -> None:
        where, query = sent_back_to(url, error="access_denied", error_description="No <b>way</b>")
        _, page = await browse(where, query)
        assert "No &lt;b&gt;way" in page

    with pytest.raises(Failed, match="No <b>way</b>"):
        await log_in(guarded.url, tmp_path / "far.json", person)
    assert logins.read(tmp_path / "far.json", guarded.url) is None


def logged_in(guarded: Guarded, file: Path, **more: Any) -> None:
    """Leave a login, as a command has made it once."""
    login = Login(
        url=guarded.url,
        access_token="token-0",
        refresh_token="again-1",
        token_endpoint=f"{guarded.root}/token",
        client_id="ksi-1",
    )
    logins.write(
        file, Login(**{**{name: getattr(login, name) for name in login.__struct_fields__}, **more})
    )


@pytest.mark.parametrize("ended_s_ago", [None, 10.0])
async def test_a_token_is_renewed_once_and_kept(
    guarded: Guarded, connected: Connected, tmp_path: Path, ended_s_ago: float | None
) -> None:
    file = tmp_path / "far.json"
    expires_at = 0.0 if ended_s_ago is None else time.time() - ended_s_ago
    logged_in(guarded, file, expires_at=expires_at)
    async with (
        connected(guarded_server(guarded), login=file) as (connection, told),
        asyncio.TaskGroup() as group,
    ):
        for _ in range(3):
            group.create_task(connection.call("echo", {}, told.progressed))

    assert len(guarded.renewals) == 1
    login = logins.read(file, guarded.url)
    assert login is not None
    assert login.access_token == "token-1"


async def test_a_token_that_is_renewed_is_kept_though_nobody_waits_any_more(
    guarded: Guarded, tmp_path: Path
) -> None:
    file = tmp_path / "far.json"
    logged_in(guarded, file)
    guarded.may_renew.clear()
    bearer = Bearer(file, guarded.url, lambda *_: None)
    async with httpx2.AsyncClient(auth=bearer) as client, anyio.create_task_group() as group:
        group.start_soon(client.post, guarded.url)
        await guarded.is_renewing.wait()
        group.cancel_scope.cancel()  # as when a connection is ended
        guarded.may_renew.set()

    login = logins.read(file, guarded.url)
    assert login is not None
    assert login.access_token == "token-1"


async def test_the_token_is_masked_in_what_the_server_says(
    guarded: Guarded, connected: Connected, tmp_path: Path
) -> None:
    async def said(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        text = f"You sent {request.headers['Authorization']}."
        return guarded.said(message["id"], {"content": [{"type": "text", "text": text}]})

    file = tmp_path / "far.json"
    logged_in(guarded, file)
    guarded.answer = said
    async with connected(guarded_server(guarded), login=file) as (connection, told):
        result = await connection.call("echo", {}, told.progressed)

    assert result["content"][0]["text"] == "You sent Bearer ********."


async def test_a_server_that_wants_to_know_who_calls_is_told_of_with_what_to_do(
    guarded: Guarded, connected: Connected, tmp_path: Path
) -> None:
    for headers, told in (({}, "added with --oauth"), ({"X-Key": "old"}, "what its headers have")):
        without = McpServer(url=guarded.url, headers=headers, handshake="legacy")
        async with connected(without) as (connection, _):
            assert told in str(connection.why)
    file = tmp_path / "far.json"
    logged_in(guarded, file, access_token="token-1", refresh_token=None)
    async with connected(guarded_server(guarded), login=file) as (connection, calls):
        guarded.valid = "another"
        with pytest.raises(AnswerError, match="log in with ksi mcp login faulty"):
            await connection.call("echo", {}, calls.progressed)


async def test_where_nobody_is_logged_in_any_more_is_told_what_to_do(
    guarded: Guarded, connected: Connected, tmp_path: Path
) -> None:
    file = tmp_path / "far.json"
    logged_in(guarded, file, refresh_token="long ago")
    async with connected(guarded_server(guarded), login=file) as (connection, _):
        pass

    assert "log in with ksi mcp login faulty" in str(connection.why)
