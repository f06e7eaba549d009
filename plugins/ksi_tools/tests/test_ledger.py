"""The ledger under every order of events: no effect twice without a person's word."""

import contextlib
import uuid
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_daemon.protocol import Context, ErrorBody
from ksi_postgres.database import Database
from ksi_tools.store import Ending, Fenced, Intent, Known, Ledger, Whose
from ksi_tools.text import Text, read_arguments
from ksi_tools.tool import Tool

TAKE_OFFICE = "SELECT held_epoch FROM ksi_workflows.take_office($1, 'here', 1, 60)"
HOLD = "SELECT ksi_workflows.leave_office($1, $2)"
OPTIONS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def never(*_: Any) -> None:
    """Stand for what a tool does."""


def tool_with(effects: Any) -> Tool:
    return Tool(
        name="strike",
        description="",
        effects=effects,
        provider="test",
        parameters={},
        check=lambda given: given,
        execute=never,
    )


class Daemon:
    """What a daemon knows of its own calls: what it has begun, and what has had its effect."""

    def __init__(self, database: Database, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.begun: dict[str, Intent] = {}
        self.database = database
        self.ledger = Ledger(database, lambda: (self.name, self.epoch))

    async def start(self) -> None:
        """Begin an epoch, and know nothing of the one before."""
        self.epoch = await self.database.fetchval(TAKE_OFFICE, self.name)
        self.begun = {}

    async def taken_over(self) -> None:
        """Lose the lease without knowing it, as one that was stopped does."""
        await self.database.fetchval(HOLD, self.name, self.epoch)


class World:
    """Daemons that share a ledger, and what they were told they may do."""

    def __init__(self, database: Database, effects: str) -> None:
        self.daemons = [Daemon(database, uuid.uuid4().hex) for _ in range(2)]
        self.tenant = uuid.uuid4().hex
        self.tool = tool_with(effects)
        self.may_begin: dict[str, int] = {}
        self.outcomes: dict[str, str | None] = {}
        self.redone: dict[str, int] = {}

    def intent(self, call_id: str) -> Intent:
        context = Context("e", tenant=self.tenant, run="r")
        arguments = read_arguments("strike", {"what": call_id}, 1000)
        return Intent(call_id, uuid.uuid4(), self.tool, arguments, context, True)

    async def ask(self, daemon: Daemon, call_id: str, *, twice: bool) -> None:
        """Ask a daemon to make a call, whose answer may get lost once."""
        if call_id in daemon.begun:
            return  # it waits for the one that it is making
        intent = self.intent(call_id)
        try:
            if twice:
                await daemon.ledger.begin(intent)
            verdict, _, known = await daemon.ledger.begin(intent)
        except Fenced:
            return
        if verdict == "run":
            self.may_begin[call_id] = self.may_begin.get(call_id, 0) + 1
            daemon.begun[call_id] = intent
        self.check(call_id, verdict, known)

    async def end(self, daemon: Daemon, call_id: str) -> None:
        """Have a call come to its end, if the daemon makes it."""
        intent = daemon.begun.pop(call_id, None)
        if intent is None:
            return
        content = intent.attempt.hex
        try:
            is_ours = await daemon.ledger.end(intent, Ending("done", Text(content), 1.0))
            again = await daemon.ledger.end(intent, Ending("done", Text(content), 1.0))
        except Fenced:
            return
        assert is_ours == again
        if is_ours:
            assert self.outcomes.setdefault(call_id, content) == content

    async def resolve(self, call_id: str, verdict: str) -> bool:
        """Have a person say what became of a call; return whether there was a doubt."""
        to_status = {"done": "done", "redo": "due", "drop": "dropped"}[verdict]
        content = None if verdict == "redo" else verdict
        change = (("in_doubt",), to_status)
        whose = Whose(self.tenant)
        said, _ = await self.daemons[0].ledger.settle(whose, call_id, change, content, "said")
        if said == "ok" and verdict == "done":
            assert call_id not in self.outcomes
            self.outcomes[call_id] = content
        return said == "ok"

    def check(self, call_id: str, verdict: str, known: Known | None) -> None:
        """Compare what is told with what has been told before."""
        if verdict == "recorded" and known is not None and known.status == "done":
            assert known.content == self.outcomes[call_id]


CALLS = st.sampled_from(["a", "b"])
DAEMONS = st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.just("ask"), DAEMONS, CALLS),
    st.tuples(st.just("ask_twice"), DAEMONS, CALLS),
    st.tuples(st.just("end"), DAEMONS, CALLS),
    st.tuples(st.just("crash"), DAEMONS, CALLS),
    st.tuples(st.just("taken_over"), DAEMONS, CALLS),
    st.tuples(st.just("sweep"), DAEMONS, CALLS),
    st.tuples(st.sampled_from(["done", "redo", "drop"]), DAEMONS, CALLS),
)


