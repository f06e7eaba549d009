"""The fields of a document are held to a Struct, and each that does not fit is named."""

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from ksi_daemon.fields import Fields, why_no_schema, written

SHORT = r"\A[a-z]{1,3}\Z"
Name = Annotated[str, Meta(pattern=SHORT)]


class Leaf(Struct, frozen=True, kw_only=True, rename={"sender": "from"}):
    sender: Name
    kind: Literal["red", "blue"] = "red"
    count: Annotated[int, Meta(ge=1)] = 1


class Tree(Struct, frozen=True, kw_only=True):
    name: Name
    leaves: Annotated[tuple[Leaf, ...], Meta(max_length=3)] = ()
    named: dict[Name, Leaf] = {}
    one: Leaf | None = None
    texts: tuple[str, ...] = ()


FIELDS = Fields(Tree, "tree", {SHORT: "a name has three small letters at most"})


def faults(**given: Any) -> list[str]:
    return [
        f"{written(each.path)}: {each.message}" for each in FIELDS.faults({"name": "a", **given})
    ]


def test_what_fits_has_no_faults() -> None:
    leaf = {"from": "a", "kind": "blue", "count": 2}

    assert faults(leaves=[leaf], named={"b": leaf}, one=leaf, texts=["x"]) == []


def test_each_unknown_field_is_named_wherever_it_stands() -> None:
    leaf = {"from": "a", "kint": "red"}

    found = faults(nmae="x", leaves=[leaf], named={"b": leaf}, one=leaf)

    assert [each.partition(":")[0] for each in found] == [
        "nmae",
        "leaves[0].kint",
        "named.b.kint",
        "one.kint",
    ]
    assert found[0] == "nmae: there is no field 'nmae'; did you mean name or named?"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "Long"}, ["name: a name has three small letters at most"]),
        ({"named": {"Long": {"from": "a"}}}, ["named: a name has three small letters at most"]),
        ({"one": {"kind": "red"}}, ["one: object missing required field `from`"]),
        ({"leaves": [{}]}, ["leaves[0]: it has no from"]),
        (
            {"leaves": [{"from": "a", "kind": "green"}]},
            ["leaves[0].kind: invalid enum value 'green': write blue or red"],
        ),
        (
            {"leaves": [{"from": "a", "count": 0}, {"from": "a"}, {"from": 1}]},
            ["leaves[0].count: expected `int` >= 1", "leaves[2].from: expected `str`, got `int`"],
        ),
        (
            {"named": {"a": {"from": "a", "count": "x"}}},
            ["named.a.count: expected `int`, got `str`"],
        ),
        ({"leaves": [{"from": "a"}] * 4}, ["leaves: expected `array` of length <= 3"]),
        ({"leaves": ["a"]}, ["leaves[0]: expected `object`, got `str`"]),
        ({"texts": ["x", 1]}, ["texts[1]: expected `str`, got `int`"]),
        ({"texts": ["\ud800"]}, ["texts[0]: it has characters that are no text"]),
        ({"texts": [2**70]}, ["texts[0]: the number is too large"]),
        ({"texts": {1: "x"}}, ["texts: 1 is no key: write it in quotes"]),
        ({"one": {1, 2}}, ["one: a set is no value of a tree"]),
        ({"texts": ["x" * 1_000_001]}, [": it comes to more than 1,000,000 bytes"]),
    ],
)
def test_what_does_not_fit_is_told_at_its_field(given: dict[str, Any], told: list[str]) -> None:
    assert faults(**given) == told


def test_what_has_no_faults_can_be_converted() -> None:
    assert FIELDS.faults({"name": "abc", "leaves": [{"from": "a"}]}) == []
    assert msgspec.convert({"name": "abc", "leaves": [{"from": "a"}]}, Tree).leaves[0].sender == "a"


def test_a_schema_that_is_none_is_told_without_fetching_anything() -> None:
    assert why_no_schema({"type": "object"}) == ""
    assert "no sound JSON Schema" in why_no_schema({"type": "objekt"})
    assert "no sound JSON Schema" in why_no_schema({"$ref": "http://localhost:9/schema.json"})
    assert "larger than" in why_no_schema({"description": "x" * 300_000})
