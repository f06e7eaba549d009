"""A table that draws the lines that can be seen, and no others."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from msgspec import Struct
from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ksi_tui.widgets.colours import looks_of

GAP: Final = 2


class Cell(Struct, frozen=True):
    """A text, which must be plain, and how it looks: see `colours`."""

    text: str
    look: str = "text"


class Row(Struct, frozen=True):
    """A line of a table; a heading within it can't be chosen."""

    key: str
    cells: tuple[Cell, ...]
    is_heading: bool = False


class Column(Struct, frozen=True):
    """A column: as wide as said, or with a share of the rest.

    Attributes:
        width: In characters; 0 is a share of what the others leave.
        share: How large that is.
        least: It is shown only in a table that is at least so wide.
        most: It is shown only in a table that is narrower than that.
        is_number: It is aligned at the right.
    """

    title: str
    width: int = 0
    share: int = 1
    least: int = 0
    most: int = 10_000
    is_number: bool = False


def widths(columns: Sequence[Column], room: int) -> list[int]:
    """Share a table's width out; a column that finds no room has none."""
    shown = [column for column in columns if column.least <= room < column.most]
    fixed = sum(column.width for column in shown) + GAP * (len(shown) - 1)
    shares = sum(column.share for column in shown if not column.width)
    rest = max(room - fixed, 0)
    found = []
    for column in columns:
        if column not in shown:
            found.append(0)
        elif column.width:
            found.append(column.width)
        else:
            part = rest * column.share // shares
            rest, shares = rest - part, shares - column.share
            found.append(part)
    return found


class Rows(ScrollView, can_focus=True):
    """Rows under headings, one of which is chosen, with the keyboard or the mouse.

    Args:
        columns: What the rows have.
        chosen: Whether a row can be chosen at all.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "edge(0)", "First", show=False),
        Binding("end", "edge(-1)", "Last", show=False),
        Binding("enter", "open", "Open"),
    ]

    class Chosen(Message):
        """Another row is under the cursor."""

        def __init__(self, rows: "Rows", key: str | None) -> None:
            super().__init__()
            self.rows = rows
            self.key = key

        @property
        def control(self) -> "Rows":
            """The table."""
            return self.rows

    class Opened(Chosen):
        """Somebody wants to see more of a row."""

    def __init__(self, columns: Sequence[Column], *, empty: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._columns = tuple(columns)
        self._empty = empty
        self._rows: tuple[Row, ...] = ()
        self._at = 0

    # -- what it shows --------------------------------------------------------------------------

    @property
    def chosen(self) -> str | None:
        """The key of the row under the cursor."""
        if not 0 <= self._at < len(self._rows) or self._rows[self._at].is_heading:
            return None
        return self._rows[self._at].key

    @property
    def rows(self) -> tuple[Row, ...]:
        """What is shown."""
        return self._rows

    def put(self, rows: Sequence[Row], *, empty: str | None = None) -> None:
        """Show these rows; the cursor stays on its row, and so does what can be seen."""
        if empty is not None and empty != self._empty:
            self._empty = empty
            self.refresh()
        if tuple(rows) == self._rows:
            return
        before, at = self.chosen, self._at
        self._rows = tuple(rows)
        self._at = self._place(before)
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)
        if self._at != at and self.scroll_offset.y:
            self.scroll_to(y=self.scroll_offset.y + self._at - at, animate=False)
        self.refresh()
        if self.chosen != before:
            self.post_message(self.Chosen(self, self.chosen))

    def _place(self, key: str | None) -> int:
        """Find a row, or the nearest one to where it was."""
        if key is not None and self._at:  # at the first row it stays there, whatever comes
            for number, row in enumerate(self._rows):
                if row.key == key:
                    return number
        return self._nearest(min(self._at, max(len(self._rows) - 1, 0)), 1)

    def _nearest(self, at: int, step: int) -> int:
        """Return the next row that can be chosen, in one direction or else in the other."""
        for way in (step, -step):
            number = at
            while 0 <= number < len(self._rows):
                if not self._rows[number].is_heading:
                    return number
                number += way
        return 0

    # -- the cursor -----------------------------------------------------------------------------

    def choose(self, key: str) -> None:
        """Put the cursor on a row."""
        for number, row in enumerate(self._rows):
            if row.key == key:
                self._go(number, 1)

    def _go(self, at: int, step: int) -> None:
        if not self._rows:
            return
        before = self._at
        self._at = self._nearest(min(max(at, 0), len(self._rows) - 1), step)
        top = 0 if self._at <= self._nearest(0, 1) else self._at
        self.scroll_to_region(Region(0, top, 1, 2), animate=False, force=True)
        if self._at != before:
            self.refresh()
            self.post_message(self.Chosen(self, self.chosen))

    def action_move(self, step: int) -> None:
        """Go up or down."""
        self._go(self._at + step, step)

    def action_page(self, step: int) -> None:
        """Go a page up or down."""
        self._go(self._at + step * max(self.size.height - 2, 1), step)

    def action_edge(self, at: int) -> None:
        """Go to the first row or to the last."""
        self._go(len(self._rows) - 1 if at else 0, -1 if at else 1)

    def action_open(self) -> None:
        """Show more of the row."""
        if self.chosen is not None:
            self.post_message(self.Opened(self, self.chosen))

    def on_click(self, event: events.Click) -> None:
        """Choose the row that was clicked; open it at the second click."""
        where = event.get_content_offset(self)
        if where is None or where.y < 1:
            return
        at = where.y + self.scroll_offset.y - 1
        if not 0 <= at < len(self._rows) or self._rows[at].is_heading:
            return
        if at == self._at and event.chain > 1:
            self.action_open()
        else:
            self._go(at, 1)

    def on_resize(self) -> None:
        """Share the new width out."""
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)

    # -- drawing --------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """Draw a line: the titles, then the rows."""
        width = self.size.width
        looks, base = looks_of(self), self.rich_style
        at = self.scroll_offset.y + y - 1
        if y == 0:
            titles = [Cell(column.title, "title") for column in self._columns]
            return self._line(titles, width, base, looks)
        if 0 <= at < len(self._rows):
            return self._row(at, width, base, looks)
        if at == 0 and not self._rows:
            text = set_cell_size(f" {self._empty}", width)
            return Strip([Segment(text, base + looks["muted"])])
        return Strip.blank(width, base)

    def _row(self, at: int, width: int, base: Style, looks: Mapping[str, Style]) -> Strip:
        row = self._rows[at]
        if row.is_heading:
            text = " ".join(cell.text for cell in row.cells)
            return Strip([Segment(set_cell_size(f" {text}", width), base + looks["heading"])])
        if at == self._at:
            base += looks["cursor" if self.has_focus else "blurred"]
        return self._line(row.cells, width, base, looks)

    def _line(
        self, cells: Sequence[Cell], width: int, base: Style, looks: Mapping[str, Style]
    ) -> Strip:
        segments = [Segment(" ", base)]
        sizes = widths(self._columns, width - 2)
        for column, cell, room in zip(self._columns, cells, sizes, strict=True):
            if room:
                text = fitted(cell.text, room, column.is_number)
                segments.append(Segment(text, base + looks[cell.look]))
                segments.append(Segment(" " * GAP, base))
        return Strip(segments).adjust_cell_length(width, base)


def fitted(text: str, room: int, at_the_right: bool = False) -> str:
    """Cut or fill a text to a width."""
    if cell_len(text) > room:
        return set_cell_size(text, room - 1) + "…" if room > 1 else set_cell_size(text, room)
    blanks = " " * (room - cell_len(text))
    return blanks + text if at_the_right else text + blanks
