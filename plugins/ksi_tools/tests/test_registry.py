"""Where tools come from, and when they are gone."""

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from ksi_client import (
    AsyncClient,
    Busy,
    Conflict,
    Context,
    InvalidData,
    NotFound,
    UnixTransport,
)
from ksi_daemon.event_system import event_handler
from ksi_tools.api import ToolContext, Tools, ToolSpec, tool
from ksi_tools.functions import tool_of, tools_of
from ksi_tools.registry import EventSource
from ksi_tools.tests.conftest import Client, Run
from ksi_tools.tests.test_permissions import as_token
from ksi_tools.tool import check_tool_name, name_of_event

PLACE = {
    "type": "object",
    "properties": {"place": {"type": "string", "pattern": "^[A-Z]"}},
    "required": ["place"],
    "additionalProperties": False,
}


class Node(Struct):
    """A tree."""

    name: str
    children: tuple["Node", ...] = ()


async def names(client: AsyncClient, pattern: str = "*") -> list[str]:
    listed = await client.request("tool:list", {"pattern": pattern})
    return [each["name"] for each in listed["tools"]]


def registry(client: Client) -> Tools:
    daemon: Any = client.daemon
    found: Tools = daemon._services[Tools]
    return found


# -- functions ------------------------------------------------------------------------------------


def test_a_schema_is_made_of_annotations() -> None:
    @tool(effects="read_only")
    def find(
        tree: Node,
        how: Literal["deep", "wide"] = "deep",
        limit: Annotated[int, Meta(ge=1, description="how many")] = 3,
        tags: list[str] = [],  # noqa: B006  it is made anew each time
        context: ToolContext | None = None,
    ) -> str:
        """Find something."""
        return ""

    made = tool_of(find, "test")

    assert made.description == "Find something."
    assert made.parameters["type"] == "object"
    assert made.parameters["required"] == ["tree"]
    assert made.parameters["properties"]["tree"] == {"$ref": "#/$defs/Node"}
    assert made.parameters["properties"]["how"] == {"enum": ["deep", "wide"], "default": "deep"}
    assert made.parameters["properties"]["limit"]["description"] == "how many"
    assert "Node" in made.parameters["$defs"]
    assert made.parameters["additionalProperties"] is False


@pytest.mark.parametrize("which", ["bare", "stars", "positional"])
def test_a_function_that_no_model_could_call_is_refused(which: str) -> None:
    @tool(effects="read_only")
    def bare(x) -> str:  # type: ignore[no-untyped-def]  # that is what is wrong
        """Lack an annotation."""
        return ""

    @tool(effects="read_only")
    def stars(*args: int) -> str:
        """Take any number."""
        return ""

    @tool(effects="read_only")
    def positional(x: int, /) -> str:
        """Take it by its place."""
        return ""

    with pytest.raises(InvalidData, match=f"the tool {which}"):
        list(tools_of({"bare": bare, "stars": stars, "positional": positional}[which], "test"))


ODD_NAMES = ["", "two words", "a.b", "a:b", "café", "x" * 65, "line\n"]


async def test_a_name_that_providers_refuse_is_no_tool_s(run: Run) -> None:
    async with run() as client:
        provider = registry(client).add_provider(Far())
        daemon: Any = client.daemon
        async with AsyncClient(UnixTransport(daemon.home.socket)) as far:
            await serve(far)
            for name in ODD_NAMES:
                with pytest.raises(InvalidData, match="64 characters"):
                    provider.update([ToolSpec(name=name, description="")])
                with pytest.raises(InvalidData, match=r"\$\.name|64 characters"):
                    await far.request("tool:register", weather(name=name))
            await far.request("tool:register", weather(name="A-z_0" + "x" * 59))
            assert set(await names(client)).isdisjoint(ODD_NAMES)


