"""Ask the memory: ``ksi query``, once or in a dialogue."""

import asyncio
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
import typer

from ksi_cli import output
from ksi_cli.connection import connect_async
from ksi_client import AsyncClient
from ksi_memory import events as e

# The editor and the writer of YAML take long to import: help comes without.
# ruff: noqa: PLC0415

SNIPPET_INDENT: Final = 7
SNIPPET_LINES: Final = 3
CELL_CHARS: Final = 60
BLANK: Final = ""


class Format(StrEnum):
    """How answers are shown."""

    table = "table"
    json = "json"
    yaml = "yaml"


def query(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUESTION]", help="A sentence, or LOOKUP, SEARCH, FUZZY, TRAVERSE, SQL …"
        ),
    ] = None,
    *,
    shown_as: Annotated[
        Format, typer.Option("--format", "-f", help="How answers are shown.")
    ] = Format.table,
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose memory; your own unless given.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what the score of each result is made of.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="No more than fits into so many tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    r"""Ask the memory, in a sentence or in the REM dialect.

    Without a question it is a dialogue: Tab completes, \? shows what else there is, Ctrl-D leaves.
    Without a terminal each line of stdin is a question.

      LOOKUP key[, key…]
      SEARCH "text" [FROM table] [FIELD f] [LIMIT n] [MIN_SIMILARITY x] [CATEGORY c]
             [SINCE t] [UNTIL t] [AS_OF t]
      FUZZY "text" [THRESHOLD x] [LIMIT n]
      TRAVERSE "key" [DEPTH n] [TYPE relation] [DIRECTION out|in|both] [LOAD]
      TIMELINE [conversation|user|key] [SINCE t] [UNTIL t] [LIMIT n]
      SQL SELECT …
    """
    chosen = Format.json if as_json else shown_as
    asking = Asking(chosen, tenant=tenant, explain=explain, max_tokens=max_tokens)
    asyncio.run(_run(asking, question_of(words or [])))


def question_of(words: Sequence[str]) -> str:
    """Put a question together of a command's words; the shell has taken the quotes away."""
    if len(words) < 2 or words[0].upper() == "SQL":
        return " ".join(words)
    return " ".join(_quoted(word) if any(c.isspace() for c in word) else word for word in words)


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


async def _run(asking: "Asking", question: str) -> None:
    async with connect_async() as client:
        asking.client = client
        if question.strip():
            asking.show(await asking.ask(question))
        else:
            from ksi_memory.commands import dialogue

            if not await dialogue.talk(asking):
                raise typer.Exit(output.FAILED)


