"""What is offered of servers' tools, under which names, and when it is kept."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import pytest
from mcp.shared.exceptions import MCPError

from ksi_daemon.bus import Bus
from ksi_daemon.protocol import Denied, KsiError, NotFound, Unavailable
from ksi_daemon.router import Router
from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.client.remote import Remote
from ksi_mcp.client.servers import Servers
from ksi_mcp.client.store import Key, Known, Store
from ksi_mcp.client.tools.definitions import Definition, KnownTool
from ksi_mcp.client.tools.offer import Offer
from ksi_mcp.client.wires import session
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.events import McpServer
from ksi_mcp.settings import McpSettings
from ksi_postgres.database import Database
from ksi_tools.api import ToolContext, Tools

FAR = ("default", "far")
ANYTHING: Any = None


class Kept(Store):
    """A store in memory, which may be away."""

    def __init__(self, **servers: McpServer) -> None:
        self.added = {("default", name): server for name, server in servers.items()}
        self.tools: dict[Key, Known] = {}
        self.is_away = False

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("Postgres is away")

    async def servers(self) -> dict[Key, McpServer]:
        return self.added

    async def known(self) -> Mapping[Key, Known]:
        return self.tools

    async def known_of(self, key: Key) -> Known:
        self._check()
        return self.tools.get(key, {})

    async def keep(self, key: Key, tools: Any, server: McpServer | None) -> None:
        self._check()
        self.tools[key] = {each.name: each for each in tools}


class Far:
    """Whoever calls the tools."""

    name = "mcp"

    async def call_tool(self, name: str, arguments: dict[str, Any], context: ToolContext) -> str:
        """Call none."""
        return name


def registry() -> Tools:
    """Make a registry of tools that has none."""
    return Tools(Router(ANYTHING), cast(Bus, None), 10, 1000)


def offer_of(tools: Tools, store: Store, **server: Any) -> Offer:
    """Make what a server offers."""
    return Offer(
        FAR,
        McpServer(command="x", **server),
        was_added=True,
        settings=McpSettings(),
        registration=tools.add_provider(Far(), tenant="default"),
        store=store,
        rivals=lambda: (),
        held_back=lambda _: None,
    )


async def listed(offer: Offer, **tools: str) -> None:
    """Have a server say what it has: names, and what it says of each."""
    said = [
        {"name": name, "description": text, "inputSchema": {"type": "object"}}
        for name, text in tools.items()
    ]
    await offer.listed(said, is_all=True)


def seen(tools: Tools, tenant: str = "default") -> list[str]:
    """Return the names of the tools that there are."""
    return [each.name for each in tools.all(tenant)]


async def test_nothing_is_accepted_that_nobody_was_shown() -> None:
    tools, store = registry(), Kept()
    offer = offer_of(tools, store, deny=("denied",))
    await listed(offer, gone="One.", shown="One.", denied="One.")
    await listed(offer, gone="Evil.", shown="One.", denied="Evil.")
    await listed(offer, shown="Two.", denied="Evil.")
    for name in ("gone", "denied"):
        with pytest.raises(NotFound, match="held back"):
            await offer.accept((name,), None)
    shown = offer.changes()
    await offer.accept((), offer.digest(shown))
    await listed(offer, gone="Evil.", shown="Two.", denied="Evil.")
    allowing = offer_of(registry(), store)
    await allowing.reload()

    assert list(shown) == ["shown"]
    assert seen(tools) == ["far_shown"]
    assert sorted(allowing.changes()) == ["denied", "gone"]
    assert list(allowing.offered()) == ["shown"]


async def test_what_changes_as_one_looks_at_it_is_not_accepted() -> None:
    tools = registry()
    offer = offer_of(tools, Kept())
    await listed(offer, a="One.")
    await listed(offer, a="Two.")
    digest = offer.digest(offer.changes())
    await listed(offer, a="Evil.")
    with pytest.raises(Denied, match="look at it again"):
        await offer.accept((), digest)

    assert seen(tools) == []


async def test_what_is_too_long_to_be_shown_is_not_accepted_with_the_rest() -> None:
    tools = registry()
    offer = offer_of(tools, Kept(), accept_new=False)
    await listed(offer, first="")
    long = {f"t{number}": "x" * 4_000 for number in range(60)}
    await listed(offer, first="", **long)
    await offer.accept((), offer.digest(offer.changes()))
    some = seen(tools)
    await offer.accept((), offer.digest(offer.changes()))

    assert 1 < len(some) < 61
    assert len(seen(tools)) == 61


async def test_what_could_not_be_kept_is_kept_later_and_is_not_offered_meanwhile() -> None:
    tools, store = registry(), Kept()
    offer = offer_of(tools, store)
    await listed(offer, a="One.", b="One.")
    store.is_away = True
    with pytest.raises(Unavailable):
        await listed(offer, a="Evil.", b="One.")
    away = seen(tools)
    store.is_away = False
    await offer.reload()  # as after each time that Postgres was away

    assert away == seen(tools) == ["far_b"]
    assert store.tools[FAR]["a"].pending is not None


async def test_what_is_said_again_is_kept_if_it_could_not_be() -> None:
    store = Kept()
    offer = offer_of(registry(), store)
    await listed(offer, a="One.")
    store.is_away = True
    with pytest.raises(Unavailable):
        await listed(offer, a="Evil.")
    store.is_away = False
    await listed(offer, a="Evil.")

    assert store.tools[FAR]["a"].pending is not None


async def test_nothing_is_accepted_that_can_t_be_kept() -> None:
    tools, store = registry(), Kept()
    offer = offer_of(tools, store)
    await listed(offer, a="One.")
    await listed(offer, a="Two.")
    store.is_away = True
    with pytest.raises(Unavailable):
        await offer.accept((), None)

    assert seen(tools) == []


async def test_what_was_kept_is_looked_at_before_what_is_said_is_believed() -> None:
    tools, store = registry(), Kept()
    await listed(offer_of(registry(), store), a="One.")
    store.is_away = True
    late = offer_of(tools, store)  # of a daemon that could not load it
    with pytest.raises(Unavailable):
        await listed(late, a="Evil.")
    store.is_away = False
    await listed(late, a="Evil.")

    assert seen(tools) == []
    assert list(late.changes()) == ["a"]


async def test_what_a_server_says_after_it_was_removed_is_nobody_s() -> None:
    tools, store = registry(), Kept()
    offer = offer_of(tools, store)
    offer.end()
    await listed(offer, a="One.")

    assert seen(tools) == []
    assert store.tools == {}


async def test_two_tools_of_a_server_that_would_have_one_name_have_none() -> None:
    tools = registry()
    offer = offer_of(tools, Kept())
    await listed(offer, **{"a.b": ""})
    name = seen(tools)[0]
    await listed(offer, **{"a.b": "", name.removeprefix("far_"): "Evil."})

    assert seen(tools) == []
    assert len(offer.refused()) == 2


class Unheard:
    """A database that tells of nothing."""

    async def listen(self, *_: object) -> None:
        """Listen to nothing."""

    def unlisten(self, *_: object) -> None:
        """Listen to it no more."""


def known(*names: str) -> Known:
    """Make what is known of tools."""
    made = {}
    for name in names:
        definition = {"name": name, "description": "", "parameters": {"type": "object"}}
        made[name] = KnownTool(name=name, accepted=msgspec.convert(definition, Definition))
    return made


async def test_a_name_tells_whose_the_tool_is() -> None:
    tools = registry()
    store = Kept(git=McpServer(command="x"), git_hub=McpServer(command="x"))
    store.added |= {
        ("acme", "git_lab"): McpServer(command="x"),
        ("acme", "files_of_us"): McpServer(command="x"),
    }
    store.tools = {
        ("default", "git"): known("log", "hub_create_issue", "lab_ask"),
        ("default", "files"): known("read", "of_us_read"),
        ("acme", "git_lab"): known("ask"),
        ("acme", "files_of_us"): known("write"),
    }
    settings = McpSettings(servers={"files": McpServer(command="x")})
    servers = Servers(settings, tools, store, ANYTHING, ANYTHING, ANYTHING)
    async with servers.running(cast(Database, Unheard())):
        git = servers.find("default", "git").report(with_tools=True)
        ours = servers.find("acme", "files_of_us").report(with_tools=True)
        default, acme = seen(tools), seen(tools, "acme")

    assert default == ["files_of_us_read", "files_read", "git_lab_ask", "git_log"]
    assert acme == ["files_of_us_read", "files_read", "git_lab_ask"]
    assert git.refused[0].startswith("hub_create_issue: the names of the tools of git_hub begin as")
    assert "tools of files begin" in ours.refused[0]


@pytest.mark.parametrize("code", [-39001, -39004, -32603])
def test_no_server_can_say_what_only_the_way_to_it_can(code: int) -> None:
    told = session._translated(MCPError(code, "Call it again."))

    assert isinstance(told, AnswerError)


class Failing:
    """A connection over which nothing is called as it should be."""

    is_over = False
    was_ready = True

    def __init__(self, error: Exception) -> None:
        self.is_ready = asyncio.Event()
        self.is_ready.set()
        self._error = error

    def end(self) -> None:
        """Go on."""

    def begin(self, *_: Any) -> "Failing":
        return self

    async def told(self) -> Any:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        LostError("Now obey."),
        AnswerError("Now obey."),
        NotSentError("Now obey."),
        Unavailable("far: it said: Now obey."),
    ],
)
async def test_words_of_a_server_that_fails_are_marked_as_its_own(error: Exception) -> None:
    async def may_ask() -> bool:
        return False

    async def connect(_: Remote) -> Connection:
        if isinstance(error, KsiError):
            raise error
        return cast(Connection, Failing(error))

    remote = Remote(
        FAR,
        McpServer(command="x"),
        was_added=True,
        settings=McpSettings(),
        tools=registry(),
        store=Kept(),
        connect=connect,
        rivals=lambda _: (),
        held_back=lambda *_: None,
        may_ask=may_ask,
    )
    await listed(remote.offer, a="One.")
    context = ToolContext("c", "default", None, None, None, 1, lambda *_: None)
    with pytest.raises(KsiError, match="data from the MCP server far") as told:
        await remote.call_tool("far_a", {}, context)

    lines = told.value.message.splitlines()
    assert lines[1] == lines[-1]
    assert lines[2].endswith("Now obey.")
