"""Each of the built-in patterns, played with scripted answers."""

import re
from functools import cache
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from ksi_orchestration.documents import json_schema
from ksi_orchestration.pattern import MAX_ROUNDS, Pattern
from ksi_orchestration.patterns import Patterns
from ksi_orchestration.tests.playing import Answer, Playing, lines

TOPIC = "Is {{ it }} better to rewrite?"


@cache
def built_in() -> Patterns:
    return Patterns()


async def played(name: str, answer: Answer | None = None, **more: object) -> Playing:
    """Return a pattern that was played to its end."""
    pattern: Pattern = (await built_in().find(name)).pattern
    playing = Playing(pattern, answer or lines(), topic=TOPIC, **more)
    ended = playing.to_the_end()
    assert (ended.status, ended.reason) == ("succeeded", "done")
    return playing


def groups(playing: Playing) -> list[list[str]]:
    return [[move.member for move in group] for group in playing.moves]


def result(playing: Playing) -> str:
    return playing.to_the_end().result


async def names() -> list[str]:
    return [each.name for each in (await built_in().listed()).patterns]


async def test_each_says_what_it_is_good_for_and_tells_everybody_what_it_is_about() -> None:
    for info in (await built_in().listed()).patterns:
        assert info.description.endswith(".")
        assert len(info.description) <= 125
        playing = await played(info.name)
        for member in {move.member for move in playing.all_moves()}:
            first = playing.prompts(member)[0]
            assert first.count(TOPIC) == 1, (info.name, member)
            assert not re.search(r"\{\{ (?!it )", "".join(playing.prompts(member)))
            assert "\n\n\n" not in "".join(playing.prompts(member))


async def test_each_uses_agents_that_are_built_in() -> None:
    there = {"general", "researcher", "critic", "define", "blend", "summarizer"}

    for name in await names():
        pattern = (await built_in().find(name)).pattern

        assert {role.agent for role in pattern.roles.values()} <= there


async def test_in_a_debate_two_alternate_and_a_judge_who_heard_all_decides() -> None:
    playing = await played("debate", lines(judge=["Winner: neither"]))

    assert groups(playing) == [["proponent"], ["opponent"]] * 3 + [["judge"]]
    (told,) = playing.prompts("judge")
    said = [f"said debate.{n}.{who}.1" for n in (1, 2, 3) for who in ("proponent", "opponent")]
    assert [told.find(each) for each in said] == sorted(told.find(each) for each in said)
    assert min(told.find(each) for each in said) > 0
    assert "This is round 3 of 3" in playing.prompts("opponent")[-1]
    assert result(playing) == "Winner: neither"


async def test_a_collaboration_goes_on_until_both_have_nothing_to_add() -> None:
    said = lines(
        lead=["draft", "better\n\n**Nothing to add.**", "the work"],
        partner=["but", "no more: NOTHING TO ADD"],
    )

    playing = await played("collaboration", said)

    assert playing.order() == ["lead", "partner", "lead", "partner", "lead"]
    assert result(playing) == "the work"


async def test_a_lesson_ends_when_the_student_has_no_more_questions() -> None:
    said = lines(
        teacher=["explains", "explains again", "the notes"],
        student=["What?", "Oh. NO MORE QUESTIONS"],
    )

    playing = await played("teaching", said)

    assert playing.order() == ["teacher", "student", "teacher", "student", "teacher"]
    assert result(playing) == "the notes"


async def test_in_a_brainstorm_ideas_come_at_once_are_built_on_and_voted_for() -> None:
    said = lines(
        practical=["1. a", "a and b", "vote: 2"],
        bold=["1. b", "PASS", "vote: 1"],
        outsider=["1. c", "c and a", "PASS", "vote: 2. Idea b"],
        editor=["1. Idea a\n2. Idea b\n3. Idea c", "Do b."],
    )

    playing = await played("brainstorm", said)

    three = ["practical", "bold", "outsider"]
    assert groups(playing)[:2] == [three, three]
    assert ["Idea b" in each for each in playing.prompts("editor")] == [False, True]
    assert "This one was chosen:\n\nIdea b\n" in playing.prompts("editor")[1]
    assert result(playing) == "Do b."