def test_a_tool_made_of_an_event_has_a_name_that_providers_take() -> None:
    long = ["far:" + "x" * 100 + end for end in "ab"]

    made = [name_of_event(event) for event in ("weather:get", "a.b:c-d:E", *long)]

    assert made[:2] == ["weather_get", "a_b_c-d_E"]
    assert made == [check_tool_name(name) for name in made]
    assert len(set(made)) == 4


async def test_a_name_is_one_tool_s_alone(run: Run) -> None:
    @tool(effects="effectful", name="ask_user")
    async def impostor() -> str:
        """Look like another."""
        return ""

    async with run() as client:
        tools = registry(client)
        with pytest.raises(Conflict, match="ask_user"):
            tools.add(impostor, provider="impostor")
        with pytest.raises(Conflict):
            tools.add_event("x:y", effects="read_only", name="ask_user")
        assert (await names(client)) == ["ask_user", "client_tool", "current_time"]


async def test_tools_go_with_their_registration(run: Run) -> None:
    @tool(effects="read_only")
    async def passing() -> str:
        """Pass."""
        return ""

    async with run() as client:
        with registry(client).add(passing, provider="work"):
            assert "passing" in await names(client)
            # The plugin is started anew, and brings it again.
            registry(client).add(passing, provider="work")
            daemon: Any = client.daemon
            daemon.router.set_reason("work", "is being restarted")
            assert "passing" not in await names(client)
            daemon.router.set_reason("work", None)
        with pytest.raises(NotFound):
            await client.request("tool:call", {"name": "passing"})


# -- other providers ------------------------------------------------------------------------------


class Far:
    """A provider whose tools change."""

    name = "work"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def call_tool(self, name: str, arguments: dict[str, Any], context: ToolContext) -> Any:
        self.seen.append((name, arguments, context.call_id))
        return {"far": name}


async def test_a_provider_s_tools_may_change(run: Run) -> None:
    far = Far()
    async with run() as client:
        registration = registry(client).add_provider(far)
        registration.update(
            [ToolSpec(name="one", description="First."), ToolSpec(name="two", description="")]
        )
        assert {"one", "two"} <= set(await names(client))
        spec = ToolSpec(name="two", description="", parameters=PLACE, effects="read_only")
        registration.update([spec])
        assert "one" not in await names(client)
        request = {"name": "two", "arguments": {"place": "Oslo"}, "call_id": "c1"}
        answer = await client.request("tool:call", request)
        with pytest.raises(InvalidData, match=r"at \$\.place"):
            await client.request("tool:call", {"name": "two", "arguments": {"place": "oslo"}})
        with pytest.raises(InvalidData, match="not sound"):
            registration.update(
                [ToolSpec(name="x", description="", parameters={"type": "object", "required": 3})]
            )
        assert "two" in await names(client)  # what can't be taken on changes nothing
        registration.remove()
        assert "two" not in await names(client)

    assert answer["content"] == '{"far":"two"}'
    assert far.seen == [("two", {"place": "Oslo"}, "c1")]


# -- clients --------------------------------------------------------------------------------------


async def serve(client: AsyncClient, event: str = "far:weather") -> list[Any]:
    seen: list[Any] = []

    async def weather(data: Any, context: Context | None) -> Any:
        seen.append((data, context))
        return {"celsius": 4}

    await client.serve(event, weather)
    return seen


def weather(**more: Any) -> dict[str, Any]:
    return {
        "name": "weather",
        "event": "far:weather",
        "description": "Tell the weather.",
        "parameters": PLACE,
        **more,
    }


