"""Documents of definitions: what is read of them, and what is said of those that are not sound."""

import time
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_agents.api import Definition, Limits, Memory, Probe, Restart
from ksi_agents.documents import Parsed, parsed_of, read_document
from ksi_agents.events import Document, Problem
from ksi_agents.fields import faults_of
from ksi_agents.inheritance import extended, full
from ksi_agents.schema import json_schema
from ksi_agents.standing import Standing
from ksi_daemon.protocol import Conflict, InvalidData

HELPER = """\
---
name: helper
description: Helps.
model: [test:one, test:two]
tools: ["memory_*"]
limits: {requests: 3, cost_usd: 0.5}
---

You help.

--- as you can ---
"""


def read(text: str, path: str = "a.md") -> tuple[list[Parsed], list[Problem]]:
    return read_document(Document(text=text, path=path))


def one(text: str, path: str = "a.yaml") -> Definition:
    found, problems = read(text, path)
    assert problems == []
    (parsed,) = found
    return msgspec.convert(parsed.given, Definition)


def wrong(text: str, path: str = "a.yaml") -> str:
    """Return the one problem of a document, as line, field and message."""
    found, problems = read(text, path)
    assert found == []
    (problem,) = problems
    return f"{problem.line}: {problem.field}: {problem.message}"


# -- what is read ---------------------------------------------------------------------------------


def test_the_body_of_markdown_is_the_prompt() -> None:
    found = one(HELPER, "helper.md")

    assert found.name == "helper"
    assert found.models == ("test:one", "test:two")
    assert found.limits == Limits(requests=3, cost_usd=0.5)
    assert found.prompt == "You help.\n\n--- as you can ---"


def test_line_breaks_of_windows_and_a_byte_order_mark_are_nothing() -> None:
    found = one("\ufeff" + HELPER.replace("\n", "\r\n"), "helper.md")

    assert found.prompt == "You help.\n\n--- as you can ---"


def test_a_stream_of_yaml_has_several_and_each_has_its_own_text() -> None:
    found, problems = read("---\nname: a\n---\n# the second\nname: b\n---\n", "all.yaml")

    assert problems == []
    assert [(each.name, each.text) for each in found] == [
        ("a", "name: a\n"),
        ("b", "# the second\nname: b\n"),
    ]


def test_json_is_read() -> None:
    assert one('{"name": "a", "memory": {"write": false}}', "a.json").memory == Memory(write=False)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("name: a", "yaml"), ('{"name": "a"}', "json"), ("---\nname: a\n---\nYou.", "markdown")],
)
def test_what_a_text_without_a_suffix_is_shows_in_its_beginning(text: str, kind: str) -> None:
    found, _ = read(text, "definition")

    assert found[0].format == kind


def test_one_made_in_python_is_held_to_the_same_and_has_a_text() -> None:
    made = Definition(name="a", prompt="Two\nlines", probes=(Probe(),), restart=Restart())

    parsed, problems = parsed_of(made, "plugin weather")

    assert problems == []
    assert one(parsed.text) == made
    _, problems = parsed_of(Definition(name="A b"), "plugin weather")
    assert [(each.path, each.field) for each in problems] == [("plugin weather", "name")]


# -- what is wrong --------------------------------------------------------------------------------


