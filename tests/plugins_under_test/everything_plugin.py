"""A plugin that does all that a plugin can do, to be run in the daemon and in a host."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from msgspec import Struct

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import (
    current_context,
    event_contributor,
    event_handler,
    event_observer,
)
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Conflict, Event
from ksi_daemon.settings import Secret


class EverythingSettings(Struct, frozen=True, kw_only=True):
    """Settings of several kinds."""

    greeting: str = "Hello"
    places: tuple[str, ...] = ()
    retry_after_s: float = 1.5
    password: Secret = ""


class Greet(Struct, frozen=True, kw_only=True):
    """Greet somebody."""

    name: str
    at: datetime | None = None
    ages: dict[int, str] = {}


class Greeting(Struct, frozen=True, kw_only=True):
    """A greeting, and who was asked for it."""

    text: str
    at: datetime | None
    ages: dict[int, str]


class Everything:
    """What the plugin remembers."""

    def __init__(self, settings: EverythingSettings, bus: Bus) -> None:
        self.settings = settings
        self.bus = bus
        self.beats = 0
        self.seen: list[str] = []

    @event_handler("everything:greet")
    async def greet(self, request: Greet) -> Greeting:
        """Greet somebody in the words of the settings."""
        text = f"{self.settings.greeting}, {request.name}"
        return Greeting(text=text, at=request.at, ages=request.ages)

    @event_handler("everything:open", public=True)
    def open(self) -> str:
        """Answer anybody."""
        return "welcome"

    @event_handler("everything:now")
    def now(self) -> dict[str, Any]:
        """Answer inline."""
        return {"pid": os.getpid(), "beats": self.beats, "seen": self.seen}

    @event_handler("everything:count")
    async def count(self, data: dict[str, int]) -> AsyncIterator[int]:
        """Count, and then perhaps fail."""
        for number in range(data["to"]):
            yield number
        if data.get("fail"):
            raise Conflict("enough counted")

    @event_handler("everything:fail")
    async def fail(self, data: dict[str, str]) -> None:
        """Fail in one way or another."""
        if data["how"] == "typed":
            raise Conflict("it is taken", retry_after_s=2.0, details={"by": "me"})
        raise ValueError("not for everybody")

    @event_handler("everything:lie", timeout_s=5.0)
    async def lie(self) -> Greeting:
        """Answer with something else than was said."""
        return "a string"  # type: ignore[return-value]  # that is the lie

    @event_handler("everything:slow", timeout_s=0.3)
    async def slow(self) -> None:
        """Never answer."""
        await asyncio.Event().wait()

    @event_handler("everything:forever")
    async def forever(self) -> None:
        """Say that it has begun, and never answer."""
        self.bus.publish("everything:begun", {"pid": os.getpid()})
        await asyncio.Event().wait()

    @event_handler("everything:relay")
    async def relay(self, data: dict[str, Any]) -> Any:
        """Ask another plugin."""
        return await self.bus.request(data["event"], data.get("data"))

    @event_handler("everything:gather")
    async def gather(self) -> list[Any]:
        """Ask all contributors."""
        answers = await self.bus.gather("everything:parts")
        return [answer.result for answer in answers]

    @event_handler("everything:environment")
    def environment(self) -> dict[str, str]:
        """Show the environment."""
        return dict(os.environ)

    @event_handler("everything:block")
    async def block(self) -> None:
        """Block the loop for good."""
        threading.Event().wait()

    @event_handler("everything:die")
    async def write_last_words(self) -> None:
        """Write lines where nobody expects them, and die."""
        os.write(2, b"".join(b"last word %d %s\n" % (n, b"." * 500) for n in range(100)))
        os._exit(7)

    @event_contributor("everything:parts", order=9)
    async def part(self) -> str:
        """Be one of many."""
        return "mine"

    @event_contributor("health:check")
    async def health(self) -> dict[str, str]:
        """Say how the plugin is."""
        return {"health": "degraded", "why": f"{self.settings.greeting} is all I can say"}

    @event_observer("watched:*")
    async def watch(self, event: Event) -> None:
        """Remember what was seen, and in which context."""
        context = current_context()
        assert context is not None
        self.seen.append(f"{event.name} in {context.conversation}")
        self.bus.publish("everything:saw", {"event": event.name})

    async def beat(self) -> None:
        """Work in the background; fail the first time."""
        self.beats += 1
        if self.beats == 1:
            raise ValueError("the first time it fails")
        await asyncio.Event().wait()


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(settings=EverythingSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Take everything on."""
    everything = Everything(plugin.settings, plugin.bus)
    plugin.add(everything)
    plugin.start_task("beat", everything.beat)
    plugin.log.warning("everything has begun")
    yield
    (plugin.home / "everything-stopped").write_text("in order")
