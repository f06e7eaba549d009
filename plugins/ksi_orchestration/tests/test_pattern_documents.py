"""What is wrong with the document of a pattern is told with line, field and the nearest name."""

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_orchestration.checks import faults_of
from ksi_orchestration.documents import full, read_made, read_patterns, told
from ksi_orchestration.pattern import OnFailure, Pattern, Role, Route, Stage

SOUND = """\
name: panel
description: Two answer, one sums up.
roles:
  expert:
    agent: researcher
    count: 2
    prompt: You know {{ topic }}.
  host: { agent: summarizer }
routes:
  - { from: expert, to: host }
stages:
  - name: answers
    kind: parallel
    members: [expert]
    prompt: Answer.
  - name: talk
    kind: talk
    members: [expert]
    turns: alternate
    until: { rounds: 2, says: done }
  - name: choice
    kind: vote
    members: [expert]
    options: [red, blue]
    tie: host
  - name: summary
    kind: judge
    members: [host]
    prompt: "{{ heard }} {{ results.choice }}"
    output: { type: object }
result: summary
limits: { turns: 20, wall_s: 600 }
"""


def wrong(text: str) -> list[str]:
    """Return what is wrong, as line, field and message."""
    found, problems = read_patterns(text, "p.yaml")
    assert found == []
    assert all(told(problem).startswith("p.yaml") for problem in problems)
    return [f"{each.line}: {each.field}: {each.message}" for each in problems]


def changed(old: str, new: str) -> str:
    assert SOUND.count(old) == 1
    return SOUND.replace(old, new)


def test_a_sound_document_is_read() -> None:
    (found,), problems = read_patterns(SOUND, "p.yaml")

    assert problems == []
    assert found.text == SOUND
    assert found.pattern.roles["expert"].count == 2
    assert found.pattern.routes[0].sender == "expert"


def test_a_file_holds_several() -> None:
    found, problems = read_patterns(f"{SOUND}---\n{SOUND.replace('panel', 'other')}", "p.yaml")

    assert problems == []
    assert [each.pattern.name for each in found] == ["panel", "other"]
    assert [each.text.count("name: summary") for each in found] == [1, 1]


def test_one_made_in_python_is_held_to_the_same() -> None:
    stage = Stage(name="all", kind="parallel")
    routes = (Route(sender="a", to="b"),)
    made = Pattern(name="made", roles={"a": Role()}, stages=(stage,), routes=routes)

    _, problems = read_made(made, "plugin x")
    (found,), _ = read_made(msgspec.structs.replace(made, routes=()), "plugin x")

    assert [each.field for each in problems] == ["routes[0].to"]
    assert found.pattern == msgspec.structs.replace(made, routes=())


def test_all_of_a_pattern_is_shown_with_its_defaults() -> None:
    (found,), _ = read_patterns(SOUND, "p.yaml")

    shown = full(found.pattern)

    assert shown["routes"] == [{"from": "expert", "to": "host"}]
    assert shown["roles"]["host"]["count"] == 1
    assert shown["stages"][0]["until"]["rounds"] is None
    assert shown["on_failure"] == full(OnFailure())
    assert set(shown) == set(Pattern.__struct_fields__)
    assert msgspec.json.encode(shown)
    assert faults_of({key: each for key, each in shown.items() if each is not None}) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: panel", "nam: panel", "1: nam: there is no field 'nam'; did you mean name?"),
        ("{ from: expert,", "{ from: host, form: x,", "10: routes[0].form: there is no field"),
        ("    count: 2", "    cuont: 2", "6: roles.expert.cuont: there is no field 'cuont'; d"),
        ("says: done", "sais: x", "20: stages[1].until.sais: there is no field 'sais'; did"),
        ("description: Two", "description: [Two]\n#", "2: description: expected `str`"),
        ("name: panel", "name: A panel", "1: name: a name is made of small letters, digits, '.'"),
        ("  - name: talk", "  - name: a b", "16: stages[1].name: the name of a role or a stage"),
        ("  host: {", "  Host: {", "3: roles: the name of a role or a stage is made of small"),
        ("kind: parallel", "kind: paralel", "13: stages[0].kind: invalid enum value 'paralel'"),
        ("count: 2", "count: many", "6: roles.expert.count: expected `int`"),
        ("rounds: 2", "rounds: 1000", "20: stages[1].until.rounds: expected `int` <= 100"),
        ("turns: 20", "turns: 0", "32: limits.turns: expected `int` >= 1"),
        ("result: summary", "result: talk\nresult: summary", "32: result: it stands twice"),
    ],
)
def test_a_field_that_does_not_fit_is_told(old: str, new: str, expected: str) -> None:
    assert wrong(changed(old, new))[0].startswith(expected)


