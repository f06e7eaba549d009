"""Plugin hosts: the same code in a process of its own, and what its death costs the others."""

import asyncio
import logging
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, Conflict, Failed, InvalidData, LocalTransport, Unavailable
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import current_context, event_contributor, event_handler
from ksi_daemon.hosts import explain_exit, read_log_line, scrubbed
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Denied, TimedOut
from ksi_daemon.testing import (
    DaemonProcess,
    module_plugin,
    read_log,
    running_daemon,
    write_entry_points,
)

SOURCES = Path(__file__).with_name("plugins_under_test")
BROKEN = ("gate", "late_gate", "start", "never", "dying", "settings", "ring_one", "ring_two")
ISOLATED = ["everything.isolate=true", "everything.environment=PYTHONPATH"]
PARTS = {
    "greeting": "everything.greeting=Good day",
    "secret": "everything.password=hunter2",
}

Run = Callable[..., AbstractAsyncContextManager[Daemon]]


@event_handler("other:whoami")
async def whoami(data: Any) -> dict[str, Any]:
    """Tell in which context the event came."""
    context = current_context()
    assert context is not None
    return {
        "origin": context.origin,
        "conversation": context.conversation,
        "run": context.run,
        "principal": context.principal,
        "parent": context.parent is not None,
        "data": data,
    }


@event_contributor("everything:parts", order=5)
async def other_part() -> str:
    return "theirs"


OTHER = module_plugin("other", whoami=whoami, part=other_part)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    """The plugins under test, as installed for this process and for those that it starts."""
    broken = {name: f"broken_plugins:{name}" for name in BROKEN}
    write_entry_points(tmp_path, everything="everything_plugin", missing="no_such_module", **broken)
    monkeypatch.syspath_prepend(SOURCES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCES}")
    return {point.name: point for point in entry_points(group="ksi")}


@pytest.fixture(params=[False, True], ids=["in the daemon", "in a host"])
def isolated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def daemon(
    ksi_home: Path, installed: dict[str, EntryPoint], isolated: bool
) -> AsyncIterator[Daemon]:
    settings = [*(ISOLATED if isolated else []), *PARTS.values()]
    everything = installed["everything"]
    async with running_daemon(ksi_home, everything, OTHER, settings=settings) as running:
        assert (running.loader.plugins["everything"].pid is not None) == isolated
        yield running


async def plugin_state(client: AsyncClient, name: str) -> dict[str, Any]:
    listed = await client.request("system:plugins")
    found: dict[str, Any] = next(each for each in listed["plugins"] if each["plugin"] == name)
    return found


async def answered_again(client: AsyncClient, event: str) -> Any:
    """Ask until somebody answers."""
    while True:
        try:
            return await client.request(event)
        except Unavailable:
            await client.request("system:hello")  # let the daemon do something else


# -- the same code, the same behaviour -----------------------------------------------------------


async def test_a_typed_handler_gets_its_struct_with_times_and_number_keys(
    client: AsyncClient,
) -> None:
    request = {"name": "Ada", "at": "2030-01-02T03:04:05Z", "ages": {"7": "seven"}}

    greeting = await client.request("everything:greet", request)

    assert greeting == {
        "text": "Good day, Ada",
        "at": "2030-01-02T03:04:05Z",
        "ages": {"7": "seven"},
    }


async def test_wrong_data_is_an_error_with_the_path_of_the_field(client: AsyncClient) -> None:
    with pytest.raises(InvalidData) as caught:
        await client.request("everything:greet", {"name": "Ada", "ages": {"7": 7}})

    assert caught.value.details == {"path": "$.ages[...]"}
    assert caught.value.message.startswith("everything:greet: Expected `str`, got `int`")


async def test_a_typed_error_arrives_with_all_its_fields(client: AsyncClient) -> None:
    with pytest.raises(Conflict) as caught:
        await client.request("everything:fail", {"how": "typed"})

    error = caught.value
    assert (error.message, error.retry_after_s, error.details) == (
        "it is taken",
        2.0,
        {"by": "me"},
    )


async def test_an_exception_is_a_failure_that_does_not_tell_its_text(
    client: AsyncClient, ksi_home: Path
) -> None:
    with pytest.raises(Failed) as caught:
        await client.request("everything:fail", {"how": "badly"})

    assert "not for everybody" not in caught.value.message
    assert "everything:fail" in caught.value.message


