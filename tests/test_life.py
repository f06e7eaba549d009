"""The daemon's life: starting, ready, draining, stopped."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, LocalTransport, Unavailable, UnixTransport
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_contributor, event_handler, event_observer
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Event
from ksi_daemon.testing import DaemonProcess, module_plugin, running_daemon, write_entry_points


class Work:
    """A handler that says when it has begun, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.ended: list[str] = []

    @event_handler("work:do")
    async def do(self) -> str:
        """Work until it is told to end."""
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return "done"

    @event_handler("work:more")
    async def more(self) -> None:
        """Do more."""

    def plugin(self) -> EntryPoint:
        """Make the plugin that has these."""
        work = self

        @hookimpl
        async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
            plugin.add(work)
            yield
            work.ended.append("stopped")

        return module_plugin("work", ksi_lifespan=ksi_lifespan)


async def outcome(request: Any) -> Any:
    try:
        return await request
    except Unavailable as error:
        return error


async def test_what_runs_may_finish_within_its_grace(ksi_home: Path) -> None:
    work = Work()
    async with (
        asyncio.timeout(20),
        running_daemon(ksi_home, work.plugin()) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(outcome(client.request("work:do")))
        await work.begun.wait()

        await client.request("system:shutdown", {"grace_s": 10.0})
        refused = await outcome(client.request("work:more"))
        health = await client.request("system:health")
        work.go.set()

        assert await asked == "done"

    assert isinstance(refused, Unavailable)
    assert refused.retry_after_s
    assert (health["state"], health["health"]) == ("draining", "draining")
    assert work.ended == ["done", "stopped"]


async def test_past_its_grace_it_is_cancelled_with_a_retryable_error(ksi_home: Path) -> None:
    work = Work()
    async with (
        asyncio.timeout(20),
        running_daemon(ksi_home, work.plugin()) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(outcome(client.request("work:do")))
        await work.begun.wait()

        await client.request("system:shutdown", {"grace_s": 0.05})

        error = await asked

    assert isinstance(error, Unavailable)
    assert error.message == "the daemon is shutting down"
    assert error.retry_after_s
    assert work.ended == ["cancelled", "stopped"]


async def test_a_second_shutdown_waits_no_longer(ksi_home: Path) -> None:
    work = Work()
    async with (
        asyncio.timeout(20),
        running_daemon(ksi_home, work.plugin()) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(outcome(client.request("work:do")))
        await work.begun.wait()
        await client.request("system:shutdown", {"grace_s": 1000.0})
        await client.request("system:health")

        await client.request("system:shutdown")

        assert isinstance(await asked, Unavailable)


async def test_who_only_waits_is_told_when_the_drain_begins_and_holds_nothing_up(
    ksi_home: Path,
) -> None:
    begun, draining = asyncio.Event(), asyncio.Event()

    @event_handler("work:wait")
    async def wait() -> str:
        begun.set()
        await draining.wait()
        return "in good order"

    @event_observer("system:draining")
    def end(event: Event) -> None:
        draining.set()

    async with (
        running_daemon(ksi_home, module_plugin("work", wait=wait, end=end)) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        asked = tasks.create_task(client.request("work:wait"))
        await begun.wait()
        await client.request("system:shutdown", {"grace_s": 1000.0})

        assert await asked == "in good order"


async def test_the_end_of_the_drain_is_told_to_plugins_before_they_stop(ksi_home: Path) -> None:
    happened: list[str] = []

    @event_contributor("system:drained")
    async def drained() -> None:
        happened.append("drained")

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        yield
        happened.append("stopped")

    plugin = module_plugin("keeper", drained=drained, ksi_lifespan=ksi_lifespan)
    async with running_daemon(ksi_home, plugin):
        pass

    assert happened == ["drained", "stopped"]


async def test_it_answers_while_plugins_still_start_and_says_so(ksi_home: Path) -> None:
    starting, go = asyncio.Event(), asyncio.Event()

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        starting.set()
        await go.wait()
        yield

    @event_handler("slow:ask")
    async def ask() -> str:
        return "here"

    plugin = module_plugin("slow", ksi_lifespan=ksi_lifespan, ask=ask)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:

        async def look() -> None:
            await starting.wait()
            async with AsyncClient(UnixTransport(ksi_home / "run" / "ksi.sock")) as client:
                health = await client.request("system:health")
                refused = await outcome(client.request("slow:ask"))
                assert health["state"] == health["health"] == "starting"
                assert isinstance(refused, Unavailable)
                assert "slow is starting" in refused.message
                go.set()

        looking = tasks.create_task(look())
        async with (
            running_daemon(ksi_home, plugin) as daemon,
            AsyncClient(LocalTransport(daemon)) as client,
        ):
            await looking
            assert await client.request("slow:ask") == "here"


async def test_a_shutdown_does_not_wait_for_a_slow_start(ksi_home: Path) -> None:
    starting = asyncio.Event()
    ended: list[str] = []

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("let go")
        yield

    daemon = Daemon(ksi_home, entry_points=[module_plugin("slow", ksi_lifespan=ksi_lifespan)])
    ready: list[str] = []
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(daemon.run(lambda: ready.append("ready")))
        await starting.wait()

        daemon.shutdown()

    assert (ready, ended, daemon.state) == ([], ["let go"], "stopped")


# -- from outside --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_in_order(daemon_process: DaemonProcess, number: int) -> None:
    daemon_process.start()

    assert daemon_process.kill(number) == 0

    assert not daemon_process.socket.exists()
    assert '"stopped"' in (daemon_process.home / "log" / "daemon.log").read_text()


def test_after_kill_9_it_starts_again_in_the_same_home(daemon_process: DaemonProcess) -> None:
    daemon_process.start()
    daemon_process.kill(signal.SIGKILL)
    assert daemon_process.socket.exists()

    daemon_process.start()

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(daemon_process.socket))
        connection.sendall(b'{"id":1,"event":"system:hello"}\n')
        assert b'"protocol"' in connection.recv(1000)


def test_a_plugin_that_refuses_to_end_does_not_keep_the_daemon_from_it(
    daemon_process: DaemonProcess, tmp_path: Path
) -> None:
    write_entry_points(tmp_path, endless="broken_plugins:endless")
    sources = Path(__file__).parent / "plugins_under_test"
    daemon_process.environ = {
        "KSI_DAEMON_PLUGINS": "system,endless",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{sources}",
    }
    daemon_process.start("--set", "daemon.stop_timeout_s=0.1", "--set", "daemon.shutdown_grace_s=0")

    assert daemon_process.kill(signal.SIGTERM) == -signal.SIGALRM


def test_in_the_foreground_the_log_is_shown_too(daemon_process: DaemonProcess) -> None:
    command = [sys.executable, "-m", "ksi_daemon", "--home", str(daemon_process.home)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            shown = []
            for line in process.stderr:
                shown.append(line)
                if '"ready"' in line:
                    break
        finally:
            process.terminate()
        shown.append(process.stderr.read())

    assert "".join(shown) == (daemon_process.home / "log" / "daemon.log").read_text()


@pytest.mark.parametrize(("hidden", "expected"), [("", "uvloop"), ("uvloop", "asyncio")])
def test_it_runs_on_uvloop_and_without_it_on_asyncio(hidden: str, expected: str) -> None:
    code = (
        "import asyncio, sys\n"
        f"sys.modules.update(dict.fromkeys({hidden.split()}))\n"
        "from ksi_daemon import loop\n"
        "async def kind():\n"
        "    return type(asyncio.get_running_loop()).__module__.partition('.')[0]\n"
        "print(loop.run(kind()))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == expected


def run_to_its_end(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_daemon", "--home", str(home), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--set", "daemon.max_conections=1"], 1, "did you mean max_connections"),
        (["--set", "daemon"], 1, "--set takes section.key=value"),
        (["--sit"], 2, "usage:"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    ksi_home: Path, words: list[str], code: int, message: str
) -> None:
    ended = run_to_its_end(ksi_home, *words)

    assert ended.returncode == code
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_systemd_is_told_that_it_is_ready_and_that_it_stops(
    daemon_process: DaemonProcess, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    done = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(20)

        def listen() -> None:
            while not heard or heard[-1] != b"STOPPING=1":
                heard.append(notify.recv(100))
            done.set()

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        daemon_process.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        daemon_process.environ["WATCHDOG_USEC"] = "100000"
        daemon_process.start()
        assert daemon_process.kill(signal.SIGTERM) == 0
        assert done.wait(10)
        listener.join(10)

    assert heard[0] == b"READY=1"
    assert b"WATCHDOG=1" in heard