def test_every_field_that_does_not_fit_is_told() -> None:
    text = changed("count: 2", "count: many").replace("turns: 20", "turns: 0")

    assert [each.partition(": ")[0] for each in wrong(text.replace("rounds: 2", "rounds: 0"))] == [
        "6",
        "20",
        "32",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("result: summary", "result: sumary", "31: result: there is no stage 'sumary'; did you m"),
        ("name: talk", "name: answers", "16: stages[1].name: there is another stage 'answers'"),
        ("members: [host]", "members: [hots]", "28: stages[3].members[0]: there is no role 'hot"),
        ("members: [host]", "members: [host, host]", "28: stages[3].members[1]: 'host' is named"),
        ("{ from: expert,", "{ from: exprt,", "10: routes[0].from: there is no role 'exprt'; di"),
        ("to: host", "to: [host, hosd]", "10: routes[0].to: there is no role 'hosd'; did you me"),
        (
            "  - { from: expert, to: host }",
            '  - { from: "*", to: all }\n  - { from: host, to: all }',
            "11: routes[1]: it is never used: a route before it is for 'host', too",
        ),
        ("  host: {", "  person: {}\n  host: {", "8: roles.person: 'person' is no name for a role"),
        ("tie: host", "tie: hst", "25: stages[2].tie: there is no role 'hst'; did you mean host?"),
    ],
)
def test_a_name_that_there_is_not_is_told_with_the_nearest(
    old: str, new: str, expected: str
) -> None:
    (found,) = wrong(changed(old, new))

    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rounds: 2, says: done", "says: done", "20: stages[1].until: it might never end: a tal"),
        ("    count: 2\n", "", "18: stages[1].turns: two alternate, and these are 1; write roun"),
        ("alternate", "moderator", "16: stages[1].moderator: it names no moderator: turns: moder"),
        ("turns: alternate", "moderator: host", "19: stages[1].moderator: its turns are not mod"),
        ("tie: host", "turns: free", "25: stages[2].turns: a stage of kind vote has none: it is"),
        ("tie: host", "over: answers", "24: stages[2].options: it has either options or over"),
        ("[red, blue]", "[red]", "24: stages[2].options: there is one, and that is no choice"),
        ("[red, blue]", "[red, Red]", "24: stages[2].options[1]: it is empty or stands there tw"),
        ("options: [red, blue]", "over: summary", "24: stages[2].over: the stage 'summary' does"),
        ("options: [red, blue]", "over: anwers", "24: stages[2].over: there is no stage 'anwers"),
        ("members: [host]", "members: [expert]", "28: stages[3].members: one judges, and these"),
        ("kind: judge", "kind: map", "29: stages[3].prompt: it has no {{ item }}: each would be"),
        ("type: object", "type: objekt", "30: stages[3].output: it is no sound JSON Schema"),
        ("prompt: Answer.", "until: { says: x }", "15: stages[0].until: a stage of kind parall"),
        (
            "says: done",
            "condition: { role: host, field: a, equals: 1 }",
            "20: stages[1].until.condition.role: there is no role in this stage 'host'; there a",
        ),
        (
            "says: done",
            "condition: { role: expert, field: a }",
            "20: stages[1].until.condition: it has either equals or at_least",
        ),
    ],
)
def test_a_stage_that_makes_no_sense_or_might_not_end_is_told(
    old: str, new: str, expected: str
) -> None:
    (found,) = wrong(changed(old, new))

    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{{ topic }}", "{{ topc }}", "7: roles.expert.prompt: there is no {{ topc }} here; did"),
        ("{{ topic }}", "{{ heard }}", "7: roles.expert.prompt: there is no {{ heard }} here"),
        ("{{ heard }}", "{{ heard | x }}", "29: stages[3].prompt: between braces stands a name"),
        ("results.choice", "results.choise", "29: stages[3].prompt: there is no {{ results.choi"),
        ("Answer.", '"{{ item }}"', "15: stages[0].prompt: there is no {{ item }} here"),
        ("Answer.", '"{{ results.talk }}"', "15: stages[0].prompt: there is no {{ results.talk"),
    ],
)
def test_a_prompt_with_a_name_that_there_is_not_is_told(old: str, new: str, expected: str) -> None:
    (found,) = wrong(changed(old, new))

    assert found.startswith(expected)


