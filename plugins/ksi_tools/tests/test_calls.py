"""A call: its arguments, its one effect, its output, and how it may end."""

import asyncio
import threading
from typing import Any

import pytest
from msgspec import Struct

from ksi_client import AsyncClient, Busy, Conflict, Denied, InvalidData, NotFound
from ksi_daemon.event_system import event_handler, event_interceptor
from ksi_daemon.protocol import Event, KsiError
from ksi_daemon.protocol import TimedOut as NobodyKnows
from ksi_tools.api import ToolContext, tool
from ksi_tools.tests.conftest import Run
from ksi_workflows.engine import Engine

WELL_WITHIN_S = 10.0


class Place(Struct, frozen=True):
    """Where."""

    city: str
    zip_code: int = 0


class World:
    """Something that tools have effects on."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.contexts: list[ToolContext] = []

    @tool(effects="effectful")
    async def strike(self, what: str, context: ToolContext) -> str:
        """Strike something."""
        self.contexts.append(context)
        self.effects.append(what)
        return f"struck {what}"

    @tool(effects="effectful")
    async def strike_slowly(self, what: str) -> str:
        """Strike something, after a while."""
        self.begun.set()
        await self.go_on.wait()
        self.effects.append(what)
        return f"struck {what}"

    @tool(effects="idempotent")
    async def set_slowly(self, what: str) -> str:
        """Set something, after a while."""
        self.begun.set()
        await self.go_on.wait()
        self.effects.append(what)
        return what

    @tool(effects="read_only")
    def look(self, place: Place, days: tuple[int, ...] = (1,)) -> dict[str, Any]:
        """Look at a place."""
        return {"city": place.city, "days": days}

    @tool(effects="read_only")
    async def tell(self, text: str, times: int = 1) -> str:
        """Tell it again and again."""
        return text * times

    @tool(effects="effectful")
    async def fail(self, how: str) -> str:
        """Fail."""
        self.effects.append(how)
        raise {
            "typed": InvalidData("there is no such thing"),
            "bug": KeyError("secret"),
            "unknown": NobodyKnows("the other side did not answer"),
            "reset": ConnectionResetError("reset by peer"),
            "refused": ConnectionRefusedError("refused"),
            "cancelled": asyncio.CancelledError(),
        }[how]


async def call(client: AsyncClient, name: str, call_id: str | None = None, **arguments: Any) -> Any:
    request = {"name": name, "arguments": arguments}
    if call_id is not None:
        request["call_id"] = call_id
    return await client.request("tool:call", request)


async def ledger(client: AsyncClient, **request: Any) -> list[Any]:
    return list((await client.request("tool:calls", request))["calls"])


# -- arguments ------------------------------------------------------------------------------------


async def test_a_call_that_comes_before_the_engine_is_launched_waits_for_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    launch = Engine.launch

    def held(engine: Engine, *args: Any) -> None:
        begun.set()
        assert may_go_on.wait(WELL_WITHIN_S)
        launch(engine, *args)

    monkeypatch.setattr(Engine, "launch", held)
    world = World()
    async with run(world.strike) as client, asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(
            client.request("tool:call", {"name": "strike", "arguments": {"what": "it"}})
        )
        await asyncio.to_thread(begun.wait, WELL_WITHIN_S)
        await client.request("system:health")
        assert world.effects == []
        may_go_on.set()
        assert (await calling)["content"] == "struck it"


async def test_a_tool_is_called_with_what_its_function_declares(run: Run) -> None:
    async with run(World()) as client:
        answer = await call(client, "look", place={"city": "Oslo"}, days=[1, 2])

    assert answer["status"] == "done"
    assert answer["content"] == '{"city":"Oslo","days":[1,2]}'
    assert answer["size_bytes"] == len(answer["content"])


async def test_arguments_may_be_the_text_that_a_model_wrote(run: Run) -> None:
    async with run(World()) as client:
        request = {"name": "look", "arguments": '{"place": {"city": "Rome"}}'}
        answer = await client.request("tool:call", request)
        assert answer["content"] == '{"city":"Rome","days":[1]}'

        for broken in ('{"place": ', "[1]", '"x"', '{"a": "\\ud800"}', "[" * 100_000):
            with pytest.raises(InvalidData, match="the arguments of look") as caught:
                await client.request("tool:call", {"name": "look", "arguments": broken})
            assert caught.value.details is not None
            assert caught.value.details["kind"] == "arguments"
        assert len(await ledger(client)) == 1


async def test_a_wrong_argument_is_told_with_its_path_and_leaves_no_intent(run: Run) -> None:
    async with run(World()) as client:
        with pytest.raises(InvalidData, match=r"Expected `str`, got `int`") as caught:
            await call(client, "look", place={"city": 3})
        assert caught.value.details == {"kind": "arguments", "path": "$.place.city"}
        with pytest.raises(InvalidData, match="unknown field `plaice`"):
            await call(client, "look", place={"city": "x"}, plaice=1)
        with pytest.raises(InvalidData, match=r"max_arguments_bytes"):
            await call(client, "tell", text="x" * 1_100_000)
        with pytest.raises(NotFound, match="did you mean") as unknown:
            await call(client, "lok")
        assert unknown.value.details is not None
        assert unknown.value.details["nearest"][0] == "look"

        assert await ledger(client) == []


# -- once -----------------------------------------------------------------------------------------


async def test_a_call_is_made_once_and_asked_again_it_tells_what_came_of_it(run: Run) -> None:
    world = World()
    async with run(world) as client:
        first = await call(client, "strike", "c1", what="a")
        again = await call(client, "strike", "c1", what="a")
        other = await call(client, "strike", "c2", what="a")

    assert world.effects == ["a", "a"]
    assert first["content"] == again["content"] == other["content"] == "struck a"
    assert again["is_repeated"]
    assert "is_repeated" not in first
    assert world.contexts[0].call_id == "c1"
    assert world.contexts[0].attempt == 1


async def test_the_order_of_arguments_does_not_make_another_call(run: Run) -> None:
    async with run(World()) as client:
        for text in ('{"text":"x","times":2}', '{"times": 2, "text": "x"}'):
            request = {"name": "tell", "arguments": text, "call_id": "c1"}
            assert (await client.request("tool:call", request))["content"] == "xx"


async def test_a_call_id_with_another_call_is_refused(run: Run) -> None:
    world = World()
    async with run(world) as client:
        await call(client, "strike", "c1", what="a")

        with pytest.raises(Conflict, match="c1"):
            await call(client, "strike", "c1", what="b")
        with pytest.raises(Conflict, match="c1"):
            await call(client, "tell", "c1", text="a")
        request = {"name": "strike", "call_id": "c1", "arguments": {"what": "a"}}
        with pytest.raises(Conflict, match="c1"):  # the same, by somebody else
            await client.request("tool:call", request, context={"conversation": "x"})
        await call(client, "tell", "c3", text="mine")
        request = {"name": "tell", "call_id": "c3", "arguments": {"text": "mine"}}
        with pytest.raises(Conflict, match="c3"):
            await client.request("tool:call", request, context={"agent": "spy"})

    assert world.effects == ["a"]


async def test_two_who_ask_for_one_call_at_once_get_one_effect(run: Run) -> None:
    world = World()
    async with run(world) as client, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(call(client, "strike_slowly", "c1", what="a")) for _ in range(5)]
        await world.begun.wait()
        with pytest.raises(Conflict):
            await call(client, "strike_slowly", "c1", what="b")
        world.go_on.set()
        answers = [await each for each in asked]

    assert world.effects == ["a"]
    assert {each["content"] for each in answers} == {"struck a"}


async def test_the_outcome_is_told_when_the_tool_is_gone(run: Run, ksi_home: Any) -> None:
    world = World()
    async with run(world) as client:
        await call(client, "strike", "c1", what="a")

    async with run() as client:
        again = await call(client, "strike", "c1", what="a")
        with pytest.raises(NotFound):
            await call(client, "strike", "c2", what="a")

    assert again["content"] == "struck a"


# -- how it may end -------------------------------------------------------------------------------


async def test_a_tool_that_fails_is_told_to_the_model_and_not_called_again(run: Run) -> None:
    world = World()
    async with run(world) as client:
        typed = await call(client, "fail", "c1", how="typed")
        again = await call(client, "fail", "c1", how="typed")
        bug = await call(client, "fail", "c2", how="bug")
        refused = await call(client, "fail", "c3", how="refused")

    assert typed["status"] == again["status"] == bug["status"] == refused["status"] == "failed"
    assert typed["error"] == again["error"]
    assert typed["error"]["code"] == "invalid_data"
    assert typed["content"] == "there is no such thing"
    assert "KeyError" in bug["content"]
    assert "secret" not in str(bug)
    assert world.effects == ["typed", "bug", "refused"]


@pytest.mark.parametrize("how", ["unknown", "reset", "cancelled"])
async def test_an_effect_of_which_nobody_knows_is_in_doubt(run: Run, how: str) -> None:
    world = World()
    async with run(world) as client:
        doubted = await client.subscribe("tool:doubted")
        first = await call(client, "fail", "c1", how=how)
        again = await call(client, "fail", "c1", how=how)
        listed = await client.request("tool:in_doubt")
        told = await anext(aiter(doubted))

    assert first["status"] == again["status"] == "in_doubt"
    assert "tool:resolve" in first["content"]
    assert world.effects == [how]
    assert [each["call_id"] for each in listed["calls"]] == ["c1"]
    assert told.data["call_id"] == "c1"


async def test_a_time_out_leaves_an_effect_in_doubt(run: Run) -> None:
    world = World()
    async with run(world) as client:
        request = {"name": "strike_slowly", "arguments": {"what": "a"}, "timeout_s": 0.05}
        answer = await client.request("tool:call", {**request, "call_id": "c1"})
        assert answer["status"] == "in_doubt"
        assert "0.05 s" in answer["content"]

        request["name"] = "set_slowly"
        failed = await client.request("tool:call", {**request, "call_id": "c2"})
        again = await client.request("tool:call", {**request, "call_id": "c2"})

    assert failed["status"] == again["status"] == "failed"
    assert failed["error"]["code"] == "timeout"


async def test_a_call_that_nobody_waits_for_any_more_is_ended(run: Run) -> None:
    world = World()
    async with run(world) as client:
        doubted = await client.subscribe("tool:doubted")
        for name, call_id in (("strike_slowly", "c1"), ("set_slowly", "c2")):
            world.begun.clear()
            async with asyncio.TaskGroup() as tasks:
                calling = tasks.create_task(call(client, name, call_id, what=name))
                await world.begun.wait()
                calling.cancel()
        assert (await anext(aiter(doubted))).data["call_id"] == "c1"
        world.go_on.set()
        struck = await call(client, "strike_slowly", "c1", what="strike_slowly")
        put = await call(client, "set_slowly", "c2", what="set_slowly")

    assert struck["status"] == "in_doubt"
    assert put["status"] == "done"  # to repeat it does no harm
    assert world.effects == ["set_slowly"]


# -- output ---------------------------------------------------------------------------------------


async def test_a_large_output_is_kept_by_reference(run: Run) -> None:
    async with run(World(), settings=("tools.max_content_chars=1000",)) as client:
        whole = "αβγδ€" * 60_000
        answer = await call(client, "tell", "c1", text="αβγδ€", times=60_000)
        again = await call(client, "tell", "c1", text="αβγδ€", times=60_000)
        content, offset = "", 0
        while offset is not None:
            request = {"output_ref": answer["output_ref"], "offset": offset, "limit": 77_777}
            part = await client.request("tool:output", request)
            assert part["total"] == 300_000
            content, offset = content + part["content"], part["next_offset"]
        past = await client.request("tool:output", {"output_ref": "c1", "offset": 400_000})

    assert answer["content"].startswith(whole[:1000] + "\n[… the first 1000 of 300000 characters")
    assert again["content"] == answer["content"]
    assert answer["size_bytes"] == len(whole.encode())
    assert content == whole
    assert past["content"] == ""
    assert past["next_offset"] is None


async def test_an_output_past_all_bounds_is_cut(run: Run) -> None:
    settings = ("tools.max_content_chars=1000", "tools.max_output_bytes=5000")
    async with run(World(), settings=settings) as client:
        answer = await call(client, "tell", "c1", text="€", times=4000)
        part = await client.request("tool:output", {"output_ref": "c1"})

    assert "max_output_bytes" in answer["content"]
    assert part["content"] == "€" * 1666
    assert answer["size_bytes"] == 12_000


async def test_whatever_a_tool_returns_can_be_kept(run: Run) -> None:
    @tool(effects="read_only")
    async def odd(which: int) -> Any:
        """Return something odd."""
        return ["a\x00b", "\ud800", object(), None, 1 << 70, b"\xff"][which]

    async with run(odd) as client:
        answers = [(await call(client, "odd", which=each)).get("content", "") for each in range(6)]

    assert answers[0] == "a\ufffdb"
    assert answers[1] == "?"
    assert "can't be told in JSON" in answers[2]
    assert answers[3] == ""


async def test_others_do_not_read_an_output(run: Run) -> None:
    async with run(World(), settings=("tools.max_content_chars=200",)) as client:
        request = {"name": "tell", "call_id": "c1", "arguments": {"text": "x", "times": 1000}}
        await client.request("tool:call", request, context={"agent": "a"})

        read = {"output_ref": "c1"}
        assert (await client.request("tool:output", read))["total"] == 1000
        assert (await client.request("tool:output", read, context={"agent": "a"}))["total"] == 1000
        for other in ({"agent": "b"}, {"tenant": "b"}, {"conversation": "x"}):
            with pytest.raises(NotFound):
                await client.request("tool:output", read, context=other)


# -- the gate -------------------------------------------------------------------------------------


async def test_a_gate_that_refuses_a_call_leaves_no_intent(run: Run) -> None:
    class Gate:
        @event_interceptor("tool:call")
        async def approve(self, event: Event, proceed: Any) -> Any:
            if event.data.name == "strike":
                raise Denied("a person is to approve that")
            return await proceed(event)

    world = World()
    async with run(world, owners=(Gate(),)) as client:
        with pytest.raises(Denied, match="approve"):
            await call(client, "strike", "c1", what="a")
        assert await ledger(client) == []
        assert (await call(client, "tell", text="x"))["status"] == "done"

    assert world.effects == []


async def test_a_tool_that_calls_a_tool_does_not_wait_for_its_own_place(run: Run) -> None:
    class Nested:
        bus: Any = None

        @tool(effects="effectful")
        async def outer(self, depth: int) -> str:
            """Call another."""
            request = {"name": "outer", "arguments": {"depth": depth - 1}}
            if not depth:
                return "end"
            return str((await self.bus.request("tool:call", request)).content)

    nested = Nested()
    async with run(nested, settings=("tools.max_running=1",)) as client:
        answer = await call(client, "outer", depth=3)

    assert answer["content"] == "end"


async def test_calls_past_the_bound_are_refused_with_its_name(run: Run) -> None:
    world = World()
    settings = ("tools.max_running=2", "tools.max_waiting=1")
    async with run(world, settings=settings) as client, asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(call(client, "strike_slowly", what=str(each))) for each in range(3)
        ]
        await world.begun.wait()
        with pytest.raises(Busy, match=r"tools\.max_running"):
            await call(client, "tell", text="x")
        world.go_on.set()
        for each in asked:
            assert (await each)["status"] == "done"

    assert sorted(world.effects) == ["0", "1", "2"]


async def test_progress_is_published_and_bounded_in_rate(run: Run) -> None:
    @tool(effects="read_only")
    async def count(context: ToolContext) -> str:
        """Count."""
        for number in range(1000):
            context.progress(f"at {number}", number, 1000)
        return "done"

    @tool(effects="read_only")
    def count_apart(context: ToolContext) -> str:
        """Count, in a thread."""
        context.progress("apart", 0)
        return "done"

    async with run(count, count_apart) as client:
        progress = await client.subscribe("tool:progress")
        await call(client, "count", "c1")
        await call(client, "count_apart", "c2")
        seen = [(await anext(aiter(progress))).data for _ in range(2)]

    assert [each["call_id"] for each in seen] == ["c1", "c2"]
    assert seen[0] == {
        "call_id": "c1",
        "name": "count",
        "message": "at 0",
        "done": 0,
        "total": 1000,
    }


async def test_an_event_that_is_a_tool_passes_the_ledger(run: Run) -> None:
    class Weather:
        @event_handler("weather:get")
        async def get(self, request: Place) -> Place:
            """Report the weather at a place."""
            if request.city == "Atlantis":
                raise KsiError("nobody knows")
            return Place(request.city, 7)

    async with run(
        owners=(Weather(),),
        settings=('tools.events={"weather": {"event": "weather:get", "effects": "read_only"}}',),
    ) as client:
        answer = await call(client, "weather", city="Oslo")
        failed = await call(client, "weather", city="Atlantis")
        with pytest.raises(InvalidData, match="city"):
            await call(client, "weather", city=1)
        described = await client.request("tool:describe", {"names": ["weather"]})
        recorded = await ledger(client)

    assert answer["content"] == '{"city":"Oslo","zip_code":7}'
    assert failed["status"] == "failed"
    (tool_,) = described["tools"]
    assert tool_["info"]["description"] == "Report the weather at a place."
    assert tool_["parameters"]["required"] == ["city"]
    assert [each["name"] for each in recorded] == ["weather", "weather"]
