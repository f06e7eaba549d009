"""Who may call what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_client import AsyncClient, Denied, InvalidData, UnixTransport
from ksi_daemon.bus import LocalBus
from ksi_daemon.event_system import event_handler
from ksi_daemon.principals import Principal
from ksi_daemon.protocol.events import Grants
from ksi_postgres.database import Database
from ksi_tools.api import tool
from ksi_tools.events import ToolCall
from ksi_tools.store import Permission, Permissions
from ksi_tools.tests.conftest import Client, Run

AGENT = {"agent": "a"}


@tool(effects="read_only", name="mail_read")
async def read_mail() -> str:
    """Read."""
    return "read"


@tool(effects="effectful", name="mail_send")
async def send_mail() -> str:
    """Send."""
    return "sent"


@tool(effects="idempotent", name="file_write")
async def write_file() -> str:
    """Write."""
    return "written"


MAIL = (read_mail, send_mail, write_file)


async def permit(client: AsyncClient, subject: str, context: Any = None, **words: Any) -> Any:
    request = {"subject": subject, **words}
    return await client.request("tool:permit", request, context=context)


async def allowed(client: AsyncClient, context: Any = None) -> set[str]:
    """Return which of the tools a context may call, by trying and by the list, which agree."""
    listed = await client.request("tool:list", {}, context=context)
    tried, kinds = set(), set()
    for name in ("mail_read", "mail_send", "file_write"):
        try:
            await client.request("tool:call", {"name": name}, context=context)
            tried.add(name)
        except Denied as error:
            kinds.add((error.details or {}).get("kind"))
    names = {each["name"] for each in listed["tools"]} - {"ask_user", "client_tool", "current_time"}
    assert names == tried
    assert kinds <= {"not_permitted"}
    return tried


async def test_without_a_word_only_what_is_read_only_may_be_called(run: Run) -> None:
    async with run(*MAIL) as client:
        assert await allowed(client) == {"mail_read", "mail_send", "file_write"}
        assert await allowed(client, AGENT) == {"mail_read"}
        assert await allowed(client, {"conversation": "c"}) == {"mail_read"}
        with pytest.raises(Denied, match="tool:permit"):
            await client.request("tool:call", {"name": "mail_send", "call_id": "c1"}, context=AGENT)
        listed = await client.request("tool:calls", {"limit": 1000})
        assert "c1" not in {each["call_id"] for each in listed["calls"]}
        listed = await client.request("tool:list", {"all_tools": True}, context=AGENT)
        shown = {each["name"]: each.get("is_allowed", True) for each in listed["tools"]}
        assert shown["mail_send"] is False
        listed = await client.request("tool:list", {"schemas": True}, context=AGENT)
        names = [{"names": [each["name"]]} for each in listed["tools"]]
        told = [await client.request("tool:describe", each, context=AGENT) for each in names]
        assert "mail_send" not in {each["name"] for each in listed["tools"]}
        assert listed["schemas"] == [each["tools"][0]["parameters"] for each in told]


async def test_a_word_allows_by_globs_and_its_denial_wins(run: Run) -> None:
    async with run(*MAIL) as client:
        said = await permit(client, "agent:a", allow=["mail_*"])
        assert said["tools"] == ["mail_read", "mail_send"]
        assert await allowed(client, AGENT) == {"mail_read", "mail_send"}

        await permit(client, "agent:a", allow=["*"], deny=["mail?send"])
        assert await allowed(client, AGENT) == {"mail_read", "file_write"}

        await permit(client, "agent:a", deny=["mail_*"])
        assert await allowed(client, AGENT) == set()

        await permit(client, "agent:a", allow=[])
        assert await allowed(client, AGENT) == set()
        told = await client.request("tool:permissions", {"subject": "agent:a"})
        assert (told["allow"], told["deny"], told["parent"]) == ([], [], None)


async def test_agent_and_conversation_both_have_to_allow(run: Run) -> None:
    async with run(*MAIL) as client:
        both = {"agent": "a", "conversation": "c"}
        await permit(client, "conversation:c", allow=["mail_*"])
        assert await allowed(client, both) == {"mail_read", "mail_send"}
        await permit(client, "agent:a", allow=["mail_send", "file_*"])
        assert await allowed(client, both) == {"mail_send"}
        assert await allowed(client, AGENT) == {"mail_send", "file_write"}


async def test_a_child_may_nothing_that_its_parent_may_not(run: Run) -> None:
    async with run(*MAIL) as client:
        await permit(client, "agent:a", allow=["mail_*"])
        await permit(client, "agent:b", allow=["*"], parent="agent:a")
        await permit(client, "agent:c", allow=["*"], deny=["mail_read"], parent="agent:b")
        await permit(client, "agent:orphan", allow=["*"], parent="agent:nobody")

        assert await allowed(client, {"agent": "b"}) == {"mail_read", "mail_send"}
        assert await allowed(client, {"agent": "c"}) == {"mail_send"}
        assert await allowed(client, {"agent": "orphan"}) == {"mail_read"}
        await permit(client, "agent:a", deny=["mail_send"])
        assert await allowed(client, {"agent": "c"}) == set()
        assert await allowed(client, {"agent": "b"}) == {"mail_read"}


async def test_nobody_is_bounded_by_itself_and_chains_end(run: Run) -> None:
    async with run(*MAIL) as client:
        await permit(client, "agent:0", allow=["*"])
        for number in range(1, 16):
            parent = f"agent:{number - 1}"
            await permit(client, f"agent:{number}", allow=["*"], parent=parent)
        assert await allowed(client, {"agent": "15"}) == {"mail_read", "mail_send", "file_write"}
        with pytest.raises(InvalidData, match="parents"):
            await permit(client, "agent:16", allow=["*"], parent="agent:15")
        for subject in ("agent:15", "agent:7", "agent:0"):
            with pytest.raises(InvalidData, match="itself"):
                await permit(client, subject, allow=["*"], parent="agent:15")

        # A chain that grew from above allows nothing at its end: it is not known what bounds it.
        await permit(client, "agent:above", allow=["*"])
        await permit(client, "agent:0", allow=["*"], parent="agent:above")
        assert await allowed(client, {"agent": "14"}) == {"mail_read", "mail_send", "file_write"}
        assert await allowed(client, {"agent": "15"}) == set()


async def test_an_agent_speaks_of_its_own_children_alone(run: Run) -> None:
    async with run(*MAIL) as client:
        await permit(client, "agent:a", allow=["mail_*"])
        await permit(client, "agent:other", allow=[])
        await permit(client, "conversation:others", allow=["*"])
        child = {"allow": ["*"], "parent": "agent:a"}

        await permit(client, "agent:child", AGENT, **child)
        assert await allowed(client, {"agent": "child"}) == {"mail_read", "mail_send"}
        await permit(client, "conversation:d", AGENT, **child)
        own = {"allow": ["*"], "deny": ["mail_read"], "parent": "conversation:d"}
        await permit(client, "conversation:e", {"conversation": "d"}, **own)
        assert await allowed(client, {"conversation": "d"}) == {"mail_read", "mail_send"}
        assert await allowed(client, {"conversation": "e"}) == {"mail_send"}

        for subject, context, words in (
            ("agent:a", AGENT, {"allow": ["*"]}),
            ("agent:a", AGENT, child),
            ("agent:child", AGENT, {"allow": ["*"]}),
            ("agent:other", AGENT, child),
            ("conversation:others", AGENT, child),
            ("agent:x", AGENT, {"allow": ["*"], "parent": "agent:other"}),
            ("agent:child", {"agent": "child"}, child),
            ("agent:a", {"run": "r"}, {"allow": ["*"]}),
            ("conversation:c", {"conversation": "c"}, {"allow": ["*"]}),
        ):
            with pytest.raises(Denied):
                await permit(client, subject, context, **words)
        assert await allowed(client, AGENT) == {"mail_read", "mail_send"}
        assert await allowed(client, {"agent": "other"}) == set()


@asynccontextmanager
async def as_token(
    client: Client, *scopes: str, name: str = "t", **identity: str
) -> AsyncIterator[AsyncClient]:
    daemon: Any = client.daemon
    grants = Grants(call=("tool:*",), scopes=scopes, serve=("*",))
    token = daemon.tokens.issue(Principal(name, grants, **identity), ttl_s=60)
    async with AsyncClient(UnixTransport(daemon.home.socket), token=token) as made:
        yield made


async def test_a_token_may_no_more_than_what_was_said(run: Run) -> None:
    async with run(*MAIL) as client:
        async with as_token(client) as nobody:
            assert await allowed(nobody) == {"mail_read"}
            with pytest.raises(Denied):
                await permit(nobody, "conversation:c", allow=["*"])
        async with as_token(client, agent="a", run="r") as agent:
            with pytest.raises(Denied):
                await permit(agent, "agent:a", allow=["*"])
            assert await allowed(agent) == {"mail_read"}
            await permit(client, "agent:a", allow=["*"])
            assert await allowed(agent) == {"mail_read", "mail_send", "file_write"}


@tool(effects="effectful", name="door_open", for_programs=True)
async def open_door() -> str:
    """Open the door; it looks itself at who asks."""
    return "open"


async def test_a_token_calls_what_its_scopes_say_where_it_speaks_for_itself(run: Run) -> None:
    everything = {"mail_read", "mail_send", "file_write"}
    async with run(*MAIL) as client:
        async with as_token(client, "tools:call:mail_*", name="mails") as mails:
            assert await allowed(mails) == {"mail_read", "mail_send"}
            with pytest.raises(Denied, match="scope tools:call:file_write"):
                await mails.request("tool:call", {"name": "file_write"})
            async with as_token(client, "memory:*", name="mails"):  # two of one name
                assert await allowed(mails) == {"mail_read"}
        async with as_token(client, "*", name="all") as made:
            assert await allowed(made) == everything
        async with as_token(client, "*", name="agents", agent="a") as agent:
            assert await allowed(agent) == {"mail_read"}


async def test_nobody_gives_scopes_to_himself(run: Run) -> None:
    async def scopes(data: Any, context: Any) -> Any:
        return {"scopes": ["*"], "known": True}

    async with run(*MAIL) as client, as_token(client) as nobody:
        await nobody.serve("principal:scopes", scopes, contributor=True)

        assert await allowed(nobody) == {"mail_read"}


async def test_what_is_for_programs_is_for_no_agent_whatever_is_said_of_it(run: Run) -> None:
    async with run(open_door) as client:
        await permit(client, "agent:a", allow=["*"])
        for context in (AGENT, {"conversation": "c"}):
            with pytest.raises(Denied, match="door_open"):
                await client.request("tool:call", {"name": "door_open"}, context=context)
            listed = await client.request("tool:list", {}, context=context)
            assert "door_open" not in {each["name"] for each in listed["tools"]}
        async with as_token(client) as somebody:
            called = await somebody.request("tool:call", {"name": "door_open"})

    assert called["content"] == "open"


class Relay:
    """A plugin's event that calls a tool, for whoever asks."""

    bus: Any = None

    @event_handler("tool:relay")
    async def relay(self, request: ToolCall) -> Any:
        return await self.bus.request("tool:call", request)


