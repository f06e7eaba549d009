"""Secrets that servers are handed, and what becomes of them in what these say."""

import sys
from pathlib import Path

import pytest

from ksi_mcp.client.errors import AnswerError
from ksi_mcp.client.keys.references import Secrets
from ksi_mcp.events import McpServer
from ksi_mcp.tests.client.conftest import FAULTY, Connected, faulty


async def test_what_was_handed_over_is_masked_however_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("-----BEGIN-----\nMIIEvQ+IBADANB\n-----END-----\n")
    monkeypatch.setenv("QUERY", "a&b=c+d")
    secrets = Secrets()
    url = await secrets.filled("the URL", "https://x.test?a=${env:QUERY}", in_url=True)
    both = await secrets.all_filled({"PEM": f"${{file:{key}}} ${{env:QUERY}}"})

    assert url == "https://x.test?a=a%26b%3Dc%2Bd"
    assert both["PEM"].endswith("-----END----- a&b=c+d")
    assert secrets.masked("a&b=c+d, a%26b%3Dc%2Bd, a&b") == "********, ********, a&b"
    assert secrets.masked("key MIIEvQ+IBADANB") == "key ********"
    told = {"isError": True, "content": [{"a&b=c+d": "no a&b=c+d", "n": 1}]}
    assert secrets.masked_all(told)["content"] == [{"********": "no ********", "n": 1}]


async def test_a_server_s_results_errors_and_progress_have_no_secret_that_it_got(
    connected: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_KEY", "not so")  # as the server says of a call that is wrong
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_0123456789")
    server = faulty(
        tmp_path / "faulty",
        variables={"KEY": "${env:OF_THE_KEY}", "OTHER_KEY": "of-the-settings"},
        environment=("GITHUB_TOKEN", "LANGUAGE"),
    )
    text = "not so, ghp_0123456789, of-the-settings, en"
    async with connected(server) as (connection, told):
        result = await connection.call("fail", {"text": text}, told.progressed)
        with pytest.raises(AnswerError) as error:
            await connection.call("rpc_error", {}, told.progressed)

    assert result["content"][0]["text"] == "********, ********, ********, en"
    assert "not so" not in str(error.value)


async def test_a_server_s_arguments_may_name_secrets(
    connected: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR", str(tmp_path))
    args = ("-I", "-S", FAULTY, "${env:FAR}")
    async with connected(McpServer(command=sys.executable, args=args, handshake="legacy")):
        pass

    assert (tmp_path / "started").exists()
