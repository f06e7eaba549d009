"""How orchestrations end: well, out of money or time, or by failures; none goes on for ever."""

import asyncio
from typing import Any

import pytest

from ksi_client import AsyncClient, NotFound, Unavailable
from ksi_daemon.protocol import Failed
from ksi_orchestration import performing
from ksi_orchestration.tests.doubles import Ensemble
from ksi_orchestration.tests.helpers import CHORUS, TALK, change, ended, said, spoken, start

SECOND = {"tenant": "second"}
JUDGED = (
    TALK
    + """
  - name: verdict
    kind: judge
    members: [bob]
    prompt: "Who is right? {{ heard }}"
"""
)


@pytest.fixture
def ksi_settings() -> list[str]:
    """Look often for what nobody works on."""
    return ["orchestration.sweep_s=0.1"]


# -- the patterns that are built in ---------------------------------------------------------------

LINES = {
    "debate/judge": ["Winner: neither"],
    "collaboration/lead": ["draft", "better. NOTHING TO ADD", "the work"],
    "collaboration/partner": ["but", "NOTHING TO ADD"],
    "teaching/student": ["What?", "Oh. NO MORE QUESTIONS"],
    "brainstorm/editor": ["1. Idea a\n2. Idea b", "Do b."],
    "brainstorm/practical": ["1. a", "PASS", "vote: 2"],
    "brainstorm/bold": ["1. b", "PASS", "vote: 1"],
    "brainstorm/outsider": ["1. c", "PASS", "vote: 2"],
    "router/router": ["next: critic", "next: nobody"],
    "router/critic": ["It is wrong."],
    "map-reduce/splitter": ["1. Part one\n2. Part two\n3. Part three"],
    "review/reviewer": ["Decision: accept"],
}
RESULTS = {
    "analysis": "author says 1",
    "brainstorm": "Do b.",
    "collaboration": "the work",
    "debate": "Winner: neither",
    "map-reduce": "reducer says 1",
    "pipeline": "finisher says 1",
    "review": "author says 2",
    "router": "editor says 1",
    "teaching": "teacher says 3",
}


