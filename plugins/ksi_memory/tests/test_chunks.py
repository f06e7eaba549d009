"""Chunks: the text comes back, no word is cut, structure comes first."""

import re
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ksi_memory.loading.chunks import Form, chunks_of, headings_of

SIZES = st.integers(100, 400)
OVERLAPS = st.integers(0, 200)
FORMS = st.sampled_from(["markdown", "text", "code"])
# What structure is made of, and what is hard to cut.
PIECES = st.sampled_from(
    [
        "# Rent\n", "## Rent of May ##\n", "Title\n=====\n", "Sub\n---\n", "\n", "\n\n", "\r\n",
        "```python\n", "```\n", "~~~\n", "- an entry\n", "1. another\n", "    def f():\n", "\t",
        "The quick brown fox jumps. ", "Isn't it?! ", "x" * 130, "a_b__c ", "é́́", "👩‍👩‍👧 ",
        "🇩🇪🇫🇷", "שלום עולם ", "مرحبا ", "今日は良い天気です。", "हिन्दी ", "`",
        " ", "#", "=", "| a | b |\n",
    ]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=2000), st.lists(PIECES, max_size=80).map("".join))


@given(TEXTS, FORMS, SIZES, OVERLAPS)
@example("# a\n# b\n", "markdown", 100, 0)
def test_chunks_without_their_overlaps_give_the_text_back(
    text: str, form: Form, size: int, overlap: int
) -> None:
    chunks = chunks_of(text, form=form, size=size, overlap=overlap)

    assert "".join(each.text[each.overlap :] for each in chunks) == text
    for each in chunks:
        assert each.text == text[each.start : each.end]
        assert 0 < len(each.text) <= size
        assert 0 <= each.overlap <= min(overlap, size // 2)
        assert len(each.text) > each.overlap


@given(
    st.lists(st.from_regex(r"\A[\w'-]{1,40}\Z"), max_size=200),
    st.sampled_from([" ", "/", "—", ")("]),
    FORMS,
    SIZES,
    OVERLAPS,
)
def test_no_word_is_cut(
    words: list[str], between: str, form: Form, size: int, overlap: int
) -> None:
    text = between.join(words)

    chunks = chunks_of(text, form=form, size=size, overlap=overlap)

    for each in chunks:
        for place in (each.start, each.end):
            around = text[max(place - 1, 0) : place + 1]
            assert place in (0, len(text)) or not re.fullmatch(r"\w\w", around), (text, place)


@given(TEXTS, SIZES, OVERLAPS)
def test_no_sign_is_parted_from_what_belongs_to_it(text: str, size: int, overlap: int) -> None:
    for each in chunks_of(text, size=size, overlap=overlap):
        for place in (each.start, each.end):
            if 0 < place < len(text) and len(text) > size:
                # Only what is longer than a chunk without a place to cut may be cut anywhere.
                is_mark = unicodedata.category(text[place]).startswith("M")
                run = text[max(place - size // 2, 0) : place]
                assert not is_mark or all(
                    unicodedata.category(c).startswith("M") for c in run[1:]
                ), place


@given(st.lists(st.text("abc .,\n", min_size=1), min_size=1, max_size=30), SIZES)
def test_every_section_begins_a_chunk_and_is_not_repeated(bodies: list[str], size: int) -> None:
    parts = [f"## Part {number}\nx{body}\n" for number, body in enumerate(bodies)]
    text = "# All\n" + "".join(parts)

    chunks = chunks_of(text, form="markdown", size=size, overlap=40)

    for number in range(len(bodies)):
        of_part = [each for each in chunks if each.headings == ("All", f"Part {number}")]
        assert of_part
        assert of_part[0].overlap == 0
        assert "".join(each.text[each.overlap :] for each in of_part).endswith(parts[number])


def test_a_short_text_is_one_chunk_and_an_empty_one_none() -> None:
    assert [each.text for each in chunks_of("Rent is due.")] == ["Rent is due."]
    assert chunks_of("") == ()


def test_a_chunk_ends_with_a_paragraph_where_one_fits() -> None:
    paragraphs = [f"{name} " + "word " * 60 for name in ("one", "two", "three", "four")]
    text = "\n\n".join(paragraphs)

    chunks = chunks_of(text, form="text", size=700, overlap=0)

    assert [each.text.split()[0] for each in chunks] == ["one", "three"]


def test_a_block_of_code_that_fits_is_kept_whole() -> None:
    code = "```python\n" + "x = 1\n" * 100 + "```\n"
    text = "Look at this. " * 20 + "\n\n" + code + "\nThen we go on. " * 20

    chunks = chunks_of(text, form="markdown", size=700, overlap=100)

    assert [each for each in chunks if code in each.text]


def test_code_that_is_too_long_is_cut_between_lines() -> None:
    text = "".join(f"value_{number} = compute({number}, {number})\n" for number in range(200))

    for form in ("code", "markdown"):
        shown = text if form == "code" else f"```\n{text}```\n"
        chunks = chunks_of(shown, form=form, size=500, overlap=100)
        assert len(chunks) > 10
        assert all(each.text.endswith("\n") for each in chunks)
        assert all(each.text.startswith(("value_", "```")) for each in chunks)


def test_what_is_repeated_begins_with_a_sentence() -> None:
    text = "".join(f"Sentence number {number} speaks of rent. " for number in range(200))

    chunks = chunks_of(text)

    assert len(chunks) > 3
    assert all(each.text.startswith("Sentence") for each in chunks)
    assert all(100 <= each.overlap <= 200 for each in chunks[1:])
    assert all(1200 < len(each.text) <= 1500 for each in chunks[:-1])


def test_a_word_longer_than_a_chunk_is_cut_and_nothing_lost() -> None:
    text = "a" * 5000

    chunks = chunks_of(text, size=1000, overlap=0)

    assert [len(each.text) for each in chunks] == [1000] * 5


def test_scripts_without_blanks_are_cut_between_characters() -> None:
    text = "漢字仮名交" * 500

    chunks = chunks_of(text, size=500, overlap=50)

    assert all(len(each.text) <= 500 for each in chunks)
    assert "".join(each.text[each.overlap :] for each in chunks) == text


def test_a_chunk_tells_under_which_headings_it_stands() -> None:
    text = "intro\n\n# A\n\n## B\ntext\n\n### C\nmore\n\n## D\nend\n\nE\n=\nlast\n"

    chunks = chunks_of(text, form="markdown")

    assert [(each.headings, each.text.strip().splitlines()[-1]) for each in chunks] == [
        ((), "intro"),
        (("A", "B"), "text"),
        (("A", "B", "C"), "more"),
        (("A", "D"), "end"),
        (("E",), "last"),
    ]


def test_what_is_fenced_has_no_headings() -> None:
    text = "# Real\n\n```sh\n# no heading\n```\n\n~~~~\n# nor this\n```\n~~~~\n\n## Real, too\nx\n"

    assert [each.title for each in headings_of(text)] == ["Real", "Real, too"]


@pytest.mark.parametrize(
    "text",
    [
        "# h\n" * 100_000,
        "# h\ntext\n" * 100_000,
        "x" * 300_000,
        " " * 300_000,
        "\n" * 300_000,
        "." * 300_000,
        "```\n" * 200_000,
        "- a\n" * 200_000,
        'a." ' * 250_000,
        "́" * 150_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()

    chunks = chunks_of(text, form="markdown")

    assert "".join(each.text[each.overlap :] for each in chunks) == text
    assert time.process_time() - began < 10  # a quadratic one takes many minutes
