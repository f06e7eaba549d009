"""What looks like a secret in what is said of a server."""

from typing import Any

import pytest

from ksi_daemon.protocol import Context, Event, InvalidData
from ksi_journal.rows import Rows
from ksi_mcp.client.keys.suspects import check_named, secrets_in, target_of
from ksi_mcp.events import McpAdd, McpServer

FAR = "https://far.test/mcp"
KEY = "s3cr3t-of-mine"


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_KEY",
        "AWS_ACCESS_KEY_ID",
        "GITHUB_PAT",
        "DB_PASS",
        "JWT",
        "MYSQL_PWD",
        "SENTRY_DSN",
        "apikey",
        "X_AUTH",
        "githubToken",
        "PRIVATE_KEY",
        "MyPassword",
        "CLIENT_SECRET",
    ],
)
def test_what_has_the_name_of_a_secret_is_to_be_named(name: str) -> None:
    with pytest.raises(InvalidData, match=f"the variable {name} has what looks like a secret"):
        check_named(McpServer(command="far", variables={name: KEY}))
    check_named(McpServer(command="far", variables={name: "${env:FAR}"}))


@pytest.mark.parametrize(
    "given",
    [
        {"url": f"{FAR}?tavilyApiKey={KEY}"},
        {"url": f"https://me:{KEY}@far.test/mcp"},
        {"url": f"https://{KEY}@far.test/mcp"},
        {"url": "https://far.test/s/NTk4Mzg0Nzpq3m2k1l4j5h6g7/mcp"},
        {"url": FAR, "headers": {"X-Auth": KEY}},
        {"url": FAR, "headers": {"Authorization": f"Bearer {KEY}${{env:X}}"}},
        {"url": FAR, "headers": {"Authorization": f"Bearer {KEY} ${{env:X}}"}},
        {"url": FAR, "headers": {"X-Whatever": "Bearer abc"}},
        {"command": "far", "args": ("--api-key", KEY)},
        {"command": "far", "args": (f"--api-key={KEY}",)},
        {"command": "docker", "args": ("run", "-e", f"GITHUB_TOKEN={KEY}", "far")},
        {"command": "npx", "args": ("mcp-remote", FAR, "--header", f"Authorization: Bearer {KEY}")},
        {"command": "far", "args": ("ghp_0123456789abcdef",)},
        {"command": "far", "args": (f"postgres://me:{KEY}@db.test/far",)},
        {"command": "far", "variables": {"DATABASE_URL": f"postgres://me:{KEY}@db.test/far"}},
        {"command": "far", "variables": {"HEADERS": f'{{"Authorization": "Bearer {KEY}"}}'}},
        {"command": "far", "variables": {"CONNECTION": f"host=db.test password={KEY}"}},
    ],
)
def test_what_looks_like_a_secret_is_refused_wherever_it_stands(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidData, match="name where it is") as refused:
        check_named(McpServer(**given))
    assert KEY not in refused.value.message


@pytest.mark.parametrize(
    "given",
    [
        {"url": "https://auth.far.test:8443/token/mcp?org=acme&tokenLimit=5"},
        {"url": f"{FAR}?apiKey=${{env:FAR_KEY}}", "headers": {"Accept": "text/plain"}},
        {"url": FAR, "headers": {"Authorization": "Bearer ${keyring:far}"}},
        {"url": FAR, "headers": {"Cookie": "session=${env:A}; other=${env:B}"}},
        {"command": "npx", "args": ("-y", "@modelcontextprotocol/server-filesystem", "/data")},
        {"command": "uvx", "args": ("--from", f"git+https://github.com/a/b@{'0a' * 20}", "far")},
        {"command": "docker", "args": ("run", "-i", "-e", "GITHUB_TOKEN", "ghcr.io/far/auth:1.2")},
        {"command": "far", "args": ("--key-file", "/run/key", "--token", "--quiet")},
        {
            "command": "far",
            "variables": {"MAX_TOKENS": "100000", "TOKEN_URL": FAR, "USE_AUTH": "no"},
        },
        {"command": "far", "variables": {"DATABASE_URL": "postgres://me:${env:PW}@db.test/far"}},
        {"command": "far", "variables": {"GOOGLE_APPLICATION_CREDENTIALS": "/home/me/far.json"}},
        {"command": "far", "variables": {"TOKENIZER": "words", "DB": "postgres://me@db.test/far"}},
    ],
)
def test_what_is_none_is_taken(given: dict[str, Any]) -> None:
    check_named(McpServer(**given))


def test_what_is_refused_is_not_in_the_journal_either() -> None:
    server = McpServer(
        url=f"{FAR}?key={KEY}", args=(KEY,), headers={"X": KEY}, variables={"X": KEY}
    )
    event = Event("mcp:add", McpAdd(name="far", server=server), Context(id="1"))

    assert KEY.encode() not in Rows(10_000, 10_000).line(event)


@pytest.mark.parametrize("bit", ["key=", "a://b@", "key='"])
def test_what_is_very_long_is_looked_at_but_once(bit: str) -> None:
    assert len(secrets_in("", bit * 20_000)) <= 20_000  # nobody would see the end of it otherwise


def test_what_is_shown_of_a_server_has_no_secret_but_says_where_it_is() -> None:
    far = McpServer(url=f"https://me:{KEY}@far.test/mcp?org=a&key={KEY}&other_key=${{env:X}}")
    near = McpServer(command="near", args=("--api-key", KEY, "--tag=a", "-v", f"--pass={KEY}"))

    assert (
        target_of(far) == "https://me:********@far.test/mcp?org=a&key=********&other_key=${env:X}"
    )
    assert target_of(near) == "near --api-key ******** --tag=a -v --pass=********"
