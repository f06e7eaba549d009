"""Readers: what is made of files, and that hostile ones do no harm."""

import contextlib
import io
import os
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_memory.loading.directories import Directory, Found, Skipped
from ksi_memory.reading import documents, html, mail, markdown, plain, rows, text, yaml_text
from ksi_memory.reading.document import Document, Rows, Unreadable
from ksi_memory.reading.documents import Extractor
from ksi_memory.reading.reader import Given, Reader

NAMESPACE = "http://schemas.openxmlformats.org"
TYPES = (
    f'<?xml version="1.0"?><Types xmlns="{NAMESPACE}/package/2006/content-types">'
    '<Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-'
    'officedocument.wordprocessingml.document.main+xml"/></Types>'
)
RELATIONS = (
    f'<?xml version="1.0"?><Relationships xmlns="{NAMESPACE}/package/2006/relationships">'
    f'<Relationship Id="rId1" Type="{NAMESPACE}/officeDocument/2006/relationships/'
    'officeDocument" Target="word/document.xml"/></Relationships>'
)
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
    b"/Resources<</Font<</F1 5 0 R>>>>>>endobj\n"
    b"4 0 obj<</Length 44>>stream\nBT /F1 24 Tf 72 700 Td (The rent is 900) Tj ET\n"
    b"endstream endobj\n5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\n"
    b"trailer<</Root 1 0 R/Size 6>>\n%%EOF"
)
needs_kreuzberg = pytest.mark.skipif(not documents.is_installed(), reason="ksi[documents]")


def docx(paragraph: bytes, times: int = 1) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("[Content_Types].xml", TYPES)
        file.writestr("_rels/.rels", RELATIONS)
        with file.open("word/document.xml", "w", force_zip64=True) as document:
            document.write(
                b'<?xml version="1.0"?><w:document xmlns:w="'
                + f"{NAMESPACE}/wordprocessingml/2006/main".encode()
                + b'"><w:body>'
            )
            for _ in range(times):
                document.write(paragraph)
            document.write(b"<w:sectPr/></w:body></w:document>")
    return packed.getvalue()


def found(target: str) -> str | None:
    return target


def extractor(folder: Path, **more: Any) -> Extractor:
    limits: dict[str, Any] = {
        "timeout_s": 30.0,
        "memory_mb": 1024,
        "max_characters": 1_000_000,
        "max_unpacked_bytes": 100_000_000,
    }
    return Extractor(folder=folder / "reading", **{**limits, **more})


# -- documents ------------------------------------------------------------------------------------


@needs_kreuzberg
async def test_a_docx_and_a_pdf_are_read_with_their_structure(tmp_path: Path) -> None:
    paragraphs = (
        b'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Rent</w:t></w:r></w:p>'
        b"<w:p><w:r><w:t>It is due in May.</w:t></w:r></w:p>"
    )

    written = await extractor(tmp_path).read(docx(paragraphs), ".docx", found)
    printed = await extractor(tmp_path).read(PDF, ".pdf", found)

    assert (written.title, written.form) == ("Rent", "markdown")
    assert "It is due in May." in written.text
    assert printed.text.strip() == "The rent is 900"
    assert printed.attributes == {"pages": 1}
    assert (tmp_path / "reading").stat().st_mode & 0o777 == 0o700


@needs_kreuzberg
async def test_what_unpacks_to_too_much_is_refused_before_and_while_it_is_read(
    tmp_path: Path,
) -> None:
    bomb = docx(b"<w:p><w:r><w:t>" + b"A" * 1_000_000 + b"</w:t></w:r></w:p>", 300)
    lying = bomb.replace((300_000_000).to_bytes(4, "little"), b"\1\0\0\0")
    assert len(bomb) < 1_000_000

    with pytest.raises(Unreadable, match=r"unpacks to 3.*memory\.max_unpacked_bytes"):
        await extractor(tmp_path).read(bomb, ".docx", found)
    with pytest.raises(Unreadable, match="it is no DOCX"):
        await extractor(tmp_path, max_unpacked_bytes=10**12).read(bomb, ".docx", found)
    with pytest.raises(Unreadable):
        await extractor(tmp_path).read(lying[: len(lying) // 2], ".docx", found)


@needs_kreuzberg
async def test_what_is_no_pdf_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="it is no PDF: it does not begin as one"):
        await extractor(tmp_path).read(b"hello", ".pdf", found)
    with pytest.raises(Unreadable, match="it is no PDF that can be read"):
        await extractor(tmp_path).read(b"%PDF-1.4\nnothing more", ".pdf", found)


@needs_kreuzberg
async def test_a_text_that_is_too_long_is_told_of_by_the_bound(tmp_path: Path) -> None:
    long = docx(b"<w:p><w:r><w:t>word</w:t></w:r></w:p>", 1000)

    with pytest.raises(Unreadable, match=r"memory\.max_document_characters"):
        await extractor(tmp_path, max_characters=100).read(long, ".docx", found)


async def test_without_the_extra_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "is_installed", lambda: False)

    with pytest.raises(Unreadable, match=r"PDF files .* install ksi\[documents\]"):
        await extractor(tmp_path).read(PDF, ".pdf", found)


