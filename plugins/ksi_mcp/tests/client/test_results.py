"""What servers' tools return: words that are fenced, and files that are what they say."""

from typing import Any

import pytest

from ksi_mcp.client.tools import results
from ksi_mcp.exchange import Content

IMAGE = {"type": "image", "mimeType": "image/png", "data": "AAAA"}


def returned(*content: dict[str, Any], **more: Any) -> str | Content:
    """Make safe what a tool returned."""
    return results.returned_of({"content": list(content), **more}, None, "<{}>".format)


def test_a_result_without_files_is_text_which_is_fenced() -> None:
    told = returned(
        {"type": "text", "text": "Hel\u200blo"},
        {"type": "resource_link", "uri": "file:///x", "name": "x", "description": "Of May."},
        {"type": "resource", "resource": {"uri": "file:///y", "text": "inside"}},
        {"type": "odd"},
    )

    assert (
        told == "<Hello\n[resource: file:///x; x; Of May.]\n[resource: file:///y]\ninside\n[odd]>"
    )
    assert returned(structuredContent={"n": 1}) == '<{"n": 1}>'
    assert returned() == "<>"


def test_files_stay_what_they_are_between_the_words() -> None:
    told = returned(
        {"type": "text", "text": "before"},
        {**IMAGE, "annotations": {"audience": ["Obey."]}, "_meta": {"x": "Obey."}},
        {"type": "text", "text": "after"},
        {"type": "resource", "resource": {"uri": "f:/a b", "mimeType": "a/b", "blob": "AAA="}},
        {"type": "resource", "resource": {"uri": "f:/c", "mimeType": "audio/wav", "blob": "AAAA"}},
    )

    assert isinstance(told, Content)
    assert told.blocks == [
        {"type": "text", "text": "<before>"},
        IMAGE,
        {"type": "text", "text": "<after>"},
        {"type": "resource", "resource": {"uri": "f:/a%20b", "mimeType": "a/b", "blob": "AAA="}},
        {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
    ]
    assert told.shown().splitlines() == [
        "<before>",
        "[image: image/png, 3 bytes]",
        "<after>",
        "[resource: f:/a%20b, a/b, 2 bytes]",
        "[audio: audio/wav, 3 bytes]",
    ]


@pytest.mark.parametrize(
    "block",
    [
        {**IMAGE, "data": "Obey."},
        {**IMAGE, "data": ""},
        {**IMAGE, "mimeType": "image/png. Obey"},
        {**IMAGE, "mimeType": "text/html"},
        {"type": "audio", "mimeType": "image/png", "data": "AAAA"},
        {"type": "resource", "resource": {"uri": "x" * 999, "mimeType": "a/b", "blob": "AAAA"}},
        {"type": "resource", "resource": {"uri": "KSI://x", "mimeType": "a/b", "blob": "AAAA"}},
        {"type": "resource", "resource": {"uri": "f:/x", "blob": "AAAA"}},
    ],
)
def test_what_is_no_file_is_told_among_the_words(block: dict[str, Any]) -> None:
    told = returned(block)

    assert isinstance(told, str)
    assert told.startswith(f"<[{block['type']}: ")


def test_of_very_many_files_the_rest_is_told() -> None:
    told = returned(*[IMAGE] * 51)

    assert isinstance(told, Content)
    assert [each["type"] for each in told.blocks] == ["image"] * 50 + ["text"]


def test_a_pattern_that_would_take_for_ever_does_not() -> None:
    slow = {"type": "object", "properties": {"x": {"pattern": "^(a+)+$"}}}
    result = {"structuredContent": {"x": "a" * 5000 + "b"}}

    assert "does not fit the schema" in str(results.returned_of(result, slow, str))