def test_members_of_one_name_and_too_many_of_them_are_told() -> None:
    twice = wrong(changed("  host: {", "  expert-2: {}\n  host: {"))
    many = wrong(changed("count: 2", "count: 60"))

    assert twice == [
        "4: roles.expert: there are two members 'expert-2'",
        "8: roles.expert-2: there are two members 'expert-2'",
    ]
    assert many[0] == "3: roles: they come to 61 members, and 50 are the most"


def test_a_moderator_is_one_and_beside_the_members() -> None:
    found = wrong(changed("turns: alternate", "turns: moderator\n    moderator: expert"))

    assert found == [
        "20: stages[1].moderator: of 'expert' there are several, and one is to decide",
        "20: stages[1].moderator: 'expert' is one of the members, too",
    ]


def test_a_judge_that_hears_nothing_is_refused() -> None:
    text = changed("{ from: expert, to: host }", "{ from: '*', to: expert }")

    assert read_patterns(text, "p.yaml")[1] == []
    (found,) = wrong(text.replace("{{ results.choice }}", ""))
    assert found.startswith("26: stages[3]: 'host' hears nothing that it could judge: no route")


def test_a_vote_needs_something_to_choose_from() -> None:
    text = "name: a\nroles: {b: {}}\nstages: [{name: c, kind: vote}]"

    assert wrong(text) == [
        "3: stages[0]: there is nothing to choose from: it has neither options nor over"
    ]


def test_a_stage_needs_somebody() -> None:
    text = "name: a\nroles: {b: {}}\nstages: [{name: c, kind: vote, options: [d, e], tie: b}]"

    assert wrong(text) == ["3: stages[0]: there is nobody left to take part in it"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# nothing", "None: : it holds no pattern"),
        ("- 1", "1: : a pattern is a mapping of fields"),
        ("name: [a", "2: : it is no YAML: line 2"),
        ("[" * 5000, "1: : it is nested more than"),
        ("name: a\nroles: *x", "2: : it is no YAML"),
        ("name: a\nroles: {}\nstages: []", "2: roles: expected `object` of length >= 1"),
        ("name: a", "1: : it has no roles"),
        ("name: a\nroles: {b: {prompt: .inf}}\nstages: 1", "2: roles.b.prompt: inf is no number"),
        ("name: a\nroles: {b: !!set {c}}\nstages: 1", "2: roles.b: a set is no value of a pattern"),
        ("name: a\nroles: {1: {}}\nstages: 1", "2: roles: 1 is no key: write it in quotes"),
        ("!!python/object/apply:os.system [x]", "1: : it is no YAML"),
    ],
)
def test_a_hostile_document_is_refused(text: str, expected: str) -> None:
    assert wrong(text)[0].startswith(expected)


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    laughs = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    begun = time.process_time()

    assert "aliases come to more than" in wrong(laughs)[0]
    assert time.process_time() - begun < 5


def test_the_faults_of_one_document_are_bounded() -> None:
    stages = "\n".join(f"  - {{name: s{n}, kind: judge, members: [x{n}, y{n}]}}" for n in range(50))

    found = wrong(f"name: a\nroles: {{b: {{}}}}\nstages:\n{stages}\n")

    assert len(found) == 100


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from(Pattern.__struct_fields__), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(Stage.__struct_fields__), VALUES, max_size=2),
)
def test_whatever_a_field_holds_is_sound_or_told_of(
    fields: dict[str, Any], stage: dict[str, Any]
) -> None:
    given = {
        "name": "a",
        "roles": {"b": {}},
        "stages": [{"name": "c", "kind": "parallel", **stage}],
        **fields,
    }

    faults = faults_of(given)

    if not faults:
        assert msgspec.convert(given, Pattern)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_whatever_a_text_holds_it_is_read_or_refused(text: str) -> None:
    found, problems = read_patterns(text, "p.yaml")

    assert problems or found