async def test_a_connection_s_tool_is_called_and_goes_with_it(run: Run) -> None:
    async with run() as client:
        daemon: Any = client.daemon
        async with AsyncClient(UnixTransport(daemon.home.socket)) as far:
            seen = await serve(far)
            await far.request("tool:register", weather())
            (described,) = (await client.request("tool:describe", {"names": ["weather"]}))["tools"]
            request = {"name": "weather", "arguments": {"place": "Oslo"}, "call_id": "c1"}
            answer = await client.request("tool:call", request)
            with pytest.raises(InvalidData, match=r"at \$"):
                await client.request("tool:call", {"name": "weather", "arguments": {"x": 1}})
            with pytest.raises(NotFound):  # it is of its tenant
                await client.request("tool:call", request, context={"tenant": "b"})
        gone = await client.subscribe("nothing:at-all")
        await gone.close()

        assert described["parameters"] == PLACE
        assert described["info"]["effects"] == "effectful"
        assert answer["content"] == '{"celsius":4}'
        assert seen[0][0] == {"place": "Oslo"}
        while "weather" in await names(client):
            pass
        with pytest.raises(NotFound):
            await client.request("tool:call", {"name": "weather", "arguments": {"place": "Oslo"}})
        assert (await client.request("tool:call", request))["content"] == '{"celsius":4}'


async def test_an_effect_of_a_connection_that_breaks_is_in_doubt(run: Run) -> None:
    async with run() as client:
        daemon: Any = client.daemon
        async with AsyncClient(UnixTransport(daemon.home.socket)) as far:

            async def break_off(data: Any, context: Context | None) -> Any:
                for connection in list(daemon.server.connections):
                    if connection.served:
                        connection.transport.abort()
                return {}

            await far.serve("far:weather", break_off)
            await far.request("tool:register", weather())
            request = {"name": "weather", "arguments": {"place": "Oslo"}, "call_id": "c1"}
            answer = await client.request("tool:call", request)

    assert answer["status"] == "in_doubt"
    assert "gone away" in answer["content"]


async def test_a_token_registers_what_it_serves_itself_and_nothing_else(run: Run) -> None:
    async with run() as client, as_token(client, tenant="b") as mine:
        await serve(mine)
        for event in ("system:shutdown", "far:other"):
            with pytest.raises(NotFound, match="serve"):
                await mine.request("tool:register", weather(event=event))
        await mine.request("tool:register", weather(effects="read_only"))
        assert "weather" in await names(mine)
        assert "weather" not in await names(client)
        with pytest.raises(NotFound):
            await client.request("tool:unregister", {"name": "weather"})
        await mine.request("tool:unregister", {"name": "weather"})
        assert "weather" not in await names(mine)


