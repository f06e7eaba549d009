"""What is kept of orchestrations: each change of one by itself, and none done twice."""

import asyncio
from typing import Any

import pytest

from ksi_agents.events import RunLimits
from ksi_daemon.protocol import Context, NotFound
from ksi_orchestration.events import Utterance
from ksi_orchestration.pattern import Pattern, Role, Stage, Until
from ksi_orchestration.play import Cast, Move, Moves, Score
from ksi_orchestration.store import Kept, New, Store, Totals
from ksi_postgres.database import Database

PATTERN = Pattern(
    name="chat",
    roles={"ann": Role()},
    stages=(Stage(name="talk", kind="talk", until=Until(rounds=1)),),
)
MEMBERS = (Cast(name="ann", role="ann", agent="general"),)
SCORE = Score(pattern=PATTERN, topic="Rain", members=MEMBERS)
MANY = 100


@pytest.fixture
async def store(database: Database) -> Store:
    return Store(database)


async def accept(store: Store, which: str = "a", user: str | None = None, most: int = 9) -> Any:
    """Keep an orchestration; return what became of it."""
    new = New(
        id=which,
        digest="d",
        score=SCORE,
        limits=RunLimits(),
        context=Context("", user=user),
        run=f"run-{which}",
    )
    return await store.accept(new, most)


async def found(store: Store, which: str = "a") -> Kept:
    kept = await store.find("default", None, which)
    assert kept is not None
    return kept


def words(text: str = "hm") -> Utterance:
    return Utterance(number=0, stage="talk", round=1, member="ann", text=text, tokens=3)


def moves(*keys: str, stage: str = "talk") -> Moves:
    made = tuple(
        Move(key=key, stage=stage, round=1, member="ann", agent="general", prompt="?", after=0)
        for key in keys
    )
    return Moves(stage=stage, round=1, moves=made)


async def test_one_is_kept_once_and_no_more_than_there_may_be(store: Store) -> None:
    verdicts = [await accept(store, each, most=2) for each in ("a", "a", "b", "c")]

    assert verdicts == ["new", "known", "new", "full"]
    assert (await found(store)).score == SCORE


async def test_a_user_sees_his_own_and_nobody_the_other_tenant_s(store: Store) -> None:
    await accept(store, user="ann")

    seen = [await store.find("default", user, "a") for user in (None, "ann", "bob")]

    assert [kept is not None for kept in seen] == [True, True, False]
    assert await store.find("second", None, "a") is None
    with pytest.raises(NotFound, match="no orchestration a"):
        async with store.changing("default", "bob", "a"):
            pass


async def test_what_is_said_at_once_gets_numbers_without_gaps(store: Store) -> None:
    await accept(store)

    async def say() -> int:
        async with store.changing("default", None, "a") as change:
            return (await change.utter(words())).number

    async with asyncio.TaskGroup() as group:
        said = [group.create_task(say()) for _ in range(20)]

    assert sorted(each.result() for each in said) == list(range(1, 21))
    seen = await store.look("default", None, "a", after=15)
    assert seen is not None
    assert [each.number for each in seen.said] == [16, 17, 18, 19, 20]
    assert seen.kept.told.tokens == 60


async def test_a_turn_is_finished_once(store: Store) -> None:
    await accept(store)
    async with store.changing("default", None, "a") as change:
        await change.keep_moves(moves("k1", "k2"), 60.0, at_once=1)
        opened = await change.open_moves()
        first = await change.begin_move("k2")
        finished = [await change.finish_move("k1") for _ in range(2)]
        late = await change.begin_move("k1")
        left = await change.open_moves()

    assert [(each.move.key, each.is_begun) for each in opened] == [("k1", True), ("k2", False)]
    assert (first, late) == (True, False)
    assert finished == [True, False]
    assert [each.move.key for each in left] == ["k2"]


async def test_time_in_which_it_is_paused_does_not_count(store: Store, database: Database) -> None:
    await accept(store)
    async with store.changing("default", None, "a") as change:
        await change.pause()
    paused = await found(store)
    await database.execute("SELECT pg_sleep(0.05)")
    later = await found(store)
    async with store.changing("default", None, "a") as change:
        await change.resume()
    await database.execute("SELECT pg_sleep(0.05)")
    resumed = await found(store)

    assert later.elapsed_s == paused.elapsed_s
    assert resumed.elapsed_s - paused.elapsed_s >= 0.05
    assert resumed.told.status == "running"


async def test_a_stage_has_its_own_time_and_sees_its_own_events(store: Store) -> None:
    await accept(store)
    for stage, events in (("talk", ("x:y", "x:y", "x:z")), ("talk", ()), ("end", ())):
        async with store.changing("default", None, "a") as change:
            await change.keep_moves(moves(f"{stage}{len(events)}", stage=stage), 60.0, at_once=1)
        for event in events:
            await store.see("default", "a", event)
        kept = await found(store)
        if stage == "talk":
            assert kept.seen == ("x:y", "x:z")
            assert kept.stage_elapsed_s > 0

    assert kept.seen == ()
    assert kept.stage_elapsed_s < kept.elapsed_s


async def test_what_has_ended_stays_as_it_is_and_is_forgotten_in_the_end(store: Store) -> None:
    for which in ("a", "b"):
        await accept(store, which)
    async with store.changing("default", None, "a") as change:
        await change.end("succeeded", "done", "Snow", totals=Totals(tokens=7, cost_usd=0.5))
    kept = await found(store)
    await store.see("default", "a", "x:y")
    due = await store.due(0.0, MANY)
    again = await store.due(60.0, MANY)
    await store.forget_ended(0.0)

    assert (kept.told.status, kept.told.result, kept.told.tokens) == ("succeeded", "Snow", 7)
    assert [each.id for each in due] == ["b"]
    assert again == []
    assert await store.find("default", None, "a") is None
    assert await store.find("default", None, "b") is not None
