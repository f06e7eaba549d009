"""Finds plugins, checks them, starts them in the order of what they require, and stops them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType
from typing import Any, Literal, Protocol

import pluggy
from msgspec import Struct

from ksi_daemon import hookspecs
from ksi_daemon.event_system import declarations_of
from ksi_daemon.hookspecs import PluginInfo
from ksi_daemon.installed import installed_plugins, version_of
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Failed, InvalidData, KsiError
from ksi_daemon.protocol.names import did_you_mean, matches_any
from ksi_daemon.router import Router
from ksi_daemon.settings import CommonSettings, Settings
from ksi_daemon.supervisor import Supervisor, is_cancelled, told

log = logging.getLogger(__name__)

State = Literal[
    "loaded", "starting", "ready", "restarting", "failed", "unavailable", "disabled", "stopped"
]
MISSED: frozenset[State] = frozenset({"failed", "unavailable", "disabled"})
ENDED: frozenset[State] = frozenset({"failed", "unavailable", "disabled", "stopped"})


class EntryPoint(Protocol):
    """Where a plugin is found; `importlib.metadata.EntryPoint` is one."""

    @property
    def name(self) -> str:
        """The plugin's name."""

    def load(self) -> Any:
        """Import the plugin's module."""


class NoSettings(Struct, frozen=True):
    """The settings of a plugin that has none."""


class Loaded:
    """A plugin and what has become of it."""

    def __init__(self, name: str, version: str = "") -> None:
        self.name = name
        self.version = version
        self.module: ModuleType | None = None
        self.info = PluginInfo()
        self.named_essential = False  # by the settings
        self.settings: Any = None
        self.common = CommonSettings()
        self.state: State = "loaded"
        self.reason: str | None = None
        self.pid: int | None = None  # of its host
        self.task: asyncio.Task[None] | None = None
        self.settled = asyncio.Event()  # it is ready, or will never be
        self.stopped = asyncio.Event()

    @property
    def is_essential(self) -> bool:
        """Whether the daemon must not run without it."""
        return self.named_essential or self.info.essential

    @property
    def is_missed(self) -> bool:
        """Whether it is essential, and is not there."""
        return self.is_essential and self.state in MISSED

    def set_state(self, state: State, reason: str | None = None) -> None:
        """Note a change; whoever waits for the plugin is woken once it is settled."""
        self.state, self.reason = state, reason
        if state == "ready" or state in ENDED:
            self.settled.set()
        if state in ENDED:
            self.stopped.set()


class Isolator(Protocol):
    """Runs a plugin in a process of its own, until `Loader.await_end` returns."""

    async def run(self, loaded: Loaded) -> None:
        """Run it; raises when it is given up."""


