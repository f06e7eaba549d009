"""The loader: what is found, what is refused, and what the others notice of it: nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, InvalidData, LocalTransport, NotFound, Unavailable
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import (
    event_contributor,
    event_handler,
    event_interceptor,
    event_observer,
)
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Event, Failed
from ksi_daemon.testing import (
    ModuleEntryPoint,
    installed_plugins,
    module_plugin,
    read_log,
    running_daemon,
    write_entry_points,
)


@event_handler("good:ask")
async def answer() -> str:
    """Answer, as ever."""
    return "fine"


GOOD = module_plugin("good", answer=answer)


def describing(**fields: Any) -> Callable[..., PluginInfo]:
    @hookimpl
    def ksi_plugin() -> PluginInfo:
        return PluginInfo(**fields)

    return ksi_plugin


def recording(
    name: str, happened: list[str], *, requires: tuple[str, ...] = ()
) -> ModuleEntryPoint:
    """Make a plugin that notes its start and its stop."""

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        happened.append(f"{name} starts")
        yield
        happened.append(f"{name} stops")

    return module_plugin(name, ksi_plugin=describing(requires=requires), ksi_lifespan=ksi_lifespan)


def failing(name: str, error: BaseException) -> ModuleEntryPoint:
    """Make a plugin whose import fails."""

    def load() -> Any:
        raise error

    return ModuleEntryPoint(name, load)


async def state_of(daemon: Daemon, plugin: str) -> dict[str, Any]:
    async with AsyncClient(LocalTransport(daemon)) as client:
        listed = await client.request("system:plugins")
        assert await client.request("good:ask") == "fine"
    return next(each for each in listed["plugins"] if each["plugin"] == plugin)


@pytest.mark.parametrize(
    "error",
    [ValueError("no luck"), SystemExit(3), KeyboardInterrupt(), SyntaxError("what?")],
    ids=lambda error: type(error).__name__,
)
async def test_a_plugin_that_fails_on_import_is_reported_and_the_rest_run(
    ksi_home: Path, error: BaseException
) -> None:
    async with running_daemon(ksi_home, GOOD, failing("bad", error)) as daemon:
        bad = await state_of(daemon, "bad")

    assert bad["state"] == "failed"
    assert bad["why"] == f"can't be loaded: {type(error).__name__}: {error}".removesuffix(": ")


async def test_a_plugin_that_lacks_a_package_is_unavailable_and_says_which(ksi_home: Path) -> None:
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    async with running_daemon(ksi_home, GOOD, failing("heavy", error)) as daemon:
        heavy = await state_of(daemon, "heavy")

    assert heavy["state"] == "unavailable"
    assert heavy["why"] == "needs torch, which is not installed"


async def test_what_is_not_allowed_is_not_imported(ksi_home: Path) -> None:
    entry = failing("other", AssertionError("it was imported"))
    settings = ['daemon.plugins=["system","go*"]']
    async with running_daemon(ksi_home, GOOD, entry, settings=settings) as daemon:
        other = await state_of(daemon, "other")

    assert other["state"] == "disabled"
    assert "daemon.plugins" in other["why"]


async def test_a_misspelt_hook_is_loud(ksi_home: Path) -> None:
    @hookimpl
    async def ksi_lifespam(plugin: Plugin) -> AsyncIterator[None]:
        yield

    entry = module_plugin("bad", ksi_lifespam=ksi_lifespam)
    async with running_daemon(ksi_home, GOOD, entry) as daemon:
        bad = await state_of(daemon, "bad")

    assert bad["state"] == "failed"
    assert "unknown hook 'ksi_lifespam'" in bad["why"]


async def test_a_hook_with_a_wrong_argument_is_loud(ksi_home: Path) -> None:
    @hookimpl
    async def ksi_lifespan(plugun: Plugin) -> AsyncIterator[None]:
        yield

    entry = module_plugin("bad", ksi_lifespan=ksi_lifespan)
    async with running_daemon(ksi_home, GOOD, entry) as daemon:
        bad = await state_of(daemon, "bad")

    assert bad["state"] == "failed"
    assert "plugun" in bad["why"]


@event_handler("good:ask")
async def answer_too() -> str:
    return "mine"


async def test_a_second_handler_for_a_name_is_refused_with_all_of_its_plugin(
    ksi_home: Path,
) -> None:
    seen: list[str] = []

    @event_observer("*")
    def see(event: Event) -> None:
        seen.append(event.name)

    # The function that would be taken on comes before the one that is refused.
    members = {"a_see": see, "b_answer": answer_too}
    async with running_daemon(ksi_home, GOOD, module_plugin("rival", **members)) as daemon:
        rival = await state_of(daemon, "rival")
        assert daemon.router.observers == []

    assert rival["state"] == "failed"
    assert "good:ask is answered by good already" in rival["why"]
    assert seen == []


@pytest.mark.parametrize(
    ("plugin", "why"),
    [
        (module_plugin("wall", a=answer_too), "good:ask is answered by good already"),
        (ModuleEntryPoint("wall", lambda: __import__("no_such_module")), "needs no_such_module"),
    ],
)
async def test_a_plugin_that_the_settings_call_essential_ends_the_daemon_with_it(
    ksi_home: Path, plugin: ModuleEntryPoint, why: str
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with running_daemon(ksi_home, GOOD, plugin, settings=["daemon.essential=wall"]):
            pass

    (error,) = caught.value.exceptions
    assert isinstance(error, Failed)
    assert "an essential plugin failed: wall" in error.message
    assert why in error.message


async def test_an_essential_plugin_that_is_not_installed_ends_the_start(ksi_home: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with running_daemon(ksi_home, GOOD, settings=["daemon.essential=goood"]):
            pass

    (error,) = caught.value.exceptions
    assert isinstance(error, InvalidData)
    assert error.message == ("the essential plugin goood is not installed; did you mean good?")


@pytest.mark.parametrize("pattern", ["*", "good:*"])
async def test_the_gates_of_a_plugin_that_failed_are_shut_but_not_before_the_daemon_s_own_events(
    ksi_home: Path, pattern: str
) -> None:
    @event_interceptor(pattern)
    async def let_pass(event: Event, proceed: Any) -> Any:
        return await proceed(event)

    # The handler, for which the plugin is refused, comes before the gate.
    rival = module_plugin("rival", a_answer=answer_too, b_gate=let_pass)
    async with (
        running_daemon(ksi_home, GOOD, rival) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        with pytest.raises(Unavailable, match="rival has failed"):
            await client.request("good:ask")
        hello = await client.request("system:hello")

    assert hello["principal"] == "owner"


async def test_two_packages_with_one_plugin_name_are_both_refused(ksi_home: Path) -> None:
    twins = [module_plugin("twin", answer=answer_too), module_plugin("twin")]
    async with running_daemon(ksi_home, *twins) as daemon:
        loaded = daemon.loader.plugins["twin"]
        assert "good:ask" not in daemon.router.routes

    assert loaded.reason == "two packages have a plugin so named"


async def test_a_handler_with_two_arguments_is_refused_with_its_name(ksi_home: Path) -> None:
    @event_handler("bad:add")
    async def add(one: int, two: int) -> int:
        return one + two

    async with running_daemon(ksi_home, GOOD, module_plugin("bad", add=add)) as daemon:
        bad = await state_of(daemon, "bad")

    assert "bad:add: a handler takes the payload, or nothing" in bad["why"]


async def test_an_annotation_that_means_nothing_is_refused(ksi_home: Path) -> None:
    @event_handler("bad:add")
    async def add(data: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821  that is it
        pass

    async with running_daemon(ksi_home, GOOD, module_plugin("bad", add=add)) as daemon:
        bad = await state_of(daemon, "bad")

    assert "'Nowhere' is not defined" in bad["why"]


async def test_plugins_start_after_what_they_require_and_stop_before_it(ksi_home: Path) -> None:
    happened: list[str] = []
    plugins = [
        recording("a", happened, requires=("b",)),
        recording("b", happened, requires=("c",)),
        recording("c", happened),
    ]

    async with running_daemon(ksi_home, *plugins):
        assert happened == ["c starts", "b starts", "a starts"]
        happened.clear()

    assert happened == ["a stops", "b stops", "c stops"]


async def test_plugins_that_do_not_require_each_other_start_at_the_same_time(
    ksi_home: Path,
) -> None:
    both = asyncio.Barrier(2)

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        await both.wait()
        yield

    plugins = [module_plugin(name, ksi_lifespan=ksi_lifespan) for name in ("one", "two")]
    async with asyncio.timeout(10), running_daemon(ksi_home, *plugins) as daemon:
        assert daemon.loader.plugins["one"].state == "ready"


async def test_a_cycle_is_refused_and_its_way_is_told(ksi_home: Path) -> None:
    plugins = [
        module_plugin("a", ksi_plugin=describing(requires=("b",))),
        module_plugin("b", ksi_plugin=describing(requires=("a",))),
        module_plugin("c", ksi_plugin=describing(requires=("a",))),
    ]
    async with running_daemon(ksi_home, GOOD, *plugins) as daemon:
        reasons = {name: daemon.loader.plugins[name].reason for name in "abc"}
        await state_of(daemon, "good")

    assert reasons == {
        "a": "requires itself: a → b → a",
        "b": "requires itself: b → a → b",
        "c": "requires a, which is failed: requires itself: a → b → a",
    }


async def test_what_requires_something_that_is_not_installed_says_so(ksi_home: Path) -> None:
    entry = module_plugin("bad", ksi_plugin=describing(requires=("nowhere",)))
    async with running_daemon(ksi_home, GOOD, entry) as daemon:
        bad = await state_of(daemon, "bad")

    assert (bad["state"], bad["why"]) == ("failed", "requires nowhere, which is not installed")


async def test_a_plugin_that_fails_at_start_is_reported_and_its_events_say_so(
    ksi_home: Path,
) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        plugin.start_task("work", work)
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        raise OSError("no such database")
        yield

    @event_handler("bad:ask")
    async def ask() -> None:
        """Never be called."""

    entry = module_plugin("bad", ksi_lifespan=ksi_lifespan, ask=ask)
    async with (
        running_daemon(ksi_home, GOOD, entry) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        bad = await state_of(daemon, "bad")
        with pytest.raises(Unavailable, match="bad has failed: OSError: no such database"):
            await client.request("bad:ask")
        assert ended.is_set()
        assert "bad: work" not in daemon.supervisor.units

    assert (bad["state"], bad["why"]) == ("failed", "OSError: no such database")
    line = next(each for each in read_log(ksi_home) if each.get("plugin") == "bad")
    assert "no such database" in line["traceback"]


async def test_a_start_that_takes_too_long_is_given_up(ksi_home: Path) -> None:
    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    entry = module_plugin("slow", ksi_lifespan=ksi_lifespan)
    settings = ["daemon.start_timeout_s=0.05"]
    async with running_daemon(ksi_home, GOOD, entry, settings=settings) as daemon:
        slow = await state_of(daemon, "slow")

    assert slow["why"] == "did not start in time (start_timeout_s)"


async def test_a_timeout_of_the_plugin_s_own_is_not_called_a_slow_start(ksi_home: Path) -> None:
    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        raise TimeoutError("the database does not answer")
        yield

    async with running_daemon(
        ksi_home, GOOD, module_plugin("bad", ksi_lifespan=ksi_lifespan)
    ) as daemon:
        bad = await state_of(daemon, "bad")

    assert bad["why"] == "TimeoutError: the database does not answer"


async def test_a_plugin_that_fails_at_stop_is_logged_and_the_rest_stop(ksi_home: Path) -> None:
    happened: list[str] = []

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        yield
        raise ValueError("it would not close")

    plugins = [module_plugin("bad", ksi_lifespan=ksi_lifespan), recording("zed", happened)]
    async with running_daemon(ksi_home, *plugins) as daemon:
        pass

    assert daemon.loader.plugins["bad"].reason == "ValueError: it would not close"
    assert happened == ["zed starts", "zed stops"]


async def test_a_stop_that_takes_too_long_is_broken_off(ksi_home: Path) -> None:
    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    settings = ["daemon.stop_timeout_s=0.05"]
    entry = module_plugin("slow", ksi_lifespan=ksi_lifespan)
    async with (
        asyncio.timeout(10),
        running_daemon(ksi_home, entry, settings=settings) as daemon,
    ):
        pass

    assert daemon.loader.plugins["slow"].reason == "did not stop in time (stop_timeout_s)"


async def test_a_plugin_s_tasks_and_observers_end_before_what_they_use_is_closed(
    ksi_home: Path,
) -> None:
    happened: list[str] = []
    running = asyncio.Event()

    async def work() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            happened.append("the task ends")

    @event_observer("good:*")
    def see(event: Event) -> None:
        happened.append(event.name)

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        plugin.start_task("work", work)
        await running.wait()
        yield
        left = [name for name in plugin.daemon.supervisor.units if name.startswith("worker")]
        happened.append(f"closed, with {left} tasks")

    entry = module_plugin("worker", ksi_lifespan=ksi_lifespan, see=see)
    async with running_daemon(ksi_home, GOOD, entry) as daemon:
        assert "worker: work" in daemon.supervisor.units

    assert happened == ["the task ends", "closed, with [] tasks"]
    assert daemon.router.observers == []


async def test_without_an_essential_plugin_the_daemon_stops_and_is_never_ready(
    ksi_home: Path,
) -> None:
    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        raise OSError("no such database")
        yield

    info = describing(essential=True)
    entry = module_plugin("store", ksi_plugin=info, ksi_lifespan=ksi_lifespan)
    daemon = Daemon(ksi_home, entry_points=[entry])
    ready: list[str] = []

    with pytest.raises(Failed, match="plugin failed: store: OSError: no such database"):
        await daemon.run(lambda: ready.append("ready"))

    assert ready == []


async def test_wrong_settings_of_a_plugin_stop_the_daemon_with_the_nearest_key(
    ksi_home: Path,
) -> None:
    (ksi_home / "ksi.toml").write_text("[good]\nisolated = true\n")

    with pytest.raises(ExceptionGroup) as caught:
        async with running_daemon(ksi_home, GOOD):
            pass

    (error,) = caught.value.exceptions
    assert isinstance(error, InvalidData)
    assert "[good] has no key 'isolated'; did you mean isolate" in error.message


async def test_contributors_of_a_refused_plugin_are_not_asked(ksi_home: Path) -> None:
    @event_contributor("my:parts")
    async def part() -> str:
        return "part"

    entry = module_plugin("rival", part=part, taken=answer_too)
    async with (
        running_daemon(ksi_home, GOOD, entry) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        with pytest.raises(NotFound):
            await client.request("my:parts")


def test_the_kit_finds_what_is_installed_also_where_the_path_leads_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = installed_plugins()
    write_entry_points(tmp_path, later="a_plugin")
    monkeypatch.syspath_prepend(tmp_path)

    assert {point.name for point in installed_plugins()} == {
        "later",
        *(point.name for point in before),
    }
    assert [point.name for point in installed_plugins("later", "system")] == ["later", "system"]
