"""YAML of strangers: what it can do to who reads it, and where in it each value stands."""

import time

import pytest

from ksi_daemon.yaml_text import MAX_DEPTH, BadYaml, read_yaml, read_yaml_documents

LAUGHS = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)
CHAIN = "- &a0 [1]\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 3000))


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        ("[" * 10_000, "nested more than"),
        (LAUGHS, "aliases come to more than"),
        (MERGES, "aliases come to more than"),
        (CHAIN, "nested more than"),
        ("&a [*a]", "names what it stands in"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: " + "9" * 5000, "can be read"),
        ("? [a]\n: b", "unhashable|can be read"),
        ("a: *b", "undefined alias"),
        ("a: \0", "no YAML"),
    ],
)
def test_hostile_yaml_is_refused_at_once(hostile: str, why: str) -> None:
    begun = time.monotonic()

    for read in (read_yaml, read_yaml_documents):
        with pytest.raises(BadYaml, match=why):
            read(hostile)

    assert time.monotonic() - begun < 5


def test_as_deep_as_allowed_is_read() -> None:
    assert read_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)


def test_a_fault_names_its_line() -> None:
    with pytest.raises(BadYaml) as caught:
        read_yaml("a: 1\nb: [1\nc: 2\n")

    assert caught.value.line == 3
    assert "line 3" in str(caught.value)


def test_dates_stay_as_they_are_written() -> None:
    assert read_yaml("2026-02-31") == ["2026-02-31"]


def test_each_document_has_its_own_text_and_the_lines_of_the_stream() -> None:
    stream = "# first\na: 1\n---\n\nb:\n  - x\n  - c: 2\n# of b\n---\nd: 4"

    first, second, third = read_yaml_documents(stream)

    assert first.text == "# first\na: 1\n"
    assert second.text == "---\n\nb:\n  - x\n  - c: 2\n# of b\n"
    assert third.text == "---\nd: 4"
    assert first.text + second.text + third.text == stream
    assert second.value == {"b": ["x", {"c": 2}]}
    assert second.lines == {(): 5, ("b",): 5, ("b", 0): 6, ("b", 1): 7, ("b", 1, "c"): 7}
    assert third.lines["d",] == 10


def test_a_key_that_stands_twice_is_told_of() -> None:
    (found,) = read_yaml_documents("a: 1\nb:\n  c: 1\n  c: 2\n")

    assert found.repeated == (("b", "c"),)
    assert found.lines["b", "c"] == 4


def test_what_is_merged_is_no_repetition() -> None:
    (found,) = read_yaml_documents("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  a: 3\n")

    assert found.value["y"] == {"a": 3, "b": 2}
    assert found.repeated == ()


def test_nothing_at_all_is_no_document() -> None:
    assert read_yaml("") == []
    assert read_yaml_documents("# nothing\n") == []