HOSTILE = {
    "hangs": "import time; time.sleep(600)",
    "spins": "while True: pass",
    "dies": "import os; os.abort()",
    "floods": "import sys\nwhile True: sys.stdout.buffer.write(b'x' * 100_000)",
    "eats": "held = []\nwhile True: held.append(bytearray(50_000_000))",
    "writes": "open('big', 'wb').write(b'x' * 10**9)",
    "is silent": "import os; os._exit(0)",
    "looks": "import os; raise KreuzbergError(str(os.environ.get('MY_API_KEY')))",
}


@pytest.mark.parametrize("how", HOSTILE)
async def test_a_reader_that_was_taken_over_harms_nothing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "secret")
    monkeypatch.setattr(documents, "is_installed", lambda: True)
    (tmp_path / "kreuzberg.py").write_text(
        "class KreuzbergError(Exception): pass\n"
        "class ExtractionConfig:\n    def __init__(self, **_): pass\n"
        "def extract_bytes_sync(*_):\n"
        + "".join(
            f"    {line}\n" for line in (HOSTILE[how] or "import os; os._exit(0)").split("\n")
        )
        + "    os._exit(1)\n" * (how == "looks")
    )
    monkeypatch.syspath_prepend(tmp_path)
    began = time.monotonic()

    with pytest.raises(Unreadable) as told:
        await extractor(tmp_path, timeout_s=3.0, max_characters=1000, memory_mb=512).read(
            PDF, ".pdf", found
        )

    assert time.monotonic() - began < 20
    assert "secret" not in str(told.value)
    if how in ("hangs", "spins"):
        assert "memory.reader_timeout_s" in str(told.value)
    if how == "eats":
        assert "memory.reader_memory_mb" in str(told.value)
    assert not _children()


