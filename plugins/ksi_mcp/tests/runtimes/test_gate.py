"""The gate is tried at every start: what may not be called is not, whoever asks."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_mcp.runtimes import gate
from ksi_mcp.runtimes.gate import AGENTS, PROGRAMS, TURNS, GateTrial
from ksi_models.calls import Calls
from ksi_tools import bearers
from ksi_tools.api import Tools

NEEDED = ("postgres", "workflows", "models", "tools", "completion", "mcp")


class Place:
    """A plugin that has the trials' services."""

    def __init__(self) -> None:
        self.trial: GateTrial
        self.plugin: Plugin

    @hookimpl
    def ksi_plugin(self) -> PluginInfo:
        return PluginInfo(requires=("tools", "mcp"))

    @hookimpl
    async def ksi_lifespan(self, plugin: Plugin) -> AsyncIterator[None]:
        self.plugin = plugin
        self.trial = GateTrial(plugin.bus, plugin.service(Tools))
        yield


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def ksi_plugins(place: Place) -> list[EntryPoint]:
    """The real gate."""
    hooks = {"ksi_plugin": place.ksi_plugin, "ksi_lifespan": place.ksi_lifespan}
    return [*installed_plugins(*NEEDED), module_plugin("place", **hooks)]


async def tried(client: AsyncClient) -> dict[str, Any]:
    """Return what the start has shown, once all is tried."""
    while True:
        told = await client.request("mcp:runtimes", {})
        found = {each["name"]: each for each in told["runtimes"]}
        if all(each.get("state", "waiting") != "waiting" for each in found.values()):
            return found


async def test_every_runtime_is_tried_at_the_start(client: AsyncClient) -> None:
    found = await tried(client)

    assert {name: found[name]["state"] for name in (TURNS, AGENTS, PROGRAMS)} == {
        TURNS: "proven", AGENTS: "proven", PROGRAMS: "proven",
    }  # fmt: skip
    ways = {w["way"]: w["result"] for name in found for w in found[name].get("ways", ())}
    assert set(ways.values()) == {"held"}
    assert len(ways) >= 7


async def test_a_gate_that_lets_something_through_is_found_out_and_one_not_reached_is_unknown(
    client: AsyncClient, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> str:
        return "it was not called"

    await tried(client)
    permit, sending = place.trial._permit, gate._sending
    with monkeypatch.context() as patch:
        patch.setattr(gate, "_sending", lambda tool: sending(tool.replace("look", "renamed")))
        renamed = await place.trial.programs()
        patch.setattr(gate.Canary, "call_tool", nothing)
        unreached = await place.trial.programs()
    assert [way.result for way in renamed.ways] == ["held", "held", "unknown"]
    assert [way.result for way in unreached.ways] == ["unknown"] * 3
    assert "nor can who may" in unreached.why

    async def unbounded(subject: str, **words: Any) -> None:
        await permit(subject, **{k: v for k, v in words.items() if k != "parent"})

    await permit("conversation:trial", allow=("*",))
    turns = await place.trial.turns()
    with monkeypatch.context() as patch:
        patch.setattr(place.trial, "_permit", unbounded)
        agents = await place.trial.agents()
    monkeypatch.setattr(bearers, "is_covered", lambda tool, scopes: True)
    programs = await place.trial.programs()
    monkeypatch.setattr(Calls, "_check_extra", lambda self, extra: None)
    models = await place.trial.turns()
    place.trial._passes_on = lambda member: True
    allowed = await place.trial.turns()

    assert [each.state for each in (turns, agents, programs)] == ["refused"] * 3
    assert "a tool that is not permitted" in turns.why
    assert "a child that may more" in agents.why
    assert "a tool without its scope" in programs.why
    assert "tools of a model's provider (with extra.tools)" in models.why
    assert allowed.ways[-1].detail == "models.extra allows tools"
