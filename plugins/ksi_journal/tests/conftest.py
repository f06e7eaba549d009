"""What the journal's tests share."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct

from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_handler
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Denied, Failed
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_journal.journal import Journal


class AgentCall(Struct, frozen=True, kw_only=True):
    """A payload with a secret of its own."""

    text: str = ""
    pin: Annotated[str, Meta(extra={"secret": True})] = ""
    fail: str = ""


class ToolCall(Struct, frozen=True, kw_only=True):
    """A payload of any shape."""

    args: Any = None


async def lifespan(plugin: Plugin) -> Any:
    """Answer events that call each other."""

    class Agents:
        @event_handler("agent:say")
        async def say(self, request: AgentCall) -> dict[str, Any]:
            plugin.bus.publish("agent:said", {"text": request.text})
            if request.fail == "denied":
                raise Denied("it may not")
            if request.fail:
                raise Failed("it can't")
            await plugin.bus.request("tool:call", {"args": {"a": 1}})
            await plugin.bus.request("tool:call", {"args": {"a": 2}})
            return {}

        @event_handler("tool:call")
        def call(self, request: ToolCall) -> dict[str, Any]:
            return {}

        @event_handler("notes:add")
        def unrecorded(self, request: Any) -> dict[str, Any]:
            return {}

    plugin.add(Agents())
    yield


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The store, the journal, and a plugin whose events it records."""
    installed = installed_plugins("postgres", "journal")
    return [*installed, module_plugin("agents", ksi_lifespan=_hook(lifespan))]


def _hook(function: Callable[..., Any]) -> Any:
    from ksi_daemon.hookspecs import hookimpl  # noqa: PLC0415  marks a copy for this test alone

    return hookimpl(function)


@pytest.fixture
def journal(daemon: Daemon) -> Journal:
    """The journal as other plugins get it."""
    found = daemon._services[Journal]
    assert isinstance(found, Journal)
    return found
