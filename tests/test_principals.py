"""Who may do what: grants, tokens, stamped contexts, and how contexts are inherited."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import current_context, event_handler, event_observer
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import Principal, TokenStore
from ksi_daemon.protocol import Context, Denied, Event, InvalidData, NotFound
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import Wire, module_plugin, read_log, running_daemon

MakeWire = Callable[[], Awaitable[Wire]]
NOTHING = Grants()
IDENTITY = ("tenant", "user", "agent", "conversation", "run")


def told(context: Context | None) -> dict[str, Any]:
    assert context is not None
    names = ("id", "parent", "origin", "principal", *IDENTITY)
    return {name: getattr(context, name) for name in names}


class Chain:
    """Events that send events, each telling its context."""

    def __init__(self) -> None:
        self.bus: Any = None
        self.seen: asyncio.Queue[Event] = asyncio.Queue()
        self.gates = {"ann": asyncio.Event(), "bob": asyncio.Event()}

    @hookimpl
    async def ksi_lifespan(self, plugin: Plugin) -> AsyncIterator[None]:
        self.bus = plugin.bus
        yield

    @event_handler("chain:inner")
    def inner(self) -> dict[str, Any]:
        return told(current_context())

    @event_handler("chain:outer")
    async def outer(self) -> dict[str, Any]:
        inner = await self.bus.request("chain:inner")
        self.bus.emit("chain:emitted")
        self.bus.publish("chain:published", 1)
        chunks = [chunk async for chunk in self.bus.stream("chain:stream")]
        return {"outer": told(current_context()), "inner": inner, "chunks": chunks}

    @event_handler("chain:stream")
    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        yield told(current_context())
        yield await self.bus.request("chain:inner")

    @event_handler("chain:emitted")
    async def emitted(self) -> None:
        return None

    @event_handler("chain:readable", scope="chain:read")
    def readable(self) -> str:
        return "read"

    @event_handler("chain:writable", scope="chain:write")
    def writable(self) -> str:
        return "written"

    @event_observer("chain:*ed")
    def observe(self, event: Event) -> None:
        self.seen.put_nowait(event)

    @event_handler("chain:waits")
    async def waits(self) -> dict[str, Any]:
        context = current_context()
        assert context is not None
        assert context.user is not None
        await self.gates[context.user].wait()
        inner: dict[str, Any] = await self.bus.request("chain:inner")
        return inner


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def ksi_plugins(chain: Chain) -> list[EntryPoint]:
    names = (
        "inner", "outer", "stream", "emitted", "readable", "writable", "observe", "waits",
        "ksi_lifespan",
    )  # fmt: skip
    return [module_plugin("chain", **{name: getattr(chain, name) for name in names})]


@pytest.fixture
async def as_token(daemon: Daemon, wire: MakeWire) -> Callable[..., Awaitable[Wire]]:
    """Connect as whoever a token names."""

    async def make(grants: Grants = NOTHING, ttl_s: float = 60.0, **identity: str) -> Wire:
        token = daemon.tokens.issue(Principal("token:t", grants, **identity), ttl_s=ttl_s)
        made = await wire()
        answer = await made.ask("router:authenticate", {"token": token})
        assert answer["result"]["principal"] == "token:t"
        return made

    return make


# -- grants ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("chain:inner", {}),
        ("system:stats", {}),
        ("token:create", {"name": "more", "ttl_s": 1}),
        ("no:such", {}),
        ("router:subscribe", {"pattern": "*"}),
        ("router:publish", {"event": "chain:published"}),
        ("router:serve", {"event": "my:tool"}),
    ],
)
async def test_a_token_without_grants_may_do_nothing(
    as_token: Callable[..., Awaitable[Wire]], daemon: Daemon, event: str, data: Any
) -> None:
    mine = await as_token()

    refusal = await mine.ask(event, data)

    assert refusal["error"]["code"] == "denied"
    assert "token:t" in refusal["error"]["message"]
    assert daemon.server.hub.refusals["denied"] == 1
    denied = [each for each in read_log(daemon.home.root) if "denied" in each["message"]]
    assert denied[0]["principal"] == "token:t"


async def test_a_token_may_do_what_it_was_granted_and_no_more(
    as_token: Callable[..., Awaitable[Wire]],
) -> None:
    mine = await as_token(Grants(call=("chain:in*",), publish=("a:*",), serve=("b:*",)))

    assert "result" in await mine.ask("chain:inner")
    assert "result" in await mine.ask("router:publish", {"event": "a:b"})
    assert "result" in await mine.ask("router:serve", {"event": "b:c"})
    for event, data in (
        ("chain:outer", {}),
        ("router:publish", {"event": "b:c"}),
        ("router:serve", {"event": "a:b"}),
        ("router:subscribe", {"pattern": "a:b"}),
    ):
        assert (await mine.ask(event, data))["error"]["code"] == "denied"


async def test_a_token_with_scopes_reaches_the_events_that_declare_them(
    as_token: Callable[..., Awaitable[Wire]],
) -> None:
    reads = await as_token(Grants(scopes=("*:read",)))
    all_ = await as_token(Grants(scopes=("*",)))

    assert (await reads.ask("chain:readable"))["result"] == "read"
    assert (await all_.ask("chain:writable"))["result"] == "written"
    assert (await reads.ask("chain:writable"))["error"]["code"] == "denied"
    assert (await all_.ask("chain:inner"))["error"]["code"] == "denied"  # it declares none


async def test_a_scope_that_a_token_s_bearer_declares_is_not_heeded(
    as_token: Callable[..., Awaitable[Wire]],
) -> None:
    serves, asks = await as_token(Grants(serve=("b:*",))), await as_token(Grants(scopes=("*",)))
    await serves.ask("router:serve", {"event": "b:c", "scope": "b:read", "public": True})

    assert (await asks.ask("b:c"))["error"]["code"] == "denied"


async def test_anybody_may_say_hello(as_token: Callable[..., Awaitable[Wire]]) -> None:
    mine = await as_token(tenant="acme")

    greeting = (await mine.ask("system:hello"))["result"]

    assert (greeting["principal"], greeting["tenant"]) == ("token:t", "acme")


async def test_what_may_not_be_called_is_not_told_apart_from_what_is_not_there(
    as_token: Callable[..., Awaitable[Wire]],
) -> None:
    mine = await as_token()

    errors = [(await mine.ask(event))["error"] for event in ("chain:inner", "chain:imaginary")]

    assert [error["code"] for error in errors] == ["denied", "denied"]
    assert errors[0].keys() == errors[1].keys()


# -- what a peer claims ---------------------------------------------------------------------------


@pytest.mark.parametrize("field", [*IDENTITY, "principal"])
async def test_a_claimed_identity_is_refused_and_logged(
    as_token: Callable[..., Awaitable[Wire]], daemon: Daemon, field: str
) -> None:
    mine = await as_token(Grants(call=("*",)))

    refusal = await mine.ask("chain:inner", context={field: "somebody"})

    assert refusal["error"]["code"] == "denied"
    assert refusal["error"]["details"]["claimed"] == [field]
    assert any("impersonate" in each.get("why", "") for each in read_log(daemon.home.root))


@pytest.mark.parametrize("field", ["id", "origin"])
@pytest.mark.parametrize("powerful", [True, False])
async def test_nobody_chooses_an_event_s_id_or_origin(
    as_token: Callable[..., Awaitable[Wire]], field: str, powerful: bool
) -> None:
    mine = await as_token(Grants(call=("*",), impersonate=powerful))

    refusal = await mine.ask("chain:inner", context={field: "owner"})

    assert refusal["error"]["code"] in {"denied", "invalid_data"}


async def test_who_may_impersonate_is_still_named_as_the_origin(
    as_token: Callable[..., Awaitable[Wire]],
) -> None:
    mine = await as_token(Grants(call=("*",), impersonate=True), tenant="acme")

    answer = await mine.ask("chain:inner", context={"user": "ann", "run": "r1"})

    result = answer["result"]
    assert (result["origin"], result["tenant"]) == ("token:t", "acme")
    assert (result["user"], result["run"], result["agent"]) == ("ann", "r1", None)


@pytest.mark.parametrize(
    ("claimed", "counts"), [("token:ann", "token:ann"), ("owner", "token:owner"), ("", "token:")]
)
async def test_who_may_impersonate_names_another_bearer_but_never_the_owner(
    as_token: Callable[..., Awaitable[Wire]], claimed: str, counts: str
) -> None:
    mine = await as_token(Grants(call=("*",), impersonate=True))

    answer = await mine.ask("chain:outer", context={"principal": claimed})

    assert answer["result"]["outer"]["principal"] == counts
    assert answer["result"]["inner"]["principal"] == counts


async def test_what_plugins_send_because_of_a_bearer_names_him(
    as_token: Callable[..., Awaitable[Wire]], client: AsyncClient, chain: Chain
) -> None:
    mine = await as_token(Grants(call=("*",)))

    theirs = (await mine.ask("chain:outer"))["result"]
    shown = [(await chain.seen.get()).context.principal for _ in range(2)]
    owners = await client.request("chain:outer")

    assert theirs["inner"]["origin"] == "chain"
    told_of = [theirs["outer"], theirs["inner"], *theirs["chunks"]]
    assert [*(each["principal"] for each in told_of), *shown] == ["token:t"] * 6
    assert owners["outer"]["principal"] is owners["inner"]["principal"] is None


async def test_a_run_s_token_stamps_all_that_its_bearer_sends(
    as_token: Callable[..., Awaitable[Wire]],
) -> None:
    identity = {"tenant": "t", "user": "u", "agent": "a", "conversation": "c", "run": "r"}
    mine = await as_token(Grants(call=("chain:*",)), **identity)

    answers = [(await mine.ask("chain:inner"))["result"] for _ in range(2)]

    for answer in answers:
        assert {name: answer[name] for name in IDENTITY} == identity
        assert answer["parent"] is None
    assert answers[0]["id"] != answers[1]["id"]


# -- inheritance ----------------------------------------------------------------------------------


async def test_what_a_handler_sends_inherits_its_context(client: AsyncClient, chain: Chain) -> None:
    identity = {"tenant": "t", "user": "u", "agent": "a", "conversation": "c", "run": "r"}

    answer = await client.request("chain:outer", context=identity)
    async with asyncio.timeout(5):
        shown = [await chain.seen.get() for _ in range(2)]

    outer = answer["outer"]
    assert outer["origin"] == "owner"
    first, second = answer["chunks"]
    children = [answer["inner"], first, *(told(event.context) for event in shown)]
    for child in children:
        assert {name: child[name] for name in IDENTITY} == identity
        assert child["parent"] == outer["id"]
        assert child["origin"] == "chain"
    assert second["parent"] == first["id"]
    assert len({child["id"] for child in (outer, second, *children)}) == 6


async def test_two_requests_in_flight_do_not_mix_their_contexts(
    client: AsyncClient, chain: Chain
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = {
            user: tasks.create_task(client.request("chain:waits", context={"user": user}))
            for user in ("ann", "bob")
        }
        await client.request("system:hello")
        chain.gates["bob"].set()
        assert (await asked["bob"])["user"] == "bob"
        chain.gates["ann"].set()

    assert asked["ann"].result()["user"] == "ann"


async def test_an_inline_answer_leaves_no_context_behind(wire: MakeWire) -> None:
    mine = await wire()
    await mine.ask("chain:inner")

    mine.send(
        {"id": "a", "event": "chain:inner"},
        {"id": "b", "event": "chain:outer"},
        {"id": "c", "event": "chain:inner"},
    )
    answers = {}
    for _ in range(3):
        frame = await mine.receive()
        answers[frame["id"]] = frame["result"]

    assert answers["a"]["parent"] is answers["c"]["parent"] is None
    assert answers["b"]["outer"]["parent"] is None


async def test_a_plugin_s_own_errors_are_the_client_s(chain: Chain, daemon: Daemon) -> None:
    with pytest.raises(NotFound, match="did you mean chain:inner"):
        await chain.bus.request("chain:iner")
    with pytest.raises(InvalidData):
        await chain.bus.request("router:subscribe", {"pattern": "*"})
    with pytest.raises(InvalidData, match="pattern"):
        await chain.bus.request("system:discover", {"pattern": 1})


# -- tokens ---------------------------------------------------------------------------------------


async def test_an_expired_token_closes_its_connection(
    as_token: Callable[..., Awaitable[Wire]],
) -> None:
    mine = await as_token(Grants(call=("*",)), ttl_s=0.2)

    assert await mine.until_closed() == []


async def test_a_revoked_token_closes_its_connection_and_stops_its_requests(
    as_token: Callable[..., Awaitable[Wire]], client: AsyncClient, daemon: Daemon
) -> None:
    mine = await as_token(Grants(call=("*",)), user="ann")
    mine.send({"id": 1, "event": "chain:waits"})
    await mine.ask("system:hello")

    await client.request("token:revoke", {"id": daemon.tokens.records()[0].id})

    await mine.until_closed()
    async with asyncio.timeout(5):
        while (await client.request("system:stats"))["in_flight"] > 1:
            pass


async def test_a_connection_in_use_keeps_its_principal(daemon: Daemon, wire: MakeWire) -> None:
    mine = await wire()
    token = daemon.tokens.issue(Principal("token:t"), ttl_s=60)
    await mine.ask("router:subscribe", {"pattern": "*"})

    refusal = await mine.ask("router:authenticate", {"token": token})

    assert refusal["error"]["code"] == "conflict"


@pytest.mark.parametrize("token", ["", "ksi_", "ksi_a_b", "x" * 1000, "ksi__", "é"])
async def test_a_token_that_is_none_is_denied_and_changes_nothing(
    wire: MakeWire, token: str
) -> None:
    mine = await wire()

    refusal = await mine.ask("router:authenticate", {"token": token})

    assert refusal["error"]["code"] == "denied"
    assert (await mine.ask("system:hello"))["result"]["principal"] == "owner"


async def test_only_a_token_s_hash_is_kept_and_only_its_owner_may_read_it(
    client: AsyncClient, daemon: Daemon
) -> None:
    created = await client.request("token:create", {"name": "x", "ttl_s": 60})
    file = daemon.home.tokens_file
    secret = created["token"].split("_", 2)[2]

    for each in [*daemon.home.root.rglob("*")]:
        if each.is_file():
            assert secret not in each.read_text(errors="replace")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(json.loads(file.read_text())[0]["sha256"]) == 64


async def test_a_created_token_outlives_the_daemon_and_a_child_s_does_not(ksi_home: Path) -> None:
    home = ksi_home / "other"
    async with running_daemon(home) as daemon, AsyncClient(daemon.home.socket) as client:
        kept = (await client.request("token:create", {"name": "x", "ttl_s": 60}))["token"]
        passing = daemon.tokens.issue(Principal("child"), ttl_s=60)

    async with running_daemon(home) as daemon:
        async with AsyncClient(daemon.home.socket, token=kept) as client:
            assert (await client.request("system:hello"))["principal"] == "token:x"
        with pytest.raises(Denied):
            async with AsyncClient(daemon.home.socket, token=passing):
                pass


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("ksi_daemon.principals.hmac.compare_digest", compare)
    store = TokenStore()
    token = store.issue(Principal("x"), ttl_s=60)

    assert store.check(token).principal.name == "token:x"
    for wrong in (token[:-1], "ksi_unknown_secret"):
        with pytest.raises(Denied):
            store.check(wrong)

    assert len(compared) == 3


def test_an_expired_token_is_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("ksi_daemon.principals.time.time", lambda: now)
    store = TokenStore()
    token = store.issue(Principal("x"), ttl_s=60)
    now = 1059.9
    assert store.check(token).principal.name == "token:x"

    now = 1060.0

    with pytest.raises(Denied):
        store.check(token)
    assert store.records() == []


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan")])
def test_a_token_is_valid_for_some_time(ttl_s: float) -> None:
    with pytest.raises(InvalidData, match="ttl_s"):
        TokenStore().issue(Principal("x"), ttl_s=ttl_s)


def test_a_token_that_is_kept_is_not_good_for_once() -> None:
    with pytest.raises(InvalidData, match="good for one connection does not outlive"):
        TokenStore().issue(Principal("x"), ttl_s=60, keep=True, once=True)


async def test_nobody_else_may_open_the_socket(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.home.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.home.socket.parent.stat().st_mode) == 0o700


async def test_what_is_sent_behind_a_token_in_one_chunk_is_its_bearer_s(
    daemon: Daemon, wire: MakeWire
) -> None:
    token = daemon.tokens.issue(Principal("token:t", NOTHING), ttl_s=60.0)
    connection = await wire()
    hello = {"event": "system:hello", "data": {}}

    connection.send(
        {"id": 1, **hello},
        {"id": 2, "event": "router:authenticate", "data": {"token": token}},
        {"id": 3, **hello},
        {"id": 4, **hello},
    )
    received = [await connection.receive() for _ in range(4)]
    answers = {answer["id"]: answer["result"] for answer in received}

    assert answers[1]["principal"] == "owner"
    assert answers[3]["principal"] == "token:t"
    assert answers[4]["principal"] == "token:t"