def test_every_unknown_field_is_named_with_its_line_and_the_nearest_that_there_is() -> None:
    found, problems = read(HELPER.replace("tools:", "tolos:").replace("requests", "request"))

    assert found == []
    assert [(each.line, each.field) for each in problems] == [(5, "tolos"), (6, "limits.request")]
    assert "did you mean tools?" in problems[0].message
    assert "did you mean requests" in problems[1].message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("description: x", "1: : it has no name"),
        ("name: A b", "1: name: a name is made of small letters"),
        ("name: |\n  a\n", "1: name: a name is made of small letters"),
        ("name: a\nname: b", "2: name: it stands twice"),
        ("- 1", "1: : a definition is a mapping of fields"),
        ("name: a\nlimits:\n  requests: many", "3: limits.requests: expected `int | null`"),
        ("name: a\nlimits: {cost_usd: -1}", "2: limits.cost_usd: expected"),
        ("name: a\nlabels: {x: 1}", "2: labels: expected `str`"),
        ("name: a\nlabels: {1: x}", "2: labels: 1 is no key"),
        ("name: a\nrestart: {policy: sometimes}", "2: restart.policy: invalid enum value"),
        ("name: a\nrestart: {delay_s: 90}", "2: restart: max_delay_s is shorter than delay_s"),
        ("name: a\nextends: a", "2: extends: it can't extend itself"),
        ("name: a\ntools:\n- x\n- y z", "4: tools[1]: expected"),
        ("name: a\noutput: {type: objekt}", "2: output: it is no sound JSON Schema"),
        ("name: a\nsettings: {temperature: .inf}", "2: settings.temperature: inf is no number"),
        ("name: a\nprompt: 2026-01-01\nlimits: !!set {}", "3: limits: a set is no value"),
        ("name: a\nprobes: [{kind: custom, prompt: Hm?}]", "2: probes[0]: a custom probe needs"),
        ("name: a\nprobes:\n- prompt: Hm?", "3: probes[0].prompt: a probe of kind echo has no"),
        ("name: a\nschedule: [{prompt: Go}]", "2: schedule[0]: it has either a cron or an event"),
        (
            "name: a\nschedule:\n- prompt: Go\n  cron: 99 * * * *",
            "4: schedule[0].cron: '99 * * * *' is no time",
        ),
        (
            "name: a\nschedule:\n- prompt: Go\n  cron: '@daily'\n  timezone: Mars/X",
            "5: schedule[0].timezone: there is no time zone",
        ),
        ("name: [a", "2: : it is no YAML: line 2"),
        ("[" * 5000, "1: : it is nested more than"),
        ("x: &x [1,1]\ny: &y [*x,*x]\nname: *z", "3: : it is no YAML"),
        ("# nothing", "None: : it holds no definition"),
    ],
)
def test_what_is_wrong_in_yaml_is_told_with_line_and_field(text: str, told: str) -> None:
    assert wrong(text).startswith(told)


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    laughs = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    begun = time.monotonic()

    assert "aliases come to more than" in wrong(f"name: a\ninput:\n{laughs}")
    assert time.monotonic() - begun < 5


def test_what_aliases_come_to_is_held_to_the_size_of_a_definition() -> None:
    grown = "x: &x " + "y" * 1000 + "\nz: [" + ",".join(["*x"] * 2000) + "]"

    text = "name: a\ninput:\n" + "".join(f"  {line}\n" for line in grown.splitlines())
    assert "comes to more than 1,000,000 bytes" in wrong(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# Hello", "1: : it begins with front matter"),
        ("---\nname: a", "1: : it begins with front matter"),
        ("---\n---\nYou.", "2: : its front matter is a mapping"),
        ("---\nname: a\nprompt: x\n---\nYou.", "3: : its prompt stands in the front matter and"),
        ("---\nname: a\n...\nname: b\n---\nYou.", "4: : it is no YAML"),
        ("---\nname: a\nmemory: no\n---\nYou.", "3: memory: expected `object`"),
    ],
)
def test_what_is_wrong_in_front_matter_is_told(text: str, told: str) -> None:
    assert wrong(text, "a.md").startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"name": "a",\n "labels": {"x": 5}}', "2: labels: expected `str`"),
        ('{"name": "a",\n "name": "b"}', "2: name: it stands twice"),
        ('{"name": "a",\n "labels": }', "2: : it is no JSON"),
        ('{"name": "a"', "1: : it is no JSON"),
        ("[" * 100_000, "1: : it is "),
        ('["a"]', "1: : a definition is a mapping"),
    ],
)
def test_what_is_wrong_in_json_is_told(text: str, told: str) -> None:
    found = wrong(text, "a.json")

    assert found.startswith((told, "None: : it is nested"))


@given(st.text(max_size=200), st.sampled_from(["a.md", "a.yaml", "a.json", "a"]))
def test_whatever_a_text_holds_it_is_read_or_refused(text: str, path: str) -> None:
    found, problems = read(text or " ", path)

    assert bool(found) != bool(problems) or len(found) > 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(Definition.__struct_fields__), VALUES))
def test_whatever_a_field_holds_is_sound_or_told_of(fields: dict[str, Any]) -> None:
    faults = faults_of({"name": "a", **fields})

    if not faults:
        assert msgspec.convert({"name": "a", **fields}, Definition)


