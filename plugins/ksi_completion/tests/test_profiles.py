"""Turns of declared agents: what is declared holds, and what a turn says itself goes before."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_completion.events import AgentProfile, CompletionAgent, TurnLimits
from ksi_completion.tests.doubles import Script, Toolbox, calling
from ksi_daemon.event_system import event_contributor
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Busy, Failed, Unavailable
from ksi_daemon.testing import module_plugin
from ksi_models.events import ModelSettings


class Register:
    """Knows agents by name and version."""

    def __init__(self) -> None:
        self.profiles: dict[tuple[str, int], AgentProfile] = {}
        self.newest: dict[str, int] = {}
        self.asked: list[CompletionAgent] = []
        self.is_broken = False

    def declare(self, name: str, **fields: Any) -> None:
        """Declare the next version of an agent."""
        version = self.newest.get(name, 0) + 1
        self.newest[name] = version
        profile = AgentProfile(agent=name, version=version, **fields)
        self.profiles[name, version] = profile

    @event_contributor("completion:agent")
    async def who(self, asked: CompletionAgent) -> AgentProfile | None:
        """Tell who that is."""
        self.asked.append(asked)
        if self.is_broken:
            raise Failed("nobody is in")
        version = asked.version or self.newest.get(asked.agent, 0)
        return self.profiles.get((asked.agent, version))


@pytest.fixture
def register() -> Register:
    return Register()


@pytest.fixture
def ksi_plugins(ksi_plugins: list[EntryPoint], register: Register) -> list[EntryPoint]:
    """Turns, and who knows agents."""

    @hookimpl
    async def ksi_lifespan(plugin: Any) -> AsyncIterator[None]:
        plugin.add(register)
        yield

    return [*ksi_plugins, module_plugin("register", ksi_lifespan=ksi_lifespan)]


async def have(client: AsyncClient, **data: Any) -> dict[str, Any]:
    """Have a turn, and return what came of it."""
    accepted = await client.request("completion:async", data)
    result = await client.request("completion:wait", {"run_id": accepted["run_id"]})
    assert isinstance(result, dict)
    return result


async def test_a_turn_has_what_is_declared_of_its_agent(
    client: AsyncClient, script: Script, toolbox: Toolbox, register: Register
) -> None:
    toolbox.add("look", "read_only", lambda _: "seen")
    toolbox.add("send", "effectful", lambda _: "sent")
    register.declare(
        "scout",
        system="You look around.",
        models=("test/one", "test/two"),
        settings=ModelSettings(temperature=0.5),
        tools=("loo*",),
    )

    await have(client, prompt="go", agent="scout")

    (call,) = script.calls
    assert call.system == "You look around."
    assert (call.model, call.fallbacks) == ("test/one", ("test/two",))
    assert call.settings.temperature == 0.5
    assert [tool.name for tool in call.tools] == ["look"]


async def test_what_a_turn_says_itself_goes_before_what_its_agent_says(
    client: AsyncClient, script: Script, register: Register
) -> None:
    register.declare("scout", system="You look around.", models=("test/one", "test/two"))

    await have(client, prompt="go", agent="scout", model="test/mine", system="You sing.")

    (call,) = script.calls
    assert (call.model, call.fallbacks, call.system) == ("test/mine", (), "You sing.")


async def test_a_name_that_nobody_declares_is_a_mere_label(
    client: AsyncClient, script: Script
) -> None:
    result = await have(client, prompt="go", agent="anybody")

    assert result["status"] == "succeeded"
    assert script.calls[0].system is None


async def test_a_turn_keeps_the_version_that_it_was_accepted_with(
    client: AsyncClient, script: Script, register: Register
) -> None:
    register.declare("scout", system="the first")
    await client.request("conversation:create", {"conversation_id": "c"})
    lock = await client.request("conversation:lock", {"conversation_id": "c", "owner": "me"})
    data = {"prompt": "go", "agent": "scout", "conversation_id": "c"}
    accepted = await client.request("completion:async", data)
    register.declare("scout", system="the second")
    unlock = {"conversation_id": "c", "lock_id": lock["lock_id"]}
    await client.request("conversation:unlock", unlock)
    await client.request("completion:wait", {"run_id": accepted["run_id"]})
    await have(client, **data)

    assert [call.system for call in script.calls] == ["the first", "the second"]


async def test_an_agents_answers_are_held_to_its_schema(
    client: AsyncClient, script: Script, register: Register
) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    register.declare("counter", output_schema=schema)
    script.say("seven", '{"n": 7}')

    result = await have(client, prompt="go", agent="counter")

    assert result["output"] == {"n": 7}
    assert len(script.calls) == 2


@pytest.mark.parametrize(
    ("limits", "answers", "setting"),
    [
        (TurnLimits(requests=1), [calling(("look", "{}")), "done"], "limits.requests"),
        (TurnLimits(tool_calls=0), [calling(("look", "{}"))], "limits.tool_calls"),
        (TurnLimits(tokens=15), [calling(("look", "{}")), "done"], "limits.tokens"),
        (TurnLimits(cost_usd=0.5), [calling(("look", "{}")), "done"], "limits.cost_usd"),
    ],
)
async def test_an_agents_limits_end_its_turn_and_are_named(
    client: AsyncClient,
    script: Script,
    toolbox: Toolbox,
    register: Register,
    limits: TurnLimits,
    answers: list[Any],
    setting: str,
) -> None:
    toolbox.add("look", "read_only", lambda _: "seen")
    register.declare("scout", limits=limits)
    script.say(*answers)

    result = await have(client, prompt="go", agent="scout")

    assert result["status"] == "failed"
    assert setting in result["error"]["message"]


async def test_an_agent_delegates_no_deeper_than_its_limit_and_neither_do_those_below(
    client: AsyncClient, register: Register
) -> None:
    register.declare("boss", limits=TurnLimits(depth=1))
    register.declare("helper", limits=TurnLimits(depth=5))
    boss = await client.request("completion:async", {"prompt": "go", "agent": "boss"})
    data = {"prompt": "go", "agent": "helper"}
    helper = await client.request("completion:async", data, context={"run": boss["run_id"]})

    with pytest.raises(Busy, match=r"limits\.depth"):
        await client.request("completion:async", data, context={"run": helper["run_id"]})


async def test_no_turn_is_accepted_while_nobody_can_tell_what_bounds_it(
    client: AsyncClient, script: Script, register: Register
) -> None:
    register.is_broken = True

    with pytest.raises(Unavailable, match="scout"):
        await client.request("completion:async", {"prompt": "go", "agent": "scout"})

    assert not script.calls


async def test_a_turn_taken_up_tells_its_run_and_the_one_that_asked_for_it(
    client: AsyncClient, register: Register
) -> None:
    register.declare("helper")
    boss = await client.request("completion:async", {"prompt": "go"})
    data = {"prompt": "go", "agent": "helper"}
    made = await client.request("completion:async", data, context={"run": boss["run_id"]})
    await client.request("completion:wait", {"run_id": made["run_id"]})

    taken_up = register.asked[-1]
    assert (taken_up.run_id, taken_up.parent_run_id) == (made["run_id"], boss["run_id"])
    assert taken_up.version == 1


async def test_a_preview_shows_what_is_declared(client: AsyncClient, register: Register) -> None:
    register.declare("scout", system="You look around.", models=("test/one",))

    shown = await client.request("completion:preview", {"turn": {"prompt": "go", "agent": "scout"}})

    assert (shown["model"], shown["system"]) == ("test/one", "You look around.")