async def test_what_is_registered_is_checked_and_bounded(run: Run) -> None:
    async with run(settings=("tools.max_registered=2",)) as client:
        daemon: Any = client.daemon
        async with AsyncClient(UnixTransport(daemon.home.socket)) as far:
            await serve(far)
            for parameters in (
                {"type": "array"},
                {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:1/x"}}},
                {"type": "object", "properties": {"x": {"$ref": "file:///etc/passwd"}}},
                {"type": "object", "properties": {"x": {"pattern": "("}}},
                {"type": "object", "title": "x" * 300_000},
            ):
                with pytest.raises(InvalidData, match="schema"):
                    await far.request("tool:register", weather(parameters=parameters))
            with pytest.raises(Conflict):
                await far.request("tool:register", weather(name="ask_user"))
            await far.request("tool:register", weather())
            await far.request("tool:register", weather(description="Again."))
            await far.request("tool:register", weather(name="second"))
            with pytest.raises(Busy, match=r"tools\.max_registered"):
                await far.request("tool:register", weather(name="third"))


async def test_the_owner_makes_a_plugin_s_event_a_tool(run: Run) -> None:
    class Weather:
        @event_handler("weather:get")
        def get(self, request: Node) -> Node:
            """Report it."""
            return request

    async with run(owners=(Weather(),)) as client:
        await client.request(
            "tool:register",
            weather(event="weather:get", parameters={"type": "object"}, effects="read_only"),
        )
        arguments = {"name": "x", "children": [{"name": "y"}]}
        request = {"name": "weather", "arguments": arguments}
        answer = await client.request("tool:call", request)
        broken = await client.request("tool:call", {"name": "weather", "arguments": {"name": 1}})

    assert '"children":[{"name":"y"' in answer["content"]
    assert broken["status"] == "failed"
    assert broken["error"]["code"] == "invalid_data"


async def test_a_name_that_a_plugin_has_or_had_is_no_provider_s(run: Run) -> None:
    @tool(effects="read_only")
    async def search() -> str:
        """Search here."""
        return "here"

    async with run() as client:
        tools = registry(client)
        registration = tools.add_provider(Far())
        registration.update([ToolSpec(name=name, description="") for name in ("search", "look")])
        first = await client.request("tool:call", {"name": "search"})
        with tools.add(search, provider="work"):
            second = await client.request("tool:call", {"name": "search"})
            offered = registration.offered()
            with pytest.raises(Conflict):
                registration.update([ToolSpec(name="twice", description="")] * 2)
        with pytest.raises(NotFound):  # while the plugin is started again, as well
            await client.request("tool:call", {"name": "search"})

    assert [each["content"] for each in (first, second)] == ['{"far":"search"}', "here"]
    assert offered == {"look"}


async def test_a_name_stays_whose_it_is_also_while_it_is_not_offered(run: Run) -> None:
    async with run() as client:
        tools = registry(client)
        others, first, second = (tools.add_provider(Far(), tenant=t) for t in ("other", "", ""))
        spec = ToolSpec(name="search", description="")
        for each in (others, first, second):
            each.update([spec])
        first.update([], claims=["search"])
        held = [each.name for whose in ("default", "other") for each in tools.all(whose)]
        source = EventSource(name="search", event="x:y", effects="idempotent", tenant="acme")
        with pytest.raises(Conflict):
            tools.register(source)
        first.remove()
        free = set(second.offered()), set(others.offered())

    assert "search" not in held
    assert free == ({"search"}, set())


async def test_a_connection_s_tool_is_not_shadowed_by_one_that_comes_later(run: Run) -> None:
    async with run() as client:
        daemon: Any = client.daemon
        async with AsyncClient(UnixTransport(daemon.home.socket)) as far:
            await serve(far)
            await far.request("tool:register", weather(name="forecast"))
            tools = registry(client)
            before = tools.find("forecast", "default")
            tools.add_provider(Far()).update([ToolSpec(name="forecast", description="")])
            after = tools.find("forecast", "default")

    assert after is before


async def test_a_provider_s_tools_may_be_one_tenant_s(run: Run) -> None:
    async with run() as client:
        tools = registry(client)
        for tenant in ("acme", "other"):
            specs = [ToolSpec(name="search", description=tenant)]
            tools.add_provider(Far(), tenant=tenant).update(specs)
        seen = {each.name: each.description for each in tools.all("acme")}
        with pytest.raises(NotFound):
            await client.request("tool:call", {"name": "search"})

    assert seen["search"] == "acme"


async def test_a_schema_that_was_looked_at_before_is_compiled_when_it_is_needed(run: Run) -> None:
    async with run() as client:
        far = Far()
        spec = ToolSpec(name="odd", description="", parameters={"type": "object", "required": 1})
        with pytest.raises(InvalidData, match="odd"):
            registry(client).add_provider(far).update([spec])
        registry(client).add_provider(far).update([spec], are_sound=True)
        with pytest.raises(InvalidData, match="odd"):
            await client.request("tool:call", {"name": "odd"})


async def test_a_pattern_that_would_take_for_ever_does_not(run: Run) -> None:
    async with run() as client:
        far = Far()
        spec = ToolSpec(
            name="slow",
            description="",
            parameters={"type": "object", "properties": {"x": {"pattern": "^(a+)+$"}}},
        )
        registry(client).add_provider(far).update([spec])
        request = {"name": "slow", "arguments": {"x": "a" * 5000 + "b"}}
        with pytest.raises(InvalidData, match=r"at \$\.x"):
            await client.request("tool:call", request, timeout_s=5.0)