async def test_a_plugin_in_between_makes_no_owner_of_a_token_s_bearer(run: Run) -> None:
    relay = Relay()
    async with run(*MAIL, owners=(relay,)) as client, asyncio.TaskGroup() as tasks:
        relay.bus = LocalBus(client.daemon.router, "work", tasks)
        for name in ("mail_read", "mail_send"):
            assert (await client.request("tool:relay", {"name": name}))["status"] == "done"
        async with as_token(client) as nobody:
            assert (await nobody.request("tool:relay", {"name": "mail_read"}))["status"] == "done"
            with pytest.raises(Denied, match="mail_send"):
                await nobody.request("tool:relay", {"name": "mail_send"})


async def test_a_word_counts_for_its_tenant_alone(run: Run) -> None:
    async with run(*MAIL) as client:
        await permit(client, "agent:a", allow=["*"])

        assert await allowed(client, {"agent": "a", "tenant": "b"}) == {"mail_read"}


@pytest.mark.parametrize("glob", ["", "mail%", "[a-z]*", "mail\\_", "a" * 201, "é*"])
async def test_a_glob_has_the_characters_of_names_and_two_more(run: Run, glob: str) -> None:
    async with run(*MAIL) as client:
        with pytest.raises(InvalidData):
            await permit(client, "agent:a", allow=[glob])