async def test_each_pattern_that_is_built_in_is_played_to_its_end(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    for member, lines in LINES.items():
        ensemble.lines(member, *lines)

    for name in RESULTS:
        data = {"pattern": name, "topic": "Cats", "id": name}
        await client.request("orchestration:start", data)
    told = {name: (await ended(client, name))["orchestration"] for name in RESULTS}

    assert {name: it["status"] for name, it in told.items()} == dict.fromkeys(RESULTS, "succeeded")
    assert {name: it["result"] for name, it in told.items()} == RESULTS
    worked = {each["member"]: each.get("item") for each in await said(client, "map-reduce")}
    assert (worked["worker-2"], worked["reducer"]) == ("Part two", None)
    listed = await client.request("orchestration:patterns")
    assert {each["name"] for each in listed["patterns"]} == set(RESULTS)


# -- failures -------------------------------------------------------------------------------------


async def test_a_turn_that_fails_is_had_again_by_a_substitute_or_model_left_out_or_ends_all(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    rule = "\non_failure: {retries: 1, substitute: critic, then: skip}\n"
    broken = [Failed("broken")] * 3
    ensemble.lines("ann", *broken)

    told = await ended(client, await start(client, TALK + rule, id="a", rounds=2))
    heard = await said(client, "a")

    assert told["orchestration"]["status"] == "succeeded"
    assert [(each["member"], each["agent"], "error" in each) for each in heard] == [
        ("ann", "general", True),
        ("ann", "general", True),
        ("ann", "critic", True),
        ("bob", "general", False),
        ("ann", "general", False),
        ("bob", "general", False),
    ]
    assert (told["members"][0]["turns"], told["members"][0]["failures"]) == (4, 3)

    document = TALK.replace("ann: {}", "ann: {model: [test:broken, test:sound]}")
    ensemble.lines("b/ann", Failed("broken"))

    await ended(client, await start(client, document, id="b", rounds=1))
    models = [
        each.call.model for each in ensemble.asked if (each.which, each.member) == ("b", "ann")
    ]

    assert models == ["test:broken", "test:sound"]
    first = (await said(client, "b"))[0]
    assert (first["model"], first["text"]) == ("test:sound", "ann says 2")

    rule = "\non_failure: {retries: 0, then: stop}\n"
    ensemble.lines("c/bob", Failed("the line is dead"))

    ended_so = (await ended(client, await start(client, TALK + rule, id="c")))["orchestration"]

    assert (ended_so["status"], ended_so["reason"]) == ("failed", "failed")
    assert "the line is dead" in ended_so["error"]["message"]
    assert [each.member for each in ensemble.asked if each.which == "c"] == ["ann", "bob"]


async def test_a_play_that_breaks_ends_its_orchestration(
    client: AsyncClient, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("lost the thread")

    monkeypatch.setattr(performing, "next_moves", broken)

    told = (await ended(client, await start(client)))["orchestration"]

    assert told["status"] == "failed"
    assert "lost the thread" in told["error"]["message"]


async def test_a_workflow_that_is_cancelled_takes_its_orchestration_and_its_turn_along(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    ensemble.hold("ann")
    which = await start(client)
    await ensemble.until_asked("ann")
    told = await client.request("orchestration:status", {"id": which})

    await client.request("workflow:cancel", {"run_id": told["orchestration"]["run_id"]})
    told = await ended(client, which)
    turns = (await client.request("completion:list"))["turns"]

    assert told["orchestration"]["status"] == "stopped"
    assert [each["status"] for each in turns] == ["cancelled"]


async def test_what_was_accepted_and_not_begun_is_begun_later(
    client: AsyncClient, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(performing.Performing, "begin", away)
        await start(client, id="later", rounds=1)
        waiting = await client.request("workflow:list", {"name": "orchestration"})

    assert waiting["runs"] == []
    assert (await ended(client, "later"))["orchestration"]["status"] == "succeeded"


# -- limits ---------------------------------------------------------------------------------------


async def test_when_the_budget_is_spent_it_ends_and_keeps_what_was_said(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    which = await start(client, JUDGED, rounds=1, budget={"requests": 2})

    told = (await ended(client, which))["orchestration"]

    assert (told["status"], told["reason"]) == ("failed", "cost")
    assert "may make 2" in told["error"]["message"]
    assert ensemble.order() == ["ann", "bob"]  # the judge was not asked
    assert (await spoken(client, which))[:2] == [("ann", "ann says 1"), ("bob", "bob says 1")]
    assert told["result"] != ""

    which = await start(client, CHORUS, budget={"cost_usd": 0.0005})

    told = (await ended(client, which))["orchestration"]

    assert (told["status"], told["reason"]) == ("failed", "cost")
    assert "0.0005 US dollars" in told["error"]["message"]


async def test_its_time_ends_a_turn_that_does_not(client: AsyncClient, ensemble: Ensemble) -> None:
    ensemble.hold("bob")

    told = (await ended(client, await start(client, budget={"wall_s": 2})))["orchestration"]

    assert (told["status"], told["reason"]) == ("failed", "time")
    turns = (await client.request("completion:list"))["turns"]
    assert {each["status"] for each in turns} <= {"succeeded", "failed"}


async def test_an_event_ends_a_talk(client: AsyncClient, ensemble: Ensemble) -> None:
    document = TALK.replace("{rounds: 2}", "{rounds: 100, event: 'orchestration:patt*'}")
    which = await start(client, document)
    await ensemble.until_asked("bob")

    await client.request("orchestration:patterns")
    told = (await ended(client, which))["orchestration"]

    assert told["status"] == "succeeded"
    assert len(ensemble.asked) < 100


# -- others ---------------------------------------------------------------------------------------


async def test_tenants_know_nothing_of_one_another_s(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    mine = await start(client, id="same", rounds=1)
    data = {"document": TALK, "topic": "Snow", "id": "same", "rounds": 1}
    theirs = await client.request("orchestration:start", data, context=SECOND)
    both = await ended(client, mine)
    async with asyncio.timeout(20):
        async for _ in client.stream("orchestration:follow", {"id": "same"}, context=SECOND):
            pass
    told = await client.request("orchestration:transcript", {"id": "same"}, context=SECOND)
    listed = await client.request("orchestration:list", context=SECOND)

    assert (both["orchestration"]["topic"], theirs["topic"]) == ("Rain", "Snow")
    assert [each["topic"] for each in listed["orchestrations"]] == ["Snow"]
    assert [each["number"] for each in told["utterances"]] == [1, 2]
    assert sorted(each.tenant for each in ensemble.asked) == ["default"] * 2 + ["second"] * 2
    await start(client, id="mine", rounds=1)
    for what in ("stop", "status", "transcript"):
        with pytest.raises(NotFound):
            await client.request(f"orchestration:{what}", {"id": "mine"}, context=SECOND)
    await change(client, "stop", "mine")