async def test_an_answer_that_is_not_what_was_declared_is_a_failure(client: AsyncClient) -> None:
    with pytest.raises(Failed, match="everything:lie returned str instead of Greeting"):
        await client.request("everything:lie")


async def test_a_handler_s_own_limit_holds(client: AsyncClient) -> None:
    with pytest.raises(TimedOut):
        await client.request("everything:slow")


async def test_a_stream_comes_in_order_and_ends_with_its_error(client: AsyncClient) -> None:
    chunks: list[int] = []

    async def read() -> None:
        async for chunk in client.stream("everything:count", {"to": 1000, "fail": 1}):
            chunks.append(chunk)  # noqa: PERF401  what came before the error counts

    with pytest.raises(Conflict, match="enough counted"):
        await read()

    assert chunks == list(range(1000))


async def test_another_plugin_is_asked_in_the_context_of_the_event(client: AsyncClient) -> None:
    context = {"conversation": "c1", "run": "r1", "principal": "token:someone"}
    answer = await client.request(
        "everything:relay", {"event": "other:whoami", "data": {"a": 1}}, context=context
    )

    assert answer.pop("origin") in {"everything", "plugin:everything"}
    assert answer == {**context, "parent": True, "data": {"a": 1}}


async def test_an_error_of_another_plugin_passes_through(client: AsyncClient) -> None:
    with pytest.raises(Conflict, match="it is taken"):
        await client.request(
            "everything:relay", {"event": "everything:fail", "data": {"how": "typed"}}
        )


async def test_contributors_answer_in_their_order_wherever_they_run(client: AsyncClient) -> None:
    assert await client.request("everything:gather") == ["theirs", "mine"]


