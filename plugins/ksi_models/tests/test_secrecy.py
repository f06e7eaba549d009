"""Keys are nowhere to be found but where models are asked."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from ksi_client import AsyncClient, EventClient, KsiError, UnixTransport
from ksi_daemon.testing import DaemonProcess, ExecutedDaemon, write_entry_points
from ksi_postgres.logins import Logins

KEYS: Final = {
    "environment": "sk-ENVIRONMENT-5f2c81d09a",
    "settings": "sk-SETTINGS-77ab30ce14",
    "file": "sk-FILE-c19e55d2b8",
    "header": "HEADER-0b7734fe12",
    "unused": "sk-UNUSED-41d8aa90c3",
}
SAID: Final = {"role": "user", "parts": [{"kind": "text", "text": "hello"}]}
ROWS: Final = """
SELECT format('%I.%I', n.nspname, c.relname) AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND (n.nspname LIKE 'ksi%' OR n.nspname = 'dbos')
"""


class Echo(BaseHTTPRequestHandler):
    """Refuses every key, and repeats it in the body, the headers and the reason."""

    seen: list[str] = []  # noqa: RUF012  one for all requests

    def do_POST(self) -> None:
        """Refuse."""
        key = self.headers.get("Authorization", "") + " " + self.headers.get("X-Extra", "")
        self.seen.append(key)
        told = {"error": {"message": f"Incorrect API key: {key}", "code": key, "key": key}}
        body = json.dumps(told).encode()
        self.send_response(401, f"Refused {key}")
        self.send_header("X-Key", key)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Refuse."""
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a provider that repeats keys."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, name="echo")
    thread.start()
    Echo.seen.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def daemon_process(ksi_home: Path) -> Iterator[DaemonProcess]:
    """A daemon whose environment the system shows."""
    made = ExecutedDaemon(ksi_home)
    yield made
    made.stop()


@pytest.fixture
def started(
    daemon_process: DaemonProcess, echo: str, tmp_path: Path, database_logins: Logins
) -> DaemonProcess:
    """A daemon with keys from everywhere, a plugin in a host, and a journal that keeps all."""
    file = tmp_path / "key"
    file.write_text(KEYS["file"])
    write_entry_points(tmp_path, visitor="visitor_plugin")
    providers = {
        "one": {"base_url": echo},
        "two": {"base_url": echo, "key": KEYS["settings"]},
        "three": {"base_url": echo, "key_file": str(file), "headers": {"X-Extra": KEYS["header"]}},
    }
    daemon_process.environ = {
        "KSI_DATABASE_URL": database_logins.admin,
        "KSI_MODELS_PROVIDERS": json.dumps(providers),
        "ONE_API_KEY": KEYS["environment"],
        "ANTHROPIC_API_KEY": KEYS["unused"],
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parent}",
    }
    settings = {
        "models.keyring": "false",
        "models.find_local": "false",
        "log.level": "debug",
        "journal.events": "*",
        "journal.leave_out": "",
        "visitor.isolate": "true",
        "visitor.environment": "PYTHONPATH",
        "daemon.plugins": "system,postgres,journal,checkpoint,workflows,models,visitor",
    }
    arguments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    daemon_process.start(*arguments)
    return daemon_process


def family_of(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def read(file: Path) -> str:
    """Return what a file holds, as far as it can be read."""
    try:
        return file.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


async def everything_in(logins: Logins) -> str:
    """Return all rows of all tables."""
    connection = await asyncpg.connect(logins.admin)
    try:
        texts = []
        for table in await connection.fetch(ROWS):
            rows = await connection.fetch(f"SELECT t::text FROM {table['name']} t")  # noqa: S608  its own tables
            texts += [row[0] for row in rows]
        return "\n".join(texts)
    finally:
        await connection.close()


async def use(client: AsyncClient) -> list[Any]:
    """Do all that could show a key; return all that came of it."""
    seen: list[Any] = []
    for model in ("one:m", "two:m", "three:m"):
        try:
            call = {"model": model, "messages": [SAID], "timeout_s": 5}
            seen += [chunk async for chunk in client.stream("model:call", call)]
        except KsiError as error:
            seen.append((str(error), error.details))
    for event, data in (
        ("model:check", {"model": "one:m"}),
        ("model:list", {}),
        ("model:describe", {}),
        ("model:usage", {}),
        ("system:config", {}),
        ("system:discover", {}),
        ("system:health", {}),
        ("system:plugins", {}),
        ("system:stats", {}),
        ("checkpoint:create", {}),
        ("visitor:look", {}),
    ):
        seen.append(await client.request(event, data))
    return seen


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
async def test_keys_are_in_no_event_log_error_journal_row_child_or_host(
    started: DaemonProcess, database_logins: Logins
) -> None:
    assert started.process is not None
    listened: list[Any] = []

    async with (
        AsyncClient(UnixTransport(started.socket)) as client,
        EventClient(UnixTransport(started.socket)) as listener,
        asyncio.TaskGroup() as tasks,
    ):
        ready = asyncio.Event()
        task = tasks.create_task(_listen(listener, listened, ready), name="listen")
        await ready.wait()
        seen = await use(client)
        look = seen[-1]
        family = family_of(started.process.pid)
        environs = [read(Path(f"/proc/{pid}/environ")) for pid in family]
        started_with = read(Path(f"/proc/{started.process.pid}/environ"))
        task.cancel()
    started.kill(15)
    searched = {
        "answers": str(seen),
        "events": str(listened),
        "log": read(started.home / "log" / "daemon.log"),
        "rows": await everything_in(database_logins),
        "children": "\n".join(environs),
        "files": "\n".join(read(file) for file in started.home.rglob("*") if file.is_file()),
    }

    # The search would find them, and they were used.
    assert KEYS["environment"] in started_with
    assert [
        key for name, key in KEYS.items() if name != "unused" and key not in str(Echo.seen)
    ] == []
    assert look["pid"] in family
    assert "hello" in searched["answers"] or "refused" in searched["answers"].lower()
    assert "model:called" in searched["events"]
    assert "model:called" in searched["rows"]
    assert "ready" in searched["log"]
    found = [
        (place, name)
        for place, text in searched.items()
        for name, key in KEYS.items()
        if key in text or key.partition("-")[2] in text
    ]
    assert found == []


async def _listen(client: EventClient, listened: list[Any], ready: asyncio.Event) -> None:
    await client.subscribe("*")
    await client.subscribe("*", outcomes=True)
    ready.set()
    async for event in client.events():
        listened.append(event)  # noqa: PERF401  it never ends by itself
