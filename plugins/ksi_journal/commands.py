"""Show what happened and why: ``ksi history`` and ``ksi trace``."""

import shutil
import sys
from datetime import datetime
from typing import Annotated, Final

import msgspec
import typer

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag
from ksi_cli.times import time_of
from ksi_journal import events as e

AN_EXAMPLE: Final = "2026-01-31T12:00, or 10m for ten minutes ago"
_MARK: Final = "  <"

Patterns = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATTERN]…", help="Which events: * is any characters, ? is one."),
]
EventId = Annotated[
    str, typer.Argument(metavar="ID", help="An event's id, as ksi history and the log show it.")
]
TIME_HELP: Final = "As 2026-01-31T12:00, or 90s, 10m, 2h, 3d ago."


def history(
    patterns: Patterns = None,
    *,
    since: Annotated[str, typer.Option(metavar="TIME", help=f"Not before. {TIME_HELP}")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help=f"Before. {TIME_HELP}")] = "",
    outcome: Annotated[
        str, typer.Option(metavar="CODE", help="ok, failed, or an error's code such as denied.")
    ] = "",
    user: Annotated[str, typer.Option(metavar="USER", help="In whose name.")] = "",
    agent: Annotated[str, typer.Option(metavar="AGENT", help="Of which agent.")] = "",
    conversation: Annotated[str, typer.Option(metavar="ID", help="In which conversation.")] = "",
    run: Annotated[str, typer.Option(metavar="ID", help="In which run.")] = "",
    text: Annotated[str, typer.Option(metavar="TEXT", help="What the payload contains.")] = "",
    payloads: Annotated[bool, typer.Option("--payloads", help="Show the payloads, too.")] = False,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
    ] = 30,
    cursor: Annotated[
        int | None, typer.Option(metavar="CURSOR", help="Go on where an answer before ended.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what happens from now on, as it does.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what happened, the newest last.

    Only what the journal records: see the setting journal.events.
    """
    if follow:
        _follow(e.JournalTail(patterns=tuple(patterns or ()), payloads=payloads), as_json=as_json)
        return
    request = e.JournalHistory(
        patterns=tuple(patterns or ()),
        since=time_of(since, AN_EXAMPLE),
        until=time_of(until, AN_EXAMPLE),
        outcome=outcome or None,
        user=user or None,
        agent=agent or None,
        conversation=conversation or None,
        run=run or None,
        text=text or None,
        payloads=payloads,
        limit=limit,
        cursor=cursor,
    )
    with connect() as client:
        answer = client.request("journal:history", request)
    listed = msgspec.convert(answer, e.JournalHistoryListed)
    output.show(listed, _history_text, as_json=as_json)


def trace(
    event_id: EventId,
    *,
    depth: Annotated[
        int, typer.Option(min=1, max=200, metavar="N", help="How many steps up and down.")
    ] = 50,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many events.")
    ] = 500,
    as_json: JsonFlag = False,
) -> None:
    """Show what caused an event, and all that followed.

    A tree: each event stands below its cause; the one that was asked for is marked with <.
    """
    with connect() as client:
        answer = client.request(
            "journal:trace", e.JournalTrace(id=event_id, max_depth=depth, limit=limit)
        )
    output.show(msgspec.convert(answer, e.JournalTraced), trace_text, as_json=as_json)


def _follow(request: e.JournalTail, *, as_json: bool) -> None:
    with connect(timeout_s=None) as client:
        for chunk in client.stream("journal:tail", request):
            record = msgspec.convert(chunk, e.JournalRecord)
            output.show(record, _line, as_json=as_json)
            sys.stdout.flush()


# -- for people ----------------------------------------------------------------------------------


def _history_text(listed: e.JournalHistoryListed) -> str:
    if not listed.records:
        return "nothing of that is recorded"
    records = listed.records[::-1]
    rows = [(clock(r.at), r.outcome or "-", took(r.duration_s), r.id, _told(r)) for r in records]
    text = output.table(("TIME", "OUTCOME", "TOOK", "ID", "EVENT"), rows)
    more = f"\nbefore that: --cursor {listed.cursor}" if listed.cursor is not None else ""
    return text + more


def _line(record: e.JournalRecord) -> str:
    return "  ".join(
        (
            clock(record.at),
            f"{record.outcome or '-':8}",
            f"{took(record.duration_s):>7}",
            record.id,
            _told(record),
        )
    )


def _told(record: e.JournalRecord) -> str:
    """Write an event's name, and where they were asked for its payload and its error."""
    payload = "" if record.payload is None else output.encode_json(record.payload)
    return " ".join(filter(None, (record.event, payload)))


def trace_text(traced: e.JournalTraced) -> str:
    """Draw a tree, in as many columns as the terminal has."""
    columns = shutil.get_terminal_size().columns
    lines = []
    if traced.cause_missing is not None:
        lines.append(f"({traced.cause_missing}: not recorded)")
    open_at: list[bool] = []  # whether more comes below, at each depth
    more = _has_younger(traced.nodes)
    for node, is_followed in zip(traced.nodes, more, strict=True):
        del open_at[node.depth :]
        open_at.append(is_followed)
        lines.append(_node_line(node, open_at, columns, is_asked=node.record.id == traced.id))
        if node.record.message:
            stem = _stem([*open_at, False])[:-3]
            lines.append(_cut(f"{stem}   {node.record.message}", columns))
    if traced.cut is not None:
        lines.append(f"… left out: {traced.cut}")
    return "\n".join(lines)


def _has_younger(nodes: tuple[e.TraceNode, ...]) -> list[bool]:
    """Say of each event whether another effect of its cause comes after it."""
    seen: list[bool] = []  # at each depth, whether one comes below
    found = []
    for node in reversed(nodes):
        del seen[node.depth + 1 :]
        seen.extend([False] * (node.depth + 1 - len(seen)))
        found.append(seen[node.depth])
        seen[node.depth] = True
    return found[::-1]


def _stem(open_at: list[bool]) -> str:
    """Draw what is left of an event."""
    if len(open_at) < 2:
        return ""
    above = "".join("│  " if is_open else "   " for is_open in open_at[1:-1])
    return above + ("├─ " if open_at[-1] else "└─ ")


def _node_line(node: e.TraceNode, open_at: list[bool], columns: int, *, is_asked: bool) -> str:
    record = node.record
    stem = _stem(open_at)
    if len(stem) > columns // 2:
        stem = f"… {node.depth} deep ─ "
    parts = [record.event, record.outcome or "-", took(record.duration_s), record.id]
    mark = _MARK if is_asked else ""
    return _cut(stem + "  ".join(filter(None, parts)), columns - len(mark)) + mark


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"


def clock(at: datetime) -> str:
    """Write a time as the clock on this machine shows it."""
    return at.astimezone().strftime("%m-%d %H:%M:%S")


def took(seconds: float | None) -> str:
    """Write how long something took, in the unit that fits."""
    if seconds is None:
        return ""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 100 else output.duration(seconds)