async def test_a_public_event_is_answered_for_anybody_and_no_other(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    token = (await client.request("token:create", {"name": "guest", "ttl_s": 60}))["token"]
    guest = await connect(token=token)

    assert await guest.request("everything:open") == "welcome"
    with pytest.raises(Denied):
        await guest.request("everything:now")


async def test_no_client_may_open_an_event_to_anybody(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    async def answer(data: Any, context: Any) -> str:
        return "welcome"

    await client.serve("client:open", answer, public=True)
    token = (await client.request("token:create", {"name": "guest", "ttl_s": 60}))["token"]
    guest = await connect(token=token)

    with pytest.raises(Denied):
        await guest.request("client:open")


async def test_a_contributor_to_health_is_heard(client: AsyncClient) -> None:
    report = await client.request("system:health")

    found = next(each for each in report["plugins"] if each["plugin"] == "everything")
    assert found == {
        "plugin": "everything",
        "health": "degraded",
        "why": "Good day is all I can say",
    }


async def test_an_observer_sees_events_in_their_context(client: AsyncClient) -> None:
    async with asyncio.timeout(10), await client.subscribe("everything:saw") as seen:
        await client.request(
            "router:publish", {"event": "watched:this"}, context={"conversation": "c7"}
        )
        event = await anext(seen)

    now = await client.request("everything:now")
    assert event.data == {"event": "watched:this"}
    assert event.context.conversation == "c7"
    assert now["seen"] == ["watched:this in c7"]


async def test_a_background_task_is_restarted(client: AsyncClient) -> None:
    async with asyncio.timeout(10):
        while (await client.request("everything:now"))["beats"] < 2:
            pass


async def test_its_settings_are_shown_with_their_origin_and_secrets_masked(
    client: AsyncClient,
) -> None:
    listed = await client.request("system:config", {"section": "everything"})

    shown = {each["key"]: (each["value"], each["origin"]) for each in listed["settings"]}
    assert shown["greeting"] == ("Good day", "--set")
    assert shown["retry_after_s"] == (1.5, "default")
    assert shown["password"] == ("********", "--set")
    assert "hunter2" not in str(listed)


async def test_its_events_are_described_with_their_schemas(client: AsyncClient) -> None:
    described = await client.request("system:describe", {"event": "everything:greet"})

    (event,) = described["events"]
    assert event["plugin"] == "everything"
    assert event["doc"] == "Greet somebody in the words of the settings."
    assert event["data_schema"]["$defs"]["Greet"]["required"] == ["name"]


async def test_its_log_lines_bear_its_name(daemon: Daemon, ksi_home: Path) -> None:
    del daemon
    found = [line for line in read_log(ksi_home) if line["message"] == "everything has begun"]

    assert [line["plugin"] for line in found] == ["everything"]


@pytest.mark.parametrize("isolated", [False, True], ids=["in the daemon", "in a host"])
async def test_it_is_stopped_in_order(
    ksi_home: Path, installed: dict[str, EntryPoint], isolated: bool
) -> None:
    settings = ISOLATED if isolated else []
    async with running_daemon(ksi_home, installed["everything"], settings=settings):
        pass

    assert (ksi_home / "everything-stopped").read_text() == "in order"


# -- what is special about a host ----------------------------------------------------------------


@pytest.fixture
async def hosted(
    ksi_home: Path, installed: dict[str, EntryPoint]
) -> AsyncIterator[tuple[Daemon, AsyncClient]]:
    settings = [
        *ISOLATED,
        "daemon.host_ping_interval_s=0.1",
        "daemon.host_ping_timeout_s=0.5",
        "daemon.stall_warning_s=0.2",
    ]
    async with (
        running_daemon(ksi_home, installed["everything"], OTHER, settings=settings) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        yield daemon, client


Hosted = tuple[Daemon, AsyncClient]


async def test_kill_9_of_a_host_fails_what_it_was_asked_and_it_is_back_within_a_second(
    hosted: Hosted,
) -> None:
    _, client = hosted
    async with asyncio.timeout(20), await client.subscribe("everything:begun") as begun:
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(failure_of(client.request("everything:forever")))
            await anext(begun)
            old = (await plugin_state(client, "everything"))["pid"]

            os.kill(old, signal.SIGKILL)
            killed_at = time.monotonic()

            assert (await client.request("other:whoami"))["parent"] is False
        back = await answered_again(client, "everything:now")
        took_s = time.monotonic() - killed_at

    error = asked.result()
    assert isinstance(error, Unavailable)
    assert error.retry_after_s
    assert "everything:forever" in error.message
    assert back["pid"] != old
    assert took_s < 2.0  # a second, and as much again for a busy machine
    state = await plugin_state(client, "everything")
    assert (state["state"], state["pid"]) == ("ready", back["pid"])


async def failure_of(request: Any) -> BaseException | None:
    try:
        await request
    except Exception as error:  # noqa: BLE001  whatever it is, the test looks at it
        return error
    return None


async def test_while_a_host_is_away_its_events_say_so_and_the_state_is_shown(
    hosted: Hosted,
) -> None:
    daemon, client = hosted
    loaded = daemon.loader.plugins["everything"]
    assert loaded.pid is not None
    async with asyncio.timeout(20), await client.subscribe("system:hello") as _:
        os.kill(loaded.pid, signal.SIGKILL)
        while loaded.state == "ready":
            await client.request("system:hello")

        with pytest.raises(Unavailable, match="everything is being restarted"):
            await client.request("everything:now")
        state = await plugin_state(client, "everything")
        health = await client.request("system:health")
        await answered_again(client, "everything:now")

    assert (state["state"], state["why"]) == ("restarting", "its host was ended by SIGKILL")
    assert health["health"] == "degraded"


async def test_a_host_that_blocks_its_loop_is_named_and_killed_and_started_again(
    hosted: Hosted, ksi_home: Path
) -> None:
    _, client = hosted
    old = (await plugin_state(client, "everything"))["pid"]

    with pytest.raises(Unavailable):
        await client.request("everything:block")

    async with asyncio.timeout(20):
        back = await answered_again(client, "everything:now")
    assert back["pid"] != old
    lines = [line for line in read_log(ksi_home) if line.get("plugin") == "everything"]
    blocked = next(line for line in lines if line["message"] == "the event loop is blocked")
    assert "in block" in blocked["stack"]
    assert any(line["message"] == "a plugin host hangs" for line in lines)


async def test_the_last_words_of_a_host_are_in_the_log(hosted: Hosted, ksi_home: Path) -> None:
    _, client = hosted

    with pytest.raises(Unavailable):
        await client.request("everything:die")

    async with asyncio.timeout(20):
        await answered_again(client, "everything:now")
    lines = read_log(ksi_home)
    words = [line["message"] for line in lines if line["message"].startswith("last word")]
    assert len(words) == 100
    assert any("exited with 7" in str(line.get("traceback")) for line in lines)


async def test_a_host_s_environment_holds_no_secrets(
    ksi_home: Path, installed: dict[str, EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVIDER_API_KEY", "very secret")
    monkeypatch.setenv("KSI_OTHER_PASSWORD", "very secret")
    monkeypatch.setenv("KSI_EVERYTHING_PASSWORD", "its own")
    async with (
        running_daemon(ksi_home, installed["everything"], settings=ISOLATED) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        environment = await client.request("everything:environment")
        listed = await client.request("system:config", {"section": "everything"})

    assert "very secret" not in str(environment)
    assert "PYTHONPATH" in environment
    assert "PATH" in environment
    shown = {each["key"]: (each["value"], each["origin"]) for each in listed["settings"]}
    assert shown["password"] == ("********", "$KSI_EVERYTHING_PASSWORD")


async def test_an_isolated_plugin_reads_its_section_of_a_file_that_has_others(
    ksi_home: Path, installed: dict[str, EntryPoint]
) -> None:
    (ksi_home / "ksi.toml").write_text(
        "[daemon]\nmax_in_flight = 100\n"
        '[everything]\nisolate = true\nenvironment = ["PYTHONPATH"]\n'
        'greeting = "Ciao"\nplaces = ["Oslo", "a, b"]\n'
    )
    async with (
        running_daemon(ksi_home, installed["everything"]) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        greeting = await client.request("everything:greet", {"name": "Ada"})
        listed = await client.request("system:config", {"section": "everything"})

    assert greeting["text"] == "Ciao, Ada"
    shown = {each["key"]: (each["value"], each["origin"]) for each in listed["settings"]}
    assert shown["places"] == (["Oslo", "a, b"], str(ksi_home / "ksi.toml"))


@pytest.mark.parametrize(
    ("plugin", "settings", "reason"),
    [
        ("missing", [], "needs no_such_module, which is not installed"),
        ("start", [], "OSError: no such database"),
        ("dying", [], "its host exited with 9"),
        ("gate", [], "it has an interceptor: that must run in the daemon"),
        ("late_gate", [], "it has an interceptor: that must run in the daemon"),
        ("settings", ["settings.color=red"], "[settings] has no key 'color'; did you mean colour"),
        ("settings", ["settings.max_things=many"], "settings.max_things"),
        ("never", [], "did not answer in time and was killed (start_timeout_s)"),
    ],
)
async def test_an_isolated_plugin_that_can_not_start_is_given_up_with_the_reason(
    ksi_home: Path,
    installed: dict[str, EntryPoint],
    plugin: str,
    settings: list[str],
    reason: str,
) -> None:
    settings = [
        *settings,
        f"{plugin}.isolate=true",
        f"{plugin}.environment=PYTHONPATH",
        f"daemon.start_timeout_s={1.5 if plugin == 'never' else 20}",
    ]
    async with (
        asyncio.timeout(30),
        running_daemon(ksi_home, installed[plugin], OTHER, settings=settings) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        state = await plugin_state(client, plugin)
        health = await client.request("system:health")
        await client.request("other:whoami")

    assert state["state"] == "failed"
    assert reason in state["why"]
    assert "pid" not in state
    assert health["health"] == "degraded"


async def test_a_cycle_of_isolated_plugins_is_refused(
    ksi_home: Path, installed: dict[str, EntryPoint]
) -> None:
    names = ("ring_one", "ring_two")
    settings = [f"{name}.isolate=true" for name in names]
    settings += [f"{name}.environment=PYTHONPATH" for name in names]
    plugins = [installed[name] for name in names]
    async with (
        asyncio.timeout(30),
        running_daemon(ksi_home, *plugins, settings=settings) as daemon,
    ):
        reasons = {str(daemon.loader.plugins[name].reason) for name in names}

    assert any("requires itself: ring_" in reason for reason in reasons), reasons
    assert {daemon.loader.plugins[name].state for name in names} == {"failed"}


async def test_a_stop_does_not_wait_for_a_host_that_is_backing_off(
    ksi_home: Path, installed: dict[str, EntryPoint]
) -> None:
    async with running_daemon(ksi_home, installed["everything"], settings=ISOLATED) as daemon:
        unit = daemon.supervisor.units["host of everything"]
        loaded = daemon.loader.plugins["everything"]
        unit.policy = type(unit.policy)(first_delay_s=1000.0, max_delay_s=1000.0)
        assert loaded.pid is not None
        async with AsyncClient(LocalTransport(daemon)) as client:
            os.kill(loaded.pid, signal.SIGKILL)
            async with asyncio.timeout(10):
                while unit.state != "backing_off":
                    await client.request("system:hello")
        stopping_at = time.monotonic()

    assert time.monotonic() - stopping_at < 5.0
    assert loaded.state == "stopped"


async def test_a_host_s_events_are_for_hosts_only(hosted: Hosted) -> None:
    _, client = hosted

    for event in ("host:hello", "host:await", "host:ready"):
        with pytest.raises(Exception, match="the daemon's own plugin hosts"):
            await client.request(event)


def test_a_host_ends_when_its_daemon_is_killed(
    daemon_process: DaemonProcess, installed: dict[str, EntryPoint]
) -> None:
    del installed
    arguments = [word for setting in ISOLATED for word in ("--set", setting)]
    daemon_process.start(*arguments, "--set", "daemon.plugins=system,everything")
    pid = asyncio.run(host_pid(daemon_process))
    handle = os.pidfd_open(pid)

    daemon_process.kill(signal.SIGKILL)

    wait_for_exit(handle)


def test_a_host_whose_loop_is_blocked_ends_with_its_daemon_too(
    daemon_process: DaemonProcess, installed: dict[str, EntryPoint]
) -> None:
    del installed
    arguments = [word for setting in ISOLATED for word in ("--set", setting)]
    daemon_process.start(*arguments, "--set", "daemon.plugins=system,everything")
    pid = asyncio.run(host_pid(daemon_process, then_emit="everything:block"))
    handle = os.pidfd_open(pid)

    daemon_process.kill(signal.SIGKILL)

    wait_for_exit(handle)


async def host_pid(daemon: DaemonProcess, then_emit: str | None = None) -> int:
    async with AsyncClient(daemon.socket) as client:
        pid = int((await plugin_state(client, "everything"))["pid"])
        if then_emit is not None:
            async with await client.subscribe(then_emit) as seen:
                await client.emit(then_emit)
                await anext(seen)
        return pid


def wait_for_exit(handle: int) -> None:
    """Wait for the end of a process that is not our child."""
    with open(handle, closefd=True) as process:
        ready, _, _ = select.select([process], [], [], 15)
    assert ready, "the host is still there"


# -- small parts ---------------------------------------------------------------------------------


def test_an_environment_is_scrubbed_of_all_that_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    monkeypatch.setenv("WANTED", "this")
    monkeypatch.setenv("LC_ALL", "C")

    assert "SOME_KEY" not in scrubbed(("WANTED",))
    assert scrubbed(("WANTED",))["WANTED"] == "this"
    assert scrubbed(())["LC_ALL"] == "C"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"level":"error","message":"m","plugin":"p"}', (logging.ERROR, "m", {"plugin": "p"})),
        (b'{"level":"strange","message":"m"}', (logging.INFO, "m", {})),
        (b'{"message":"m","args":1,"msg":2,"exc_info":3}', (logging.INFO, "m", {})),
        (b"Segmentation fault\n", (logging.WARNING, "Segmentation fault", {})),
        (b"[1, 2]", (logging.WARNING, "[1, 2]", {})),
        (b"\xff\xfe", (logging.WARNING, "��", {})),
        (b"100 % of it", (logging.WARNING, "100 % of it", {})),
    ],
)
def test_a_host_s_line_is_read_whatever_it_is(line: bytes, expected: Any) -> None:
    assert read_log_line(line) == expected


def test_the_end_of_a_process_is_told_in_words() -> None:
    assert explain_exit(3) == "exited with 3"
    assert explain_exit(-9) == "was ended by SIGKILL"
    assert explain_exit(None) == "was killed"