async def play(database: Database, effects: str, plan: list[tuple[str, int, str]]) -> World:
    world = World(database, effects)
    for daemon in world.daemons:
        await daemon.start()
    for what, number, call_id in plan:
        await take(world, world.daemons[number], what, call_id)
        if effects == "effectful":
            for each, count in world.may_begin.items():
                assert count <= 1 + world.redone.get(each, 0), each
    return world


async def take(world: World, daemon: Daemon, what: str, call_id: str) -> None:
    """Take one step of a plan."""
    if what in ("ask", "ask_twice"):
        await world.ask(daemon, call_id, twice=what == "ask_twice")
    elif what == "end":
        await world.end(daemon, call_id)
    elif what == "crash":
        await daemon.start()
    elif what == "taken_over":
        await daemon.taken_over()
    elif what == "sweep":
        with contextlib.suppress(Fenced):
            await daemon.ledger.doubt(100)
    elif await world.resolve(call_id, what) and what == "redo":
        world.redone[call_id] = world.redone.get(call_id, 0) + 1


@OPTIONS
@given(plan=st.lists(STEPS, max_size=14))
async def test_no_order_of_events_makes_an_effect_twice_unless_a_person_says_redo(
    database: Database, plan: list[tuple[str, int, str]]
) -> None:
    await play(database, "effectful", plan)


@OPTIONS
@given(plan=st.lists(STEPS, max_size=14))
async def test_what_may_be_repeated_never_comes_to_be_in_doubt_and_ends_once(
    database: Database, plan: list[tuple[str, int, str]]
) -> None:
    world = await play(database, "idempotent", plan)

    for call in await world.daemons[0].ledger.calls(Whose(world.tenant), limit=10):
        assert call.status in ("running", "lost", "done")


async def test_an_intent_whose_answer_got_lost_is_not_in_doubt(database: Database) -> None:
    world = World(database, "effectful")
    (daemon, _) = world.daemons
    await daemon.start()
    intent = world.intent("a")

    verdicts = [(await daemon.ledger.begin(intent))[0] for _ in range(3)]
    other, _, _ = await daemon.ledger.begin(world.intent("a"))

    assert verdicts == ["run", "run", "run"]
    assert other == "doubted"  # this daemon has nothing in flight under that id any more


async def test_a_call_that_was_left_is_asked_for_anew_and_not_only_swept(
    database: Database,
) -> None:
    world = World(database, "effectful")
    for daemon in world.daemons:
        await daemon.start()
    first, second = world.daemons
    begun, _, _ = await first.ledger.begin(world.intent("a"))
    await first.taken_over()

    verdict, _, known = await second.ledger.begin(world.intent("a"))

    assert begun == "run"
    assert verdict == "doubted"
    assert known is not None
    assert known.status == "in_doubt"
    with pytest.raises(Fenced):
        await first.ledger.begin(world.intent("b"))


async def test_what_ended_long_ago_is_forgotten_and_what_wants_a_person_is_not(
    database: Database,
) -> None:
    world = World(database, "effectful")
    (daemon, _) = world.daemons
    await daemon.start()
    for call_id, status in (("a", "done"), ("b", "in_doubt"), ("c", "done")):
        intent = world.intent(call_id)
        await daemon.ledger.begin(intent)
        text = Text("x", 1, ("x", "y")) if call_id == "a" else Text("x")
        await daemon.ledger.end(intent, Ending(status, text, 1.0))
    assert await daemon.ledger.output_chars(world.tenant, "a") == 2

    assert await daemon.ledger.forget(3600.0, 100) == 0
    assert await daemon.ledger.forget(0.0, 1) == 1
    assert await daemon.ledger.forget(0.0, 100) == 1

    left = await daemon.ledger.calls(Whose(world.tenant), limit=10)
    assert [each.call_id for each in left] == ["b"]
    assert await daemon.ledger.output_chars(world.tenant, "a") == 0


async def test_an_error_is_kept_as_it_was(database: Database) -> None:
    world = World(database, "read_only")
    (daemon, _) = world.daemons
    await daemon.start()
    intent = world.intent("a")
    await daemon.ledger.begin(intent)
    body = ErrorBody("busy", "later", 2.0, {"kind": "x"})

    await daemon.ledger.end(intent, Ending("failed", Text("later"), 1.0, body, "later"))

    _, _, known = await daemon.ledger.begin(world.intent("a"))
    assert known is not None
    assert known.error_body == body


@pytest.mark.parametrize(
    ("effects", "waits"), [("read_only", "off"), ("idempotent", "on"), ("effectful", "on")]
)
async def test_only_what_has_no_effect_does_not_wait_for_the_disk(
    database: Database, effects: str, waits: str
) -> None:
    world = World(database, effects)
    (daemon, _) = world.daemons
    await daemon.start()
    intent = world.intent("a")

    for write in ("begin", "end"):
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL synchronous_commit = on")
            ledger = Ledger(cast(Database, connection), lambda: (daemon.name, daemon.epoch))
            if write == "begin":
                await ledger.begin(intent)
            else:
                assert await ledger.end(intent, Ending("done", Text("x"), 1.0))

            assert await connection.fetchval("SHOW synchronous_commit") == waits, write