class Asking:
    """Asks the daemon and shows its answers.

    Args:
        shown_as: How.
        tenant: Whose memory.
        explain: Whether to show what scores are made of.
        max_tokens: The budget.

    Attributes:
        client: The connection.
        is_timed: Whether to tell how long an answer took.
    """

    client: AsyncClient

    def __init__(
        self,
        shown_as: Format = Format.table,
        *,
        tenant: str | None = None,
        explain: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self.shown_as = shown_as
        self.is_timed = False
        self._context = {"tenant": tenant} if tenant else None
        self._explain = explain
        self._max_tokens = max_tokens

    async def ask(self, text: str) -> e.MemoryFound:
        """Ask a question in the dialect."""
        ask = e.MemoryQuery(text=text, explain=self._explain, max_tokens=self._max_tokens)
        return await self.client.request(
            "memory:query", ask, result_type=e.MemoryFound, context=self._context
        )

    async def keys(self, beginning: str) -> e.MemoryKeysListed:
        """Return the keys that begin so, and the tables."""
        ask = e.MemoryKeys(beginning=beginning)
        return await self.client.request(
            "memory:keys", ask, result_type=e.MemoryKeysListed, context=self._context
        )

    async def answer(self, text: str) -> None:
        """Ask, and show the answer."""
        began = time.perf_counter()
        found = await self.ask(text)
        took_ms = (time.perf_counter() - began) * 1e3
        self.show(found)
        if self.is_timed:
            output.note(f"time: {took_ms:.1f} ms")

    def show(self, found: e.MemoryFound) -> None:
        """Print an answer."""
        if self.shown_as is Format.json:
            output.write_json(found)
            return
        if self.shown_as is Format.yaml:
            output.write(yaml_text(found))
            return
        output.write(found_text(found))
        for each in found.notes:
            output.note(f"note: {each}")


# -- for people -----------------------------------------------------------------------------------


def yaml_text(found: e.MemoryFound) -> str:
    """Write an answer as YAML."""
    import yaml

    plain = msgspec.json.decode(msgspec.json.encode(found, enc_hook=str))
    return str(yaml.safe_dump(plain, allow_unicode=True, sort_keys=False, width=100))


def found_text(found: e.MemoryFound) -> str:
    """Lay an answer out."""
    if found.mode == "sql":
        return rows_text(found)
    if not found.results:
        return "nothing was found"
    return {
        "lookup": lookup_text,
        "traverse": traverse_text,
        "timeline": timeline_text,
    }.get(found.mode, ranked_text)(found)


def rows_text(found: e.MemoryFound) -> str:
    """Lay rows out."""
    rows = [tuple(map(_cell, row)) for row in found.rows]
    count = "1 row" if len(rows) == 1 else f"{len(rows):,} rows"
    return f"{output.table(found.columns, rows)}\n({count})"


def _cell(value: Any) -> str:
    if value is None:
        return BLANK
    text = value if isinstance(value, str) else output.encode_json(value)
    text = " ".join(text.split())
    return text if len(text) <= CELL_CHARS else text[: CELL_CHARS - 1] + "…"


def lookup_text(found: e.MemoryFound) -> str:
    """Write all of what was looked up."""
    return "\n\n".join(
        output.fields(
            [
                ("key", each.key),
                ("table", each.table),
                ("owner", each.owner),
                ("title", each.title),
                ("category", each.category),
                ("when", _when(each)),
                ("since", _day(each)),
                ("source", each.source),
                ("attributes", output.encode_json(each.attributes) if each.attributes else ""),
            ]
        )
        + (f"\n\n{each.body}" if each.body else "")
        for each in found.results
    )


def ranked_text(found: e.MemoryFound) -> str:
    """Write what was ranked by a score: what it is, and below it the part that fits."""
    lines = []
    for each in found.results:
        lines.append(f"{each.score:.3f}  {each.key}  ({each.table})")
        text = " ".join((each.snippet or each.title).split())
        if text != each.key:
            lines += output.indented(text, SNIPPET_INDENT, max_lines=SNIPPET_LINES)
        if each.features:
            features = ", ".join(f"{name} {value:.3f}" for name, value in each.features.items())
            lines += output.indented(f"[{features}]", SNIPPET_INDENT)
    return "\n".join(lines)


def traverse_text(found: e.MemoryFound) -> str:
    """Lay out a walk."""
    rows = [
        (
            str(each.depth),
            f"{each.via[1]} -{each.via[0]}-" if each.via else BLANK,
            each.key,
            "(nothing bears this key)" if each.is_dangling else each.title or each.snippet,
        )
        for each in found.results
    ]
    return output.table(("DEPTH", "FROM", "KEY", "TEXT"), rows)


def timeline_text(found: e.MemoryFound) -> str:
    """Lay out what happened."""
    rows = [
        (_when(each) or _day(each), each.table, each.key, each.snippet or each.title)
        for each in found.results
    ]
    return output.table(("WHEN", "TABLE", "KEY", "TEXT"), rows)


def _when(found: e.Found) -> str:
    return f"{found.starts_at.astimezone():%Y-%m-%d %H:%M}" if found.starts_at else BLANK


def _day(found: e.Found) -> str:
    return f"{found.valid_from.astimezone():%Y-%m-%d}" if found.valid_from else BLANK
