"""Patterns are found: built in, offered by plugins, and in files that may change."""

import os
from pathlib import Path

import pytest

from ksi_daemon.protocol import Conflict, InvalidData, NotFound
from ksi_orchestration import events as e
from ksi_orchestration.api import Pattern, Patterns, Role, Stage
from ksi_orchestration.pattern_handlers import PatternHandlers

PANEL = "name: panel\nroles: {ann: {}}\nstages: [{name: all, kind: parallel}]\n"
BUILT_IN = {
    "analysis", "brainstorm", "collaboration", "debate", "map-reduce", "pipeline", "review",
    "router", "teaching",
}  # fmt: skip


@pytest.fixture
def patterns(tmp_path: Path) -> Patterns:
    return Patterns(tmp_path)


async def names(patterns: Patterns) -> set[str]:
    return {each.name for each in (await patterns.listed()).patterns}


async def test_nine_are_built_in_and_a_folder_need_not_be_there(tmp_path: Path) -> None:
    for patterns in (Patterns(), Patterns(tmp_path / "none")):
        listed = await patterns.listed()

        assert {each.name for each in listed.patterns} == BUILT_IN
        assert {each.origin for each in listed.patterns} == {"built-in"}
        assert listed.problems == ()


async def test_a_file_is_found_read_anew_when_it_changes_and_gone_with_it(
    patterns: Patterns, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(PANEL)
    found = await patterns.find("panel")

    assert found.info.origin == str(file)
    assert found.info.roles == ("ann",)
    assert found.text == PANEL

    file.write_text(PANEL.replace("ann", "eve"))
    assert (await patterns.find("panel")).info.roles == ("eve",)
    file.write_text(PANEL.replace("panel", "other"))
    with pytest.raises(NotFound, match="no pattern 'panel'"):
        await patterns.find("panel")
    file.unlink()
    assert await names(patterns) == BUILT_IN


async def test_a_file_that_has_not_changed_is_not_read_again(
    patterns: Patterns, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(PANEL)
    before = await patterns.find("panel")

    assert (await patterns.find("panel")).pattern is before.pattern


async def test_a_file_counts_more_than_what_is_built_in(patterns: Patterns, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(PANEL.replace("panel", "debate"))

    found = await patterns.find("debate")

    assert found.info.origin.endswith("mine.yaml")
    assert await names(patterns) == BUILT_IN


async def test_a_file_that_is_not_sound_is_told_and_never_replaced_by_another_one(
    patterns: Patterns, tmp_path: Path
) -> None:
    (tmp_path / "debate.yaml").write_text(PANEL.replace("stages", "stagse"))
    (tmp_path / "good.yaml").write_text(PANEL)

    listed = await patterns.listed()

    problem = listed.problems[0]
    assert (Path(problem.path).name, problem.line) == ("debate.yaml", 3)
    assert (await patterns.find("panel")).pattern.name == "panel"
    with pytest.raises(InvalidData, match=r"debate\.yaml:3: stagse: there is no field 'stagse'"):
        await patterns.find("debate")


async def test_of_two_files_with_one_name_the_first_counts_and_it_is_told(
    patterns: Patterns, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(PANEL)
    (tmp_path / "b.yml").write_text(PANEL.replace("ann", "eve"))

    listed = await patterns.listed()

    assert (await patterns.find("panel")).info.roles == ("ann",)
    (problem,) = listed.problems
    assert Path(problem.path).name == "b.yml"
    assert "a.yaml has a pattern 'panel', too, and that one counts" in problem.message


async def test_whatever_lies_in_the_folder_it_is_read_or_told(
    patterns: Patterns, tmp_path: Path
) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"name: a\n\xff\n")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 1_000_001)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "nowhere.yaml").symlink_to(tmp_path / "none")
    (tmp_path / ".hidden.yaml").write_text("{")
    (tmp_path / "notes.md").write_text("{")
    os.mkfifo(tmp_path / "pipe.yaml")

    listed = await patterns.listed()

    assert {each.name for each in listed.patterns} == BUILT_IN
    told = {Path(each.path).name: each.message for each in listed.problems}
    assert told == {
        "binary.yaml": "it is no UTF-8 text",
        "huge.yaml": "it is larger than 1,000,000 bytes",
        "folder.yaml": "it is no file",
        "nowhere.yaml": "it can't be read: No such file or directory",
        "pipe.yaml": "it is no file",
    }


async def test_an_unknown_name_is_told_with_the_nearest(patterns: Patterns) -> None:
    with pytest.raises(NotFound, match="no pattern 'debat'; did you mean debate"):
        await patterns.find("debat")
    with pytest.raises(NotFound, match="there are analysis, brainstorm, "):
        await patterns.find("xyzzy")


async def test_a_plugin_s_patterns_are_there_as_long_as_it_is(patterns: Patterns) -> None:
    made = Pattern(name="made", roles={"ann": Role()}, stages=(Stage(name="all", kind="parallel"),))

    with patterns.offered(PANEL, made, provider="weather"):
        assert await names(patterns) == BUILT_IN | {"panel", "made"}
        assert (await patterns.find("made")).info.origin == "plugin"
        assert patterns.read((await patterns.find("made")).text) == made

    assert await names(patterns) == BUILT_IN


async def test_a_plugin_s_pattern_that_is_not_sound_or_has_a_taken_name_is_refused(
    patterns: Patterns,
) -> None:
    for why, text in (
        ("another pattern 'debate'", PANEL.replace("panel", "debate")),
        ("plugin x:3: stagse", PANEL.replace("stages", "stagse")),
    ):
        with (
            pytest.raises((Conflict, InvalidData), match=why),
            patterns.offered(PANEL, text, provider="x"),
        ):
            pass

    assert await names(patterns) == BUILT_IN


def test_a_document_of_one_s_own_holds_one_pattern(patterns: Patterns) -> None:
    assert patterns.read(PANEL).name == "panel"
    with pytest.raises(InvalidData, match=r"mine\.yaml holds 2 patterns and not one"):
        patterns.read(f"{PANEL}---\n{PANEL}", "mine.yaml")
    with pytest.raises(InvalidData, match=r"mine.yaml:3: stages\[0\].kind") as refused:
        patterns.read(PANEL.replace("parallel", "paralel"), "mine.yaml")
    assert refused.value.details == {"path": "stages[0].kind"}


# -- events ---------------------------------------------------------------------------------------


async def test_a_pattern_is_shown_with_its_text_and_all_that_it_comes_to(
    patterns: Patterns, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(PANEL)

    shown = await PatternHandlers(patterns).pattern(e.OrchestrationPattern(name="panel"))

    assert shown.text == PANEL
    assert shown.info.stages == ("all",)
    assert shown.resolved["limits"]["turns"] == 200


async def test_a_text_is_checked_without_being_kept(patterns: Patterns) -> None:
    handlers = PatternHandlers(patterns)
    text = f"{PANEL}---\n{PANEL.replace('ann', 'person')}"

    sound = await handlers.validate(e.OrchestrationValidate(text=PANEL))
    wrong = await handlers.validate(e.OrchestrationValidate(text=text, path="mine.yaml"))

    assert sound == e.PatternValidated(is_valid=True, problems=(), names=("panel",))
    assert not wrong.is_valid
    assert wrong.names == ("panel",)
    (problem,) = wrong.problems
    assert (problem.path, problem.line, problem.field) == ("mine.yaml", 6, "roles.person")
    assert await names(patterns) == BUILT_IN