def test_what_is_wrong_with_a_prompt_is_told_at_the_beginning_of_the_body() -> None:
    text = HELPER.replace("You help.", "You help." * 60_000)

    assert wrong(text, "a.md") == "8: prompt: expected `str` of length <= 500000"


# -- what extends another -------------------------------------------------------------------------


def test_own_fields_stand_and_the_others_fill_in() -> None:
    base = {
        "name": "base",
        "model": "test:one",
        "prompt": "You are kind.",
        "tools": ["a"],
        "deny": ["x", "y"],
        "limits": {"requests": 3, "tokens": 100},
        "labels": {"team": "red"},
        "output": {"type": "object"},
    }
    own = {
        "name": "own",
        "extends": "base",
        "prompt": "{{ base }}\nAnd short.",
        "tools": ["b"],
        "deny": ["y", "z"],
        "limits": {"tokens": 50},
        "output": None,
    }

    found = msgspec.convert(extended(own, base), Definition)

    assert found == Definition(
        name="own",
        extends="base",
        model="test:one",
        prompt="You are kind.\nAnd short.",
        tools=("b",),
        deny=("x", "y", "z"),
        limits=Limits(requests=3, tokens=50),
        labels={"team": "red"},
    )


def test_a_prompt_takes_nothing_of_the_other_for_a_pattern() -> None:
    base = {"name": "base", "prompt": r"\1 \g<0> {{ base }}"}

    found = extended({"name": "own", "prompt": "<{{base}}>"}, base)

    assert found["prompt"] == r"<\1 \g<0> {{ base }}>"


def test_all_of_a_definition_is_shown_with_its_defaults() -> None:
    shown = full(Definition(name="a", model="test:one"))

    assert shown["model"] == ["test:one"]
    assert shown["restart"]["policy"] == "on-failure"
    assert set(shown) == set(Definition.__struct_fields__)
    assert msgspec.json.encode(shown)


# -- those that stand always ----------------------------------------------------------------------


def test_the_built_in_ones_are_sound_and_say_what_they_are_good_for() -> None:
    standing = Standing()

    assert {"general", "researcher", "critic", "define", "blend", "summarizer"} <= set(standing)
    for each in standing.all():
        assert each.origin == "built-in"
        assert each.definition.description.endswith(".")
        assert len(each.definition.prompt) > 200


def test_the_published_schema_holds_the_built_in_ones_and_no_others() -> None:
    schema = json_schema()
    validator = jsonschema_rs.validator_for(schema)

    for each in Standing().all():
        validator.validate(each.parsed.given)
    assert not validator.is_valid({"name": "a", "tolos": []})
    assert not validator.is_valid({"name": "a", "limits": {"request": 1}})
    told = schema["properties"]["limits"]["description"]
    assert told == "What it may take at most."
    for part in (schema, *schema["$defs"].values()):
        undescribed = [n for n, p in part["properties"].items() if not p.get("description")]
        assert undescribed in ([], list(schema["$defs"]["ModelSettings"]["properties"]))


def test_a_plugin_s_definitions_stand_as_long_as_it_does() -> None:
    standing = Standing()

    with standing.offered(Definition(name="base", prompt="A."), provider="weather"):
        with standing.offered(
            Definition(name="own", extends="base", prompt="{{ base }} B."), provider="weather"
        ):
            found = standing.find("own", 1)
            assert found is not None
            assert (found.origin, found.definition.prompt) == ("plugin", "A. B.")
            assert standing.find("own", 2) is None
        assert standing.find("own") is None
    assert standing.find("base") is None


def test_a_plugin_s_definition_that_is_not_sound_or_has_a_taken_name_is_refused() -> None:
    standing = Standing()
    before = set(standing)

    for why, definitions in (
        ("another agent 'general'", (Definition(name="a"), Definition(name="general"))),
        ("plugin x: name", (Definition(name="A b"),)),
        ("extends nobody", (Definition(name="a", extends="nobody"),)),
    ):
        with (
            pytest.raises((Conflict, InvalidData), match=why),
            standing.offered(*definitions, provider="x"),
        ):
            pass

    assert set(standing) == before
