"""A program starts ``ksi mcp`` and speaks with it on standard input and output."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

from ksi_mcp.stdio import MAX_LINE_BYTES, Lines
from ksi_mcp.tests.server.conftest import MODERN, text_of
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

SETTINGS = (
    'daemon.plugins=["system","postgres","workflows","models","tools","mcp"]',
    "models.find_local=false",
    "models.keyring=false",
)


def told_by(environment: dict[str, str], *words: str) -> str:
    """Return what a command says."""
    command = [sys.executable, "-P", "-m", "ksi_cli", *words]
    given = {**os.environ, **environment}
    return subprocess.run(command, env=given, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def environment(
    _postgres_loop: _Loop, postgres_server: TestServer, engine_template: str
) -> Iterator[dict[str, str]]:
    """The environment of a home in which no daemon runs yet."""
    logins = _postgres_loop.run(fresh_database(postgres_server, engine_template))
    with tempfile.TemporaryDirectory(prefix="ksi-mcp-") as folder:
        given = {"KSI_HOME": folder, "PATH": os.environ["PATH"], "HOME": folder}
        for setting in (*settings_for(logins), *SETTINGS):
            name, _, value = setting.partition("=")
            given[f"KSI_{name.replace('.', '_').upper()}"] = value
        try:
            yield given
        finally:
            told_by(given, "stop")
    _postgres_loop.run(drop_database(postgres_server, logins))


async def test_a_program_starts_it_and_the_daemon_with_it_and_may_do_what_it_is_told(
    environment: dict[str, str],
) -> None:
    def program(*options: str) -> Client:
        command = ["-P", "-m", "ksi_cli", "mcp", *options]
        server = StdioServerParameters(command=sys.executable, args=command, env=environment)
        return Client(stdio_client(server), mode=MODERN)

    async with program() as client:
        names = {each.name for each in (await client.list_tools()).tools}
        now = await client.call_tool("current_time", {"timezone": "Europe/Oslo"})
    async with program("--scope", "system:read", "--user", "ann") as client:
        few = {each.name for each in (await client.list_tools()).tools}
        health = await client.call_tool("system_health", {})
        with pytest.raises(MCPError, match="no tool 'current_time'"):
            await client.call_tool("current_time", {})
        denied = await client.call_tool("look", {"event": "tool:calls"})
    tokens = told_by(environment, "token", "list", "--json")

    assert {"current_time", "action", "system_health"} <= names
    assert "T" in text_of(now)
    assert few == {"look", "action", "system_describe", "system_discover", "system_health"}
    assert health.structured_content is not None
    assert health.structured_content["state"] == "ready"
    assert denied.is_error
    assert "tools:read" in text_of(denied)
    assert "mcp-" not in tokens  # it went with its program


async def test_a_line_that_is_too_long_is_none(tmp_path: Path) -> None:
    long = b'{"a":"' + b"x" * (3 * MAX_LINE_BYTES) + b'"}\n'

    lines = [line async for line in Lines(io.BytesIO(long + b'{"b":1}\n' + long[:-1]))]

    assert lines == ["{too long\n", '{"b":1}\n']


def test_what_speaks_mcp_is_imported_when_somebody_does() -> None:
    early = "ksi_mcp.plugin, ksi_mcp.http, ksi_mcp.commands"
    words = f"import sys, {early}; print({{'mcp', 'mcp_types', 'pydantic'}} & sys.modules.keys())"
    command = [sys.executable, "-c", words]

    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert told == "set()\n"
