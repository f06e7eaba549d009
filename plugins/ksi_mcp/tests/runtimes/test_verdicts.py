"""What is done with what trials have shown: who is refused, who waits, and what is tried again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_handler
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Denied, Unavailable
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import module_plugin
from ksi_mcp.events import McpRuntime, McpWay
from ksi_mcp.runtimes import verdicts as module
from ksi_mcp.runtimes.gate import AGENTS, PROGRAMS, TENANT, TURNS
from ksi_mcp.runtimes.service import Service
from ksi_mcp.runtimes.sessions import Sessions
from ksi_mcp.runtimes.verdicts import Verdicts, verdict_of
from ksi_models.api import AskedCall
from ksi_models.events import ModelCall, ModelChunk, TextDelta, ToolResultPart
from ksi_models.keys import Keys
from ksi_models.providers import Providers
from ksi_models.runtimes import Runtimes
from ksi_models.settings import ModelsSettings

MESSAGES = [{"role": "user", "parts": [{"kind": "text", "text": "hello"}]}]
TOOL = {"name": "pay", "description": "Pay.", "parameters": {"type": "object"}}
CALL = {"messages": MESSAGES, "tools": [TOOL]}
SOON_S = 10.0
GATES = (TURNS, AGENTS, PROGRAMS)


class Trials:
    """Runtimes whose trials show what a test says, as soon as it lets them."""

    def __init__(self) -> None:
        self.verdicts = Verdicts()
        self.shown: dict[str, list[str]] = {}
        self.stale: set[str] = set()
        self.version = ""
        self.sessions: Sessions
        self.may_begin = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.tried: asyncio.Queue[str] = asyncio.Queue()

    def add(self, name: str, *results: str) -> None:
        self.shown[name] = list(results)

        async def trial() -> McpRuntime:
            self.tried.put_nowait(name)
            await self.may_end.wait()
            self.stale.discard(name)
            results = self.shown[name]
            shown = results[0] if len(results) == 1 else results.pop(0)
            way = McpWay(way="a way", result=shown, detail="it did")  # type: ignore[arg-type]  # a test says which
            return structs.replace(verdict_of(name, [way]), version=self.version)

        async def ready() -> None:
            await self.may_begin.wait()

        self.verdicts.add(
            name, trial, advice="mend it", ready=ready, is_stale=lambda: name in self.stale
        )


@pytest.fixture
async def trials() -> Trials:
    return Trials()


@pytest.fixture
async def running(trials: Trials) -> AsyncIterator[Callable[[], None]]:
    """Begin with the trials."""
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        def run() -> None:
            trials.may_begin.set()
            tasks.append(group.create_task(trials.verdicts.run(), name="trials"))

        yield run
        for task in tasks:
            task.cancel()


# -- what is known ---------------------------------------------------------------------------------


async def test_one_that_is_not_ready_is_not_tried_and_is_no_trouble(trials: Trials) -> None:
    trials.add("it", "through")

    assert trials.verdicts.problems() == []
    assert trials.verdicts.why_not_now("it") is None
    assert not trials.verdicts.is_known("it")


async def test_a_trial_that_takes_long_holds_up_no_other(
    trials: Trials, running: Callable[[], None]
) -> None:
    trials.add("slow", "held")
    trials.add("quick", "held")
    trials.may_end.clear()

    running()

    assert {await trials.tried.get(), await trials.tried.get()} == {"slow", "quick"}


async def test_a_refused_one_says_what_to_do(trials: Trials, running: Callable[[], None]) -> None:
    trials.add("it", "through")
    running()

    why = await trials.verdicts.why_not("it", with_tools=False)

    assert why is not None
    assert "it is refused, as it can go around the gate of tools: a way (it did)" in why
    assert "(mend it; ksi doctor lists what was tried)" in why
    assert trials.verdicts.problems() == [why]


async def test_one_that_could_not_be_tried_is_tried_again_by_itself(
    trials: Trials, running: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_AGAIN_S", 0.001)
    trials.add("it", "unknown")
    running()

    why = await trials.verdicts.why_not("it", with_tools=True)
    assert why is not None
    assert "nobody knows whether it can go around" in why
    assert "it is tried again by itself" in why
    assert await trials.verdicts.why_not("it", with_tools=False) is None

    for _ in range(4):
        await trials.tried.get()


async def test_one_that_is_another_by_now_is_tried_before_it_is_used(
    trials: Trials, running: Callable[[], None]
) -> None:
    trials.add("it", "held", "through", "held")
    running()
    assert await trials.verdicts.why_not("it", with_tools=True) is None

    trials.stale.add("it")

    assert "refused" in str(await trials.verdicts.why_not("it", with_tools=True))
    assert trials.tried.qsize() == 2


async def test_one_of_another_version_is_tried_before_it_is_used(
    trials: Trials, running: Callable[[], None]
) -> None:
    trials.add("it", "held", "through")
    trials.version = "1"
    running()
    assert await trials.verdicts.why_not("it", with_tools=True) is None

    trials.version = "2"
    assert trials.verdicts.is_of("it", "1")
    assert not trials.verdicts.is_of("it", "2")
    assert not trials.verdicts.is_of("it", "1")  # nor is it known what that one would do now

    assert "refused" in str(await trials.verdicts.why_not("it", with_tools=True))
    assert trials.verdicts.is_of("it", "2")
    assert trials.tried.qsize() == 2


async def test_whatever_tells_no_version_is_what_was_tried(
    trials: Trials, running: Callable[[], None]
) -> None:
    trials.add("it", "held")
    running()
    assert await trials.verdicts.why_not("it", with_tools=True) is None

    assert trials.verdicts.is_of("it", "2")


async def test_nobody_waits_for_a_trial_for_ever(
    trials: Trials, running: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.001)
    trials.add("it", "held")
    trials.may_end.clear()
    running()

    assert "still being tried" in str(await trials.verdicts.why_not("it", with_tools=True))


# -- who is refused --------------------------------------------------------------------------------


class Doing:
    """Answers what the gates stand before."""

    @event_handler("model:call", scope="models:write", timeout_s=0)
    async def call_model(self, request: ModelCall) -> AsyncGenerator[ModelChunk]:
        yield TextDelta("said")

    @event_handler("tool:call", scope="tools:write")
    async def call_tool(self, request: Any) -> str:
        return "done"


@pytest.fixture
def ksi_plugins(trials: Trials, tmp_path: Any) -> list[EntryPoint]:
    """The gates alone, before a model and a tool."""
    settings = ModelsSettings(keyring=False)
    runtimes = Runtimes(settings, Providers(settings, Keys(settings, tmp_path, {}), tmp_path))

    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        plugin.add(Doing(), Service(trials.verdicts, runtimes))
        plugin.start_task("trials", trials.verdicts.run)
        trials.sessions = Sessions(plugin, trials.verdicts)
        yield

    for name in GATES:
        trials.add(name, "held")
    return [module_plugin("gates", ksi_lifespan=hookimpl(ksi_lifespan))]


@pytest.fixture
def settle(trials: Trials) -> Callable[..., None]:
    """Say which of the gates leak, and let the trials begin."""

    def settle(**leaking: str) -> None:
        for name in GATES:
            trials.shown[name] = [leaking.get(name.partition(" ")[0], "held")]
        trials.may_begin.set()

    return settle


async def said(client: AsyncClient, call: dict[str, Any], **context: Any) -> list[str]:
    return [chunk["kind"] async for chunk in client.stream("model:call", call, **context)]


@pytest.mark.parametrize(("shown", "error"), [("through", Denied), ("unknown", Unavailable)])
async def test_models_have_no_tools_where_turns_can_go_around_the_gate(
    settle: Callable[..., None], client: AsyncClient, shown: str, error: type[Exception]
) -> None:
    settle(turns=shown)

    with pytest.raises(error, match="turns of models"):
        await said(client, CALL)
    with pytest.raises(error, match="turns of models"):  # and not only while it is waited for
        await said(client, CALL)
    assert await said(client, {"messages": MESSAGES}) == ["text"]


async def test_a_model_waits_for_the_trial_and_says_so(
    settle: Callable[..., None], client: AsyncClient
) -> None:
    told: list[str] = []
    async for chunk in client.stream("model:call", CALL):
        told.append(chunk.get("reason") or chunk["kind"])
        settle()

    assert told == ["trial", "text"]
    assert await said(client, CALL) == ["text"]


async def test_an_agent_has_no_tools_where_agents_can_go_around_the_gate(
    settle: Callable[..., None], client: AsyncClient, connect: Callable[..., Any]
) -> None:
    settle(agents="through")

    assert (await said(client, CALL))[-1] == "text"
    with pytest.raises(Denied, match="agents that ask agents"):
        await said(client, CALL, context={"agent": "helper"})


@pytest.mark.parametrize("tenant", ["default", TENANT])
async def test_nobody_from_outside_calls_tools_where_programs_can_go_around_the_gate(
    settle: Callable[..., None],
    daemon: Daemon,
    client: AsyncClient,
    connect: Callable[..., Any],
    tenant: str,
) -> None:
    settle(programs="through")
    principal = Principal("program", Grants(scopes=("*",)), tenant=tenant)
    program = await connect(token=daemon.tokens.issue(principal, ttl_s=60.0))

    assert await client.request("tool:call", {}) == "done"
    if tenant == TENANT:  # else no trial could end
        assert await program.request("tool:call", {}) == "done"
        return
    with pytest.raises(Denied, match="programs over MCP"):
        await program.request("tool:call", {})


# -- what a process is handed ----------------------------------------------------------------------


def modes(folder: Path) -> list[int]:
    return [path.stat().st_mode & 0o777 for path in folder.iterdir()]


async def no_answer(call: AskedCall) -> ToolResultPart:
    raise AssertionError(call)


async def test_a_token_that_nobody_has_used_ends_with_its_process(
    daemon: Daemon, trials: Trials, tmp_path: Path
) -> None:
    session = await trials.sessions.open((), no_answer, tmp_path)
    assert len(daemon.tokens.records()) == 1
    assert modes(tmp_path) == [0o600, 0o600]

    session.close()

    assert daemon.tokens.records() == []


async def test_a_token_that_can_not_be_handed_over_ends(
    daemon: Daemon, trials: Trials, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        await trials.sessions.open((), no_answer, tmp_path / "gone")

    assert daemon.tokens.records() == []


async def test_a_trial_whose_clean_up_fails_ends_all_the_same_when_the_daemon_stops() -> None:
    verdicts, begun = Verdicts(), asyncio.Event()

    async def trial() -> McpRuntime:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            raise Unavailable("Postgres can't be reached")

    async def run() -> None:
        with pytest.RaisesGroup(Unavailable):
            await verdicts.run()

    verdicts.add("odd", trial, advice="")
    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run())
        await begun.wait()
        running.cancel()