async def test_an_analysis_has_four_sides_that_do_not_hear_one_another() -> None:
    playing = await played("analysis")

    sides = ["facts", "causes", "interests", "risks"]
    assert groups(playing) == [sides, ["checker"], ["author"]]
    assert playing.all_moves()[0].agent == "researcher"
    for side in sides:
        assert "<said" not in playing.prompts(side)[0]
        assert f"said sides.1.{side}.1" in playing.prompts("checker")[0]
        assert f"said sides.1.{side}.1" in playing.prompts("author")[0]
    assert "said check.1.checker.1" in playing.prompts("author")[0]


async def test_an_analysis_can_do_without_a_side_that_fails() -> None:
    playing = await played("analysis", lines(risks=[None, None]))

    assert "said sides.1.facts.1" in playing.prompts("author")[0]
    assert "sides.1.risks" not in playing.prompts("author")[0]


async def test_in_a_pipeline_each_goes_on_from_where_the_one_before_was() -> None:
    playing = await played("pipeline")

    assert playing.order() == ["planner", "maker", "checker", "finisher"]
    finisher = playing.prompts("finisher")[0]
    assert "said work.1.maker.1" in finisher
    assert "said work.1.checker.1" in finisher
    assert "said work.1.planner.1" not in finisher
    assert result(playing) == "said work.1.finisher.1"


async def test_a_router_calls_whom_the_request_is_for() -> None:
    said = lines(
        router=["For the critic.\nnext: critic", "next: nobody"],
        critic=["It is wrong."],
        editor=["No."],
    )

    playing = await played("router", said)

    assert playing.order() == ["router", "critic", "router", "editor"]
    assert [move.agent for move in playing.all_moves()] == ["general", "critic", "general", "blend"]
    assert "It is wrong." in playing.prompts("editor")[0]
    assert result(playing) == "No."


async def test_a_large_task_is_split_worked_on_at_once_and_put_together() -> None:
    parts = "\n".join(f"{n}. Part {n}" for n in range(1, 7))

    playing = await played("map-reduce", lines(splitter=[parts], reducer=["All of it."]))

    _, work, reduce = playing.moves
    assert [move.item for move in work] == [f"Part {n}" for n in range(1, 7)]
    assert {move.member for move in work} == {f"worker-{n}" for n in (1, 2, 3, 4)}
    assert "This is your part:\n\nPart 6\n" in work[5].prompt
    assert '<said by="worker-2" about="Part 6">' in reduce[0].prompt
    assert result(playing) == "All of it."


@pytest.mark.parametrize(("decision", "turns"), [("accept", 3), ("revise", 7)])
async def test_a_review_goes_on_until_the_text_is_accepted(decision: str, turns: int) -> None:
    playing = await played("review", lines(reviewer=[f"1. x\n\n**Decision:** {decision}"] * 3))

    assert playing.order() == [*(["author", "reviewer"] * 3)[: turns - 1], "author"]
    assert result(playing).startswith("said final.1.author")


async def test_the_published_schema_holds_them_and_no_others() -> None:
    schema = json_schema()
    validator = jsonschema_rs.validator_for(schema)

    for name in await names():
        given = yaml.safe_load((await built_in().find(name)).text)
        validator.validate(given)
        assert not validator.is_valid({**given, "stagse": []})
        given["stages"][0]["until"] = {"round": 1}
        assert not validator.is_valid(given)
    for part in (schema, *schema["$defs"].values()):
        assert [
            name for name, each in part["properties"].items() if "description" not in each
        ] == []


def test_the_one_in_the_documentation_is_sound() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^````yaml\n(.*?)^````$", readme, re.DOTALL | re.MULTILINE)

    playing = Playing(built_in().read(text), topic=TOPIC)
    playing.to_the_end()

    assert playing.order() == ["expert-1", "expert-2", "editor"]
    assert "said answers.1.expert-2.1" in playing.prompts("editor")[0]


async def test_as_many_rounds_as_can_be_asked_for_fit_into_the_limits() -> None:
    for name in await names():
        pattern = (await built_in().find(name)).pattern
        once = len((await played(name)).said)

        for stage in pattern.stages:
            if stage.kind == "talk":
                a_round = 2 if stage.turns == "moderator" else len(stage.members)
                assert once + MAX_ROUNDS * a_round <= pattern.limits.turns
