"""What happens: filtered, held still, looked into, and traced to its causes."""

import contextlib
from typing import Any, ClassVar, Final

import msgspec
from msgspec.structs import replace
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from ksi_client import KsiError
from ksi_journal.events import JournalGet, JournalGot, JournalTrace, JournalTraced, TraceNode
from ksi_tui.model import texts
from ksi_tui.model.feed import SEVERITIES, Filter, Seen, Severity, severity_of
from ksi_tui.model.known import Known
from ksi_tui.screens import looks
from ksi_tui.screens.base import MonitorScreen, entitle
from ksi_tui.screens.overview import EVENT_COLUMNS, event_rows, shown_of
from ksi_tui.watcher import Watcher, recorded
from ksi_tui.widgets.rows import Cell, Column, Row, Rows
from ksi_tui.work import begin

SHOWN: Final = 1_000
TRACE_COLUMNS: Final = (
    Column("event", share=3),
    Column("outcome", width=13),
    Column("took", width=8, is_number=True),
    Column("time", width=8, least=60),
)


class EventsScreen(MonitorScreen):
    """The newest events, or what they were when they were held."""

    mode = "events"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "causes", "Causes"),
        Binding("space", "hold", "Hold"),
        Binding("v", "severity", "Severity"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.least: Severity = "info"
        self._held_at: int | None = None

    def body(self) -> ComposeResult:
        """One table."""
        yield Rows(EVENT_COLUMNS, id="events", classes="panel")

    def put(self, known: Known, now: float) -> None:
        """Show events, unless they are held."""
        table = self.query_one("#events", Rows)
        entitle(table, self._title(), self._subtitle(known))
        if self._held_at is None:
            rows = event_rows(known.feed, Filter(self.wanted, self.least), SHOWN)
            table.put(rows, empty=texts.plain(known.no_events) or "nothing of that, so far")

    @property
    def is_held(self) -> bool:
        """Whether the table stands still."""
        return self._held_at is not None

    def _title(self) -> str:
        parts = ["Events"]
        if self.wanted:
            parts.append(f"filter {texts.plain(self.wanted)}")
        if self.least != "info":
            parts.append("errors only" if self.least == "error" else "warnings and errors")
        return " · ".join(parts)

    def _subtitle(self, known: Known) -> str:
        if self._held_at is None:
            return shown_of(known.feed)
        return f"held · {known.feed.seen - self._held_at:,} since"

    def action_hold(self) -> None:
        """Hold the table still, or let it go on."""
        self._held_at = self.monitor.known.feed.seen if self._held_at is None else None
        self.draw()

    def action_severity(self) -> None:
        """Show all, then warnings and errors, then errors alone."""
        at = SEVERITIES.index(self.least)
        self.least = SEVERITIES[(at + 1) % len(SEVERITIES)]
        self.draw()

    def action_causes(self) -> None:
        """Show what caused an event."""
        chosen = self.main_table().chosen
        if chosen is not None:
            self.monitor.show_event(chosen, causes=True)

    def on_rows_opened(self, event: Rows.Opened) -> None:
        """Look into an event."""
        self.monitor.show_event(event.key or "")


class EventDialog(ModalScreen[None]):
    """One event: what it came with, or the tree of causes and effects that it stands in.

    Args:
        watcher: Asks for what was recorded of it.
        event_id: Which one.
        seen: What is known of it already.
        causes: Whether the tree is wanted first.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Close"),
        Binding("c", "turn", "Causes"),
        Binding("y", "copy", "Copy"),
    ]

    def __init__(
        self, watcher: Watcher, event_id: str, seen: Seen | None, *, causes: bool = False
    ) -> None:
        super().__init__()
        self._watcher = watcher
        self._event_id = event_id
        self._seen = seen
        self._causes = causes
        self._text = ""

    def compose(self) -> ComposeResult:
        """Lay it out."""
        with Vertical(classes="dialog -large"):
            with VerticalScroll(id="said"):
                yield Static(id="event")
            yield Rows(TRACE_COLUMNS, id="trace", empty="nothing of it is recorded")
            yield Static(
                Content("c  causes or event    y  copy    enter  look into    esc  close"),
                classes="keys",
            )

    def on_mount(self) -> None:
        """Show what is known, and ask for the rest."""
        self._show()
        begin(self, self._load, "detail", replaces=True)

    def _show(self) -> None:
        dialog = self.query_one(".dialog")
        name = texts.plain(self._seen.name) if self._seen else "Event"
        entitle(dialog, f"Causes of {name}" if self._causes else name, texts.plain(self._event_id))
        self.query_one("#said").display = not self._causes
        self.query_one("#trace").display = self._causes
        if self._causes:
            self.query_one("#trace").focus()
        else:
            self.query_one("#said").focus()
            if self._seen is not None and not self._text:
                self._write(self._seen)

    def _write(self, seen: Seen) -> None:
        content, self._text = described(seen)
        self.query_one("#event", Static).update(content)

    async def _load(self) -> None:
        with contextlib.suppress(KsiError):  # there may be no journal, or nothing in it
            got: JournalGot = await self._watcher.ask(
                "journal:get", JournalGet(id=self._event_id), JournalGot
            )
            last = got.records[-1]
            payload = "" if last.payload is None else texts.as_json(last.payload)
            if self._seen is None or payload:
                self._write(_whole(self._event_id, self._seen, last, payload))
        with contextlib.suppress(KsiError):
            traced: JournalTraced = await self._watcher.ask(
                "journal:trace", JournalTrace(id=self._event_id), JournalTraced
            )
            table = self.query_one("#trace", Rows)
            table.put(list(trace_rows(traced)))
            table.choose(self._event_id)

    def on_rows_opened(self, event: Rows.Opened) -> None:
        """Look into another event of the tree."""
        self._event_id, self._causes, self._text = event.key or "", False, ""
        self._seen = None
        self._show()
        begin(self, self._load, "detail", replaces=True)

    def action_turn(self) -> None:
        """Show the other side."""
        self._causes = not self._causes
        self._show()

    def action_copy(self) -> None:
        """Copy all that is shown of the event."""
        self.app.copy_to_clipboard(self._text)
        self.notify("copied", timeout=2, markup=False)

    def action_leave(self) -> None:
        """Close it."""
        self.dismiss(None)


def _whole(event_id: str, seen: Seen | None, record: Any, payload: str) -> Seen:
    base = seen or recorded(record)
    known: Seen = replace(
        recorded(record), at=base.at, id=event_id, payload=payload or base.payload
    )
    return known


def described(seen: Seen) -> tuple[Content, str]:
    """Write all that is known of an event, and the same without colours."""
    facts = (
        ("event", seen.name),
        ("at", texts.day(seen.at)),
        ("outcome", seen.outcome),
        ("error", seen.message),
        ("took", texts.took(seen.duration_s)),
        ("sent by", seen.origin),
        ("agent", seen.agent),
        ("conversation", seen.conversation),
        ("run", seen.run),
        ("id", seen.id),
        ("caused by", seen.parent),
    )
    parts: list[Any] = []
    for name, value in facts:
        if value:
            look = "$error" if name == "error" else ""
            parts += [(f"{name:13}", "$quiet"), (texts.plain(value), look), "\n"]
    parts += ["\n", _laid_out(seen.payload)]
    content = Content.assemble(*parts)
    return content, content.plain


def _laid_out(payload: str) -> str:
    try:
        return texts.as_json(msgspec.json.decode(payload))
    except msgspec.DecodeError:
        return texts.lines(payload)  # its beginning alone


def trace_rows(traced: JournalTraced) -> list[Row]:
    """Lay a tree of causes and effects out; the event that was asked for is marked."""
    rows = []
    if traced.cause_missing is not None:
        missing = f"({texts.plain(traced.cause_missing)}: not recorded)"
        rows.append(Row("missing", (Cell(missing),), is_heading=True))
    rows += [_trace_row(node, node.record.id == traced.id) for node in traced.nodes]
    if traced.cut is not None:
        rows.append(Row("cut", (Cell(f"left out: {texts.plain(traced.cut)}"),), is_heading=True))
    return rows


def _trace_row(node: TraceNode, is_asked: bool) -> Row:
    record = node.record
    stem = "  " * (node.depth - 1) + "└ " if node.depth else ""
    severity = severity_of(record.event, record.outcome)
    mark = "  ◂" if is_asked else ""
    return Row(
        record.id,
        (
            Cell(f"{stem}{texts.plain(record.event)}{mark}", "strong" if is_asked else "text"),
            Cell(texts.plain(record.outcome or "·"), looks.SEVERITY_LOOKS[severity]),
            Cell(texts.took(record.duration_s), "muted"),
            Cell(texts.clock(record.at), "muted"),
        ),
    )
