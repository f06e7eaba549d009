"""The monitor beside a real daemon: what it comes to know, and what its keys do there."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_agents.tests.helpers import document
from ksi_cli.terminal import terminal
from ksi_cli.testing import KsiCommand
from ksi_client import AsyncClient, Context, Denied, Event, LocalTransport, UnixTransport
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_contributor, event_handler
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Failed
from ksi_daemon.testing import installed_plugins, module_plugin, running_daemon
from ksi_system.events import HealthChecked
from ksi_tui.app import Monitor
from ksi_tui.model.known import Known
from ksi_tui.screens.dialogs import Confirm
from ksi_tui.screens.overview import shown_of
from ksi_tui.watcher import Watcher
from ksi_tui.widgets.rows import Rows

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("postgres", "workflows", "models", "tools", "completion", "agents", "journal")


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_plugins(request: pytest.FixtureRequest) -> list[EntryPoint]:
    """Agents and what they need, where a test has to do with them; else what fails and floods."""
    if "with_agents" in request.fixturenames:
        return installed_plugins(*NEEDED)

    @event_handler("try:fail")
    def fail() -> None:
        raise Failed("it is broken")

    @event_handler("try:deny")
    def deny() -> None:
        raise Denied("not you")

    @event_handler("try:well")
    def well() -> dict[str, int]:
        return {"n": 1}

    @event_contributor("health:check")
    def check() -> HealthChecked:
        return HealthChecked()

    return [module_plugin("try", fail=fail, deny=deny, well=well, check=check)]


@pytest.fixture
def with_agents() -> None:
    """Agents are wanted."""


@asynccontextmanager
async def watching(transport: Any, **options: Any) -> AsyncIterator[Watcher]:
    """Follow a daemon; it is there, and was asked who it is, when the block begins."""
    watcher = Watcher(Known(), transport, **options)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watcher.run(), name="watcher")
        try:
            await until(lambda: watcher.known.stats is not None)
            yield watcher
        finally:
            running.cancel()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  of what is counted and drawn there are no events
            await asyncio.sleep(0.01)


def names(watcher: Watcher) -> list[str]:
    watcher.known.frame()
    return [seen.name for seen in watcher.known.feed.newest()]


async def test_events_are_seen_with_their_outcomes_and_its_own_questions_are_not(
    daemon: Daemon, client: AsyncClient
) -> None:
    async with watching(LocalTransport(daemon)) as watcher:
        await client.request("try:well")
        for event in ("try:fail", "try:deny"):
            with pytest.raises((Failed, Denied)):
                await client.request(event)
        await client.publish("try:told", {"text": "\x1b[31m"})
        await watcher.ask("system:config", {})
        await client.request("system:plugins")
        await until(lambda: watcher.known.feed.seen >= 5)
        seen = names(watcher)
        by_name = {each.name: each for each in watcher.known.feed.newest()}

        assert seen == ["system:plugins", "try:told", "try:deny", "try:fail", "try:well"]
        assert by_name["try:well"].outcome == "ok"
        assert (by_name["try:fail"].outcome, by_name["try:fail"].severity) == ("failed", "error")
        assert (by_name["try:deny"].outcome, by_name["try:deny"].severity) == ("denied", "warning")
        assert by_name["try:told"].outcome is None
        assert by_name["try:told"].payload == '{"text":"\\u001b[31m"}'
        assert watcher.known.errors.last_minute(watcher.clock()) == 1
        assert watcher.known.health is not None
        assert watcher.known.agents is None  # no plugin answers that


async def test_a_flood_is_counted_whole_shown_as_a_sample_and_takes_bounded_room(
    daemon: Daemon, client: AsyncClient
) -> None:
    async with watching(LocalTransport(daemon)) as watcher:
        for number in range(5000):
            client.emit_now("router:publish", {"event": "try:flood", "data": {"n": number}})
        feed = watcher.known.feed
        await until(lambda: feed.seen + feed.missed >= 5000)
        held = feed.waiting
        feed.frame()

        assert feed.seen + feed.missed == 5000
        assert held <= 80
        assert len(feed) <= 80
        assert feed.one_of > 50 or feed.missed > 0


async def test_events_that_the_connection_could_not_carry_are_counted() -> None:
    watcher = Watcher(Known(), UnixTransport("nowhere"))

    watcher.see(Event("router:lagged", {"missed": 7}, Context("a")))
    watcher.see(Event("router:lagged", {"missed": 2}, Context("b")))

    assert shown_of(watcher.known.feed) == "0 seen · 9 missed"


async def test_a_daemon_that_is_stopped_and_comes_back_is_followed_again(tmp_path: Path) -> None:
    home = tmp_path / "h"
    home.mkdir()
    known = Known()
    watcher = Watcher(known, UnixTransport(home / "run" / "ksi.sock"))
    states = []
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watcher.run(), name="watcher")
        await until(lambda: known.link.state == "away")
        states.append(known.link.why)
        for _ in range(2):
            async with running_daemon(home):
                await until(lambda: known.link.state == "here" and known.health is not None)
                states.append("here")
            await until(lambda: known.link.state == "away")
            states.append("away" if known.health is None else "still well")
        running.cancel()

    assert "start it with: ksi start" in states[0]
    assert states[1:] == ["here", "away", "here", "away"]


async def test_one_that_may_see_little_is_shown_that_little(
    daemon: Daemon, client: AsyncClient
) -> None:
    grants = {"call": ["system:hello", "system:health", "system:stats"], "subscribe": ["try:*"]}
    made = await client.request("token:create", {"name": "guest", "ttl_s": 60, "grants": grants})

    options = {"token": made["token"]}
    transport = UnixTransport(daemon.home.socket)
    async with watching(transport, **options) as all_of_it:
        pass
    async with watching(transport, **options, pattern="try:*") as watcher:
        await client.request("try:well")
        await until(lambda: watcher.known.feed.seen > 0)

        assert "may not subscribe to *" in all_of_it.known.no_events
        assert all_of_it.known.greeting is not None
        assert names(watcher) == ["try:well"]
        assert watcher.known.no_events == ""
        assert watcher.known.agents is None


async def test_a_token_that_is_not_valid_is_said_to_be_refused(daemon: Daemon) -> None:
    watcher = Watcher(Known(), UnixTransport(daemon.home.socket), token="nonsense")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watcher.run(), name="watcher")
        await until(lambda: watcher.known.link.state == "refused")
        running.cancel()

    assert "token" in watcher.known.link.why


async def test_agents_are_watched_paused_and_ended_from_the_monitor(
    with_agents: None, daemon: Daemon, client: AsyncClient
) -> None:
    clerk = document(model="test/echo")
    for name in ("alice", "bob"):
        await client.request("agent:spawn", {"document": clerk, "name": name, "wait_s": 10})
    await client.request("agent:ask", {"agent": "bob", "prompt": "[red]earlier[/]"})
    app = Monitor(Watcher(Known(), LocalTransport(daemon)))
    async with app.run_test(size=(140, 40)) as pilot:
        known = app.known
        await until(lambda: known.agents is not None and known.tokens.last_minute(_now(app)) > 0)
        earlier = known.tokens_of("bob", _now(app))
        await client.request("agent:ask", {"agent": "bob", "prompt": "now"})
        await until(lambda: known.tokens_of("bob", _now(app)) > earlier)
        await pilot.press("2", "down", "right_square_bracket")
        table = app.screen.query_one("#agent-list", Rows)
        text = app.screen.query_one("#agent-text")
        await until(lambda: "[red]earlier[/]" in str(text.render()))
        await pilot.press("p")
        await until(lambda: _agent(known, "bob").desired == "paused")
        await pilot.press("t")
        await until(lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(lambda: [row.key for row in table.rows] == ["alice"])
        await until(lambda: known.runs is not None and len(known.runs) >= 2)
        await pilot.pause()

        assert earlier > 0
        assert [each.name for each in known.agents or ()] == ["alice"]
        assert {run.status for run in known.runs or ()} == {"finished"}
        assert known.providers is not None
        assert [each.name for each in known.providers] == ["test"]


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def ksi(ksi_home: Path, tmp_path: Path) -> KsiCommand:
    return KsiCommand(ksi_home, tmp_path)


def test_without_a_daemon_the_monitor_says_so_offers_to_start_it_and_waits(
    ksi: KsiCommand,
) -> None:
    line = [sys.executable, str(ROOT / "interfaces" / "monitor_tui.py")]
    with terminal(line, ksi.environ) as monitor:
        monitor.until("no daemon listens on")
        monitor.until("s starts it")
        monitor.type("q")
        code = monitor.wait()

    assert code == 0
    assert monitor.raw.endswith(b"\x1b[?1049l") or b"\x1b[?1049l" in monitor.raw[-400:]


def test_without_a_terminal_the_monitor_names_what_can_be_used_instead(ksi: KsiCommand) -> None:
    bare, as_json = ksi("monitor"), ksi("monitor", "--json")

    assert (bare.code, as_json.code) == (2, 2)
    assert "needs a terminal" in bare.err
    assert "ksi listen --json" in as_json.out


def test_textual_is_imported_only_once_the_monitor_is_shown() -> None:
    words = "import sys, ksi_tui.command; print('textual' in sys.modules, 'asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, check=True, text=True)

    assert done.stdout == "False False\n"


def _now(app: Monitor) -> float:
    return app.watcher.clock()


def _agent(known: Known, name: str) -> Any:
    return next(each for each in known.agents or () if each.name == name)