NAMES = st.text("aB_.:-1", min_size=1, max_size=6)


async def test_postgres_and_python_agree_on_globs(database: Database) -> None:
    connection = await asyncpg.connect(database.logins.app)
    cases: list[tuple[str, str]] = []

    @given(NAMES, st.text("aB_.:-1*?", min_size=1, max_size=6))
    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    def collect(name: str, glob: str) -> None:
        cases.append((name, glob))

    collect()
    try:
        found = await connection.fetch(
            "SELECT t.name LIKE ksi_tools.pattern_of(t.glob) "
            "FROM unnest($1::text[], $2::text[]) WITH ORDINALITY t (name, glob, at) ORDER BY t.at",
            *zip(*cases, strict=True),
        )
    finally:
        await connection.close()

    assert [row[0] for row in found] == [fnmatchcase(name, glob) for name, glob in cases]


async def test_a_child_never_has_more_than_its_parent_whatever_is_said(database: Database) -> None:
    permissions = Permissions(database)
    tools = ["mail_read", "mail_send", "file_write"]
    globs = st.sampled_from(["*", "mail_*", "file_*", "mail_send", "?ile*", "none"])
    words = st.tuples(
        st.none() | st.lists(globs, max_size=2), st.lists(globs, max_size=1), st.integers(-1, 4)
    )
    plans: list[list[Any]] = []

    @given(st.lists(words, min_size=5, max_size=5))
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def collect(plan: list[Any]) -> None:
        plans.append(plan)

    collect()
    for number, plan in enumerate(plans):
        tenant, parents = f"t{number}", {}
        for subject, (allow, deny, parent) in enumerate(plan):
            above = None if parent < 0 else f"agent:{parent}"
            said = Permission(None if allow is None else tuple(allow), tuple(deny), above)
            if await permissions.say(tenant, f"agent:{subject}", said, None) == "ok":
                parents[subject] = None if parent < 0 else parent
        for child, parent in parents.items():
            if parent is not None:
                for name in tools:
                    for effects in ("read_only", "effectful"):
                        sql = "SELECT ksi_tools.is_permitted($1, $2, NULL, $3, $4)"
                        may = [
                            await database.fetchval(sql, tenant, str(who), name, effects)
                            for who in (child, parent)
                        ]
                        assert not may[0] or may[1], (plan, child, parent, name, effects)


async def test_what_was_said_of_somebody_is_forgotten_by_the_owners_word_alone(run: Run) -> None:
    async with run(*MAIL) as client:
        await permit(client, "agent:a", allow=["mail_*"])
        await permit(client, "agent:b", allow=["*"], parent="agent:a")
        with pytest.raises(Denied, match="forgotten"):
            await permit(client, "agent:b", context=AGENT, forget=True)
        with pytest.raises(InvalidData, match="forget"):
            await permit(client, "agent:a", allow=["*"], forget=True)

        said = await permit(client, "agent:a", forget=True)

        assert (said["allow"], said["parent"]) == (None, None)
        assert "mail_send" not in await allowed(client, AGENT)
        assert "mail_send" not in await allowed(client, {"agent": "b"})
        assert "mail_read" in await allowed(client, {"agent": "b"})