class Loader:
    """Holds the plugins of a daemon, or the one plugin of a host.

    Args:
        router: Takes on what the plugins declare.
        supervisor: Runs the plugins.
        settings: Their sections are made here.
        make_plugin: Makes the object that a plugin is handed.
        isolator: Runs those with ``isolate``; without one all run here.
        essential: Names of plugins that are essential whatever they say of themselves.
        start_timeout_s: How long a start may take.
        stop_timeout_s: How long a stop may take.
    """

    def __init__(
        self,
        router: Router,
        supervisor: Supervisor,
        settings: Settings,
        make_plugin: Callable[[Loaded], Plugin],
        *,
        isolator: Isolator | None = None,
        essential: Iterable[str] = (),
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.plugins: dict[str, Loaded] = {}
        self.stopping = asyncio.Event()
        self.essential_failed = asyncio.Event()
        self._router = router
        self._supervisor = supervisor
        self._settings = settings
        self._make_plugin = make_plugin
        self._isolator = isolator
        self._essential = frozenset(essential)
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._hooks = pluggy.PluginManager("ksi")
        self._hooks.add_hookspecs(hookspecs)

    # -- loading --------------------------------------------------------------------------------

    def load(self, allowed: Iterable[str], found: Iterable[EntryPoint] | None = None) -> None:
        """Import the allowed plugins; one that fails is reported and the rest are loaded.

        Raises:
            InvalidData: The settings of a plugin are wrong.
        """
        entry_points = installed_plugins() if found is None else found
        for entry_point in sorted(entry_points, key=lambda each: each.name):
            if entry_point.name in self.plugins:
                # Which of them is meant can't be told, and neither has begun to run.
                self._router.forget(entry_point.name)
                self._fail(self.plugins[entry_point.name], "two packages have a plugin so named")
                continue
            loaded = Loaded(entry_point.name, version_of(getattr(entry_point, "dist", None)))
            loaded.named_essential = loaded.name in self._essential
            self.plugins[loaded.name] = loaded
            if matches_any(loaded.name, allowed):
                self._load_one(loaded, entry_point)
            else:
                loaded.set_state("disabled", "the setting daemon.plugins does not allow it")
        missing = sorted(self._essential - self.plugins.keys())
        if missing:
            near = did_you_mean(missing[0], self.plugins)
            raise InvalidData(f"the essential plugin {missing[0]} is not installed{near}")
        for loaded in self.plugins.values():
            if loaded.is_missed:
                self.essential_failed.set()
            if loaded.state == "loaded":
                try:
                    self.check_cycle(loaded.name)
                except InvalidData as error:
                    self._fail(loaded, error.message)

    def _load_one(self, loaded: Loaded, entry_point: EntryPoint) -> None:
        loaded.common = self._settings.section(loaded.name, CommonSettings)
        if loaded.common.isolate and self._isolator is not None:
            return  # its host imports it: what breaks on import, or takes long, is kept out of here
        try:
            loaded.module = entry_point.load()
            self._register(loaded)
        except ModuleNotFoundError as error:
            loaded.set_state("unavailable", f"needs {error.name}, which is not installed")
            log.warning("a plugin is unavailable", extra={"plugin": loaded.name, "why": str(error)})
            return
        except BaseException as error:  # noqa: BLE001  whatever an import does, the rest are loaded
            self._fail(loaded, f"can't be loaded: {told(error)}", error)
            return
        loaded.settings = self._settings.section(loaded.name, loaded.info.settings or NoSettings)

    def _register(self, loaded: Loaded) -> None:
        """Check a module's hooks, and take on the functions that it declares."""
        assert loaded.module is not None
        self._hooks.register(loaded.module, loaded.name)
        try:
            self._hooks.check_pending()
            describe = self._hook("ksi_plugin", loaded.name)
            if describe is not None:
                loaded.info = describe()
            self._router.set_reason(loaded.name, "is starting")
            self._router.add(loaded.name, declarations_of(loaded.module))
        except BaseException:
            self._hooks.unregister(loaded.module)
            self._router.forget(loaded.name)
            raise

    def _hook(self, hook: str, plugin: str) -> Callable[..., Any] | None:
        for implementation in getattr(self._hooks.hook, hook).get_hookimpls():
            if implementation.plugin_name == plugin:
                function: Callable[..., Any] = implementation.function
                return function
        return None

    def check_cycle(self, start: str) -> None:
        """Refuse a plugin that requires itself, by whatever way (depth first).

        Raises:
            InvalidData: It does; the way is told.
        """
        trail: list[str] = []
        seen: set[str] = set()

        def leads_back(name: str) -> bool:
            trail.append(name)
            loaded = self.plugins.get(name)
            for required in loaded.info.requires if loaded else ():
                if required == start:
                    trail.append(start)
                    return True
                if required not in seen:
                    seen.add(required)
                    if leads_back(required):
                        return True
            trail.pop()
            return False

        if leads_back(start):
            raise InvalidData(f"requires itself: {' → '.join(trail)}")

    def packages(self) -> dict[str, str]:
        """Return the top-level package of each plugin that runs in this process."""
        return {
            loaded.module.__name__.partition(".")[0]: loaded.name
            for loaded in self.plugins.values()
            if loaded.module is not None
        }

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all that can start, each once what it requires is ready; return when settled."""
        waiting = [loaded for loaded in self.plugins.values() if loaded.state == "loaded"]
        for loaded in waiting:
            loaded.set_state("starting")
            loaded.task = self._supervisor.tasks.create_task(
                self._live(loaded), name=f"plugin {loaded.name}"
            )
        for loaded in waiting:
            await loaded.settled.wait()

    def abandon_start(self) -> None:
        """Wait no longer for what has not started yet: the daemon is to stop."""
        for loaded in self.plugins.values():
            if loaded.task is not None and not loaded.settled.is_set():
                loaded.task.cancel()

    async def stop(self) -> None:
        """Stop every plugin, none before those that require it."""
        self.stopping.set()
        for loaded in self.plugins.values():
            await loaded.stopped.wait()

    async def _live(self, loaded: Loaded) -> None:
        """A plugin's own task, from its start to its stop."""
        try:
            for name in loaded.info.requires:
                await self.await_ready(name)
            if loaded.common.isolate and self._isolator is not None:
                await self._isolator.run(loaded)
            else:
                await self._run(loaded)
        except KsiError as error:
            self._fail(loaded, error.message, error.__cause__)
        except BaseException as error:
            if is_cancelled(error):
                loaded.set_state("stopped", "was stopped before it was ready")
                raise
            self._fail(loaded, told(error), error)
        else:
            loaded.set_state("stopped")
        finally:
            loaded.stopped.set()

    async def await_ready(self, name: str) -> None:
        """Wait until a plugin is ready.

        Raises:
            InvalidData: It is not installed, or it never will be ready.
        """
        other = self.plugins.get(name)
        if other is None:
            raise InvalidData(f"requires {name}, which is not installed")
        await other.settled.wait()
        if other.state != "ready":
            raise InvalidData(f"requires {name}, which is {other.state}: {other.reason}")

    async def _run(self, loaded: Loaded) -> None:
        lifespan: Callable[..., AsyncIterator[None]] | None
        lifespan = self._hook("ksi_lifespan", loaded.name)
        clock = asyncio.get_running_loop().time
        limit = asyncio.timeout(self._start_timeout_s)
        try:
            async with limit, AsyncExitStack() as stack:
                # What it has started ends before what that uses is closed, or with a failed start.
                stack.push_async_callback(self._supervisor.stop_all, loaded.name)
                if lifespan is not None:
                    plugin = self._make_plugin(loaded)
                    await stack.enter_async_context(asynccontextmanager(lifespan)(plugin))
                    stack.push_async_callback(self._supervisor.stop_all, loaded.name)
                limit.reschedule(None)
                self._router.set_reason(loaded.name, None)
                loaded.set_state("ready")
                await self.await_end(loaded)
                self._router.set_reason(loaded.name, "has stopped")
                limit.reschedule(clock() + self._stop_timeout_s)
        except TimeoutError as error:
            if not limit.expired():
                raise
            doing = "stop" if loaded.state == "ready" else "start"
            raise Failed(f"did not {doing} in time ({doing}_timeout_s)") from error
        finally:
            self._router.remove_observers(loaded.name)

    async def await_end(self, loaded: Loaded) -> None:
        """Wait until a plugin is to stop: the daemon does, and all that require it have."""
        await self.stopping.wait()
        for other in self.plugins.values():
            if loaded.name in other.info.requires:
                await other.stopped.wait()

    def _fail(self, loaded: Loaded, reason: str, error: BaseException | None = None) -> None:
        log.error("a plugin failed", exc_info=error, extra={"plugin": loaded.name, "why": reason})
        self._router.set_reason(loaded.name, f"has failed: {reason}")
        loaded.set_state("failed", reason)
        if loaded.is_essential:
            self.essential_failed.set()