def _children() -> list[int]:
    """Return the processes that this one has started and that still are."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(os.getpid()) and "extracting" in (stat.parent / "cmdline").read_text():
            children.append(int(stat.parent.name))
    return children


# -- text, Markdown, HTML, mail -------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_any_bytes_are_text_or_are_told_not_to_be(data: bytes) -> None:
    for read in (
        text.read_text,
        text.read_code,
        lambda given: markdown.read_markdown(given, found),
        lambda given: html.read_html(given, found),
        mail.read_mail,
    ):
        try:
            document = read(data)
        except Unreadable:
            continue
        document.text.encode()
        assert "\0" not in document.text


@given(st.text(max_size=300), st.sampled_from(["a.yaml", "a.json", "a.jsonl"]))
def test_any_text_holds_rows_or_is_told_not_to(given_text: str, name: str) -> None:
    try:
        data = given_text.encode()
        read = rows.read_rows(rows.values_of(data, name), "entities")
    except (Unreadable, UnicodeEncodeError):
        return
    for row in read.rows if read else ():
        assert (row.item is None) == bool(row.why)
        msgspec.json.encode(row)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfhello", "hello"),
        ("hällo".encode("utf-16"), "hällo"),
        ("hällo".encode("utf-32"), "hällo"),
    ],
)
def test_a_mark_at_the_beginning_tells_the_encoding(data: bytes, expected: str) -> None:
    assert text.decoded(data) == expected


def test_a_rule_at_the_beginning_is_no_front_matter() -> None:
    for source in ("---\n\nSome text\n\n---\nmore", "---\nno end\n# Head\n", "----\na: b\n---\n"):
        read = markdown.read_markdown_text(source, found)
        assert (read.text, read.offset) == (source, 0)


def test_front_matter_has_fields_of_all_kinds() -> None:
    source = (
        "---\r\ntitle: 42\r\nauthors: [Ada, '[[Bob]]']\r\nstart: 2024-01-01\r\n"
        "end: 2024-01-02T10:00+02:00\r\ncategory: diary\r\nempty:\r\nup: '[[x]]'\r\n---\r\ntext\r\n"
    )

    read = markdown.read_markdown_text(source, found)

    assert (read.title, read.category, read.persons) == ("42", "diary", ("Ada", "Bob"))
    assert read.ends_at == datetime(2024, 1, 2, 8, tzinfo=UTC)
    assert read.attributes == {"category": "diary", "empty": None, "up": "[[x]]"}
    assert source[read.offset :] == read.text == "text\r\n"
    assert ("up", "x") in {(each.relation, each.to) for each in read.edges}


def test_links_are_found_but_for_those_in_code() -> None:
    source = (
        "[[A|shown]] and ![[B#part]] [c](c%20d.md 'title') [e](<e f.md>) `[[no]]` [g][1] "
        "[site](https://x.org/a(b)) [here](#there) [mail](mailto:a@b.c)\n"
        "```\n[[no]]\n```\n~~~\n[no](no.md)\n~~~\n\n[1]: g.md\n"
    )

    read = markdown.read_markdown_text(source, found)

    assert [each.to for each in read.edges] == [
        "A", "B", "c d.md", "e f.md", "https://x.org/a(b)", "mailto:a@b.c", "g.md",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "source",
    ["[[" * 100_000, "](" * 100_000, "`" * 200_000, "```\n" * 50_000, "[a](" + "(" * 100_000,
     "---\n" * 50_000, "~~~ " * 50_000, "[x]: <" * 50_000, "---\n" + "# \n" * 50_000, "<" * 200_000,
     "<a href='" * 50_000, "<!--" * 50_000, "&" * 200_000, "<p>" * 100_000, "<a href=x>" * 30_000],
    ids=lambda source: repr(source[:6]),
)  # fmt: skip
def test_no_text_takes_long_to_read(source: str) -> None:
    began = time.process_time()

    for read in (markdown.read_markdown, html.read_html):
        with contextlib.suppress(Unreadable):
            read(source.encode(), found)

    assert time.process_time() - began < 10


def test_a_page_is_read_as_a_person_sees_it() -> None:
    page = (
        "<html><head><title>The &amp; rent</title><meta name=description content='What we pay'>"
        "<meta name=author content='Ada'><style>p {}</style></head><body><h1>Rent</h1>"
        "<script>alert('x')</script><p>It is <b>due</b> in\n May, "
        "see <a href='flat.md'>the flat</a>."
        "<ul><li>one<li>two</ul><pre>x = 1\n  y</pre></body></html>"
    )

    read = html.read_html(page.encode(), found)

    assert (read.title, read.summary, read.persons) == ("The & rent", "What we pay", ("Ada",))
    assert "# Rent\n\nIt is due in May, see [the flat](<flat.md>)." in read.text
    assert "- one\n- two" in read.text
    assert "```\nx = 1\n" in read.text
    assert "alert" not in read.text
    assert [each.to for each in read.edges] == ["flat.md"]


def test_a_mail_tells_who_wrote_to_whom_when_and_what() -> None:
    data = (
        b"From: Ada <ada@x.org>\r\nTo: =?utf-8?q?B=C3=B6b?= <bob@x.org>\r\nSubject: The rent\r\n"
        b"Date: Fri, 03 May 2024 10:00:00 +0200\r\nMessage-ID: <1@x>\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; "
        b"charset=utf-8\r\n\r\nIt is due.\r\n--b\r\nContent-Type: application/pdf\r\n"
        b"Content-Disposition: attachment; filename=rent.pdf\r\n\r\nxx\r\n--b--\r\n"
    )

    read = mail.read_mail(data)

    assert (read.title, read.persons, read.text.strip()) == (
        "The rent",
        ("Ada", "Böb"),
        "It is due.",
    )
    assert read.starts_at == datetime(2024, 5, 3, 8, tzinfo=UTC)
    assert read.attributes["attachments"] == ["rent.pdf"]
    with pytest.raises(Unreadable, match="no time that exists"):
        mail.read_mail(data.replace(b"03 May", b"33 May"))
    with pytest.raises(Unreadable, match="no e-mail"):
        mail.read_mail(b"just text\n")


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hostile",
    ["[" * 100_000, "- " * 50_000, "{a: " * 50_000, "a: &a [*a]", "x: !!python/name:os.system",
     "1" * 5000, "? [a]\n: b", "a: !!binary '!'", "!!timestamp 2024-99-99", "a: \"\\ud800\"",
     "&a [" + "*a, " * 1000 + "]", "%YAML 9.9\n---\n", "a: 0x" + "f" * 100_000],
    ids=lambda source: source[:8],
)  # fmt: skip
def test_hostile_yaml_is_told_of(hostile: str) -> None:
    began = time.process_time()

    with contextlib.suppress(Unreadable):  # anything else would be told as a broken handler
        plain.plain(yaml_text.read_yaml(hostile))

    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "given_text",
    ["2024-02-30", "2023-02-29", "2024-13-01", "2024-01-01T25:00", "0000-01-01",
     "2024-01-01T10:00+99:00", "2024-00-10T10:00:61Z"],
)  # fmt: skip
def test_a_date_that_does_not_exist_is_told_of(given_text: str) -> None:
    with pytest.raises(Unreadable, match="no time that exists"):
        plain.time_of(given_text, "date")


def test_dates_are_read_in_their_zone() -> None:
    assert plain.time_of("2024-05-03", "x") == datetime(2024, 5, 3, tzinfo=UTC)
    assert plain.time_of("2024-5-3 9:30", "x") == datetime(2024, 5, 3, 9, 30, tzinfo=UTC)
    assert plain.time_of("2024-05-03T09:30:15.5-0330", "x") == datetime(
        2024, 5, 3, 13, 0, 15, 500_000, tzinfo=UTC
    )
    assert plain.time_of("last spring", "x") is None


async def test_a_file_of_data_that_holds_no_rows_is_read_as_text(tmp_path: Path) -> None:
    reader = Reader(extractor(tmp_path), 1_000_000)

    async def read(name: str, data: bytes, table: str = "") -> Any:
        return await reader.read(Given(name=name, data=data, table=table, find=found))

    for name, data in (
        ("package.json", b'{"name": "x", "version": 1}'),
        ("broken.json", b"{"),
        ("config.yaml", b"a: 1\n"),
        ("list.json", b"[1, 2]"),
        ("list.json", b'[{"key": "a"}]'),
    ):
        document, table = await read(name, data)
        assert isinstance(document, Document)
        assert table == "resources"
    asked, _ = await read("list.json", b'[{"key": "a"}]', "resources")
    assert isinstance(asked, Rows)
    for data in (b"a: 1\n", b"{", b"- 1\n- 2\n"):
        wrong = None
        try:
            wrong, _ = await read("x.yaml", data, "entities")
        except Unreadable:
            continue
        assert all(row.why for row in wrong.rows)


# -- directories ----------------------------------------------------------------------------------


def test_a_directory_is_walked_in_order_and_tells_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.md", "a/b/c.md", "c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a" / "link").symlink_to(tmp_path)

    walked = list(Directory(tmp_path).walk())

    assert [each.relative for each in walked if isinstance(each, Found)] == [
        "a/b/c.md", "a/z.md", "b.md", "c.md",
    ]  # fmt: skip
    assert [each.relative for each in walked if isinstance(each, Skipped)] == ["a/link"]


def test_ignore_files_above_hold_up_to_the_top_of_the_repository(tmp_path: Path) -> None:
    top = tmp_path / "repo"
    (top / "docs" / "out").mkdir(parents=True)
    (top / ".git").mkdir()
    (top / ".gitignore").write_text("/docs/out/\n*.tmp\n")
    (tmp_path / ".gitignore").write_text("*\n")
    for name in ("a.md", "a.tmp", "out/x.md"):
        (top / "docs" / name).write_text("x")

    walked = list(Directory(top / "docs").walk())

    assert walked == [Found("a.md", 1)]


def test_patterns_that_would_take_for_ever_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*a" * 30 + "b\n" + "**/a/" * 30 + "\n*.log\n")
    (tmp_path / ("a" * 250)).write_text("x")
    (tmp_path / "x.log").write_text("x")
    began = time.process_time()

    walked = list(Directory(tmp_path).walk())

    assert time.process_time() - began < 5
    assert [each.relative for each in walked] == ["a" * 250]
