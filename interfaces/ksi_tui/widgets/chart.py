"""A number with its last minutes as columns."""

from collections.abc import Sequence
from typing import Any

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from ksi_tui.model.series import bars
from ksi_tui.widgets.colours import looks_of


class Chart(Widget):
    """A title and a figure on one line, and as many minutes below as there is room for.

    Args:
        title: What is counted.
        look: How its columns look: see `colours`.
    """

    def __init__(self, title: str, look: str = "tokens", **options: Any) -> None:
        super().__init__(**options)
        self._title = title
        self._look = look
        self._figure = ""
        self._values: tuple[float, ...] = ()

    @property
    def columns(self) -> int:
        """How many minutes there is room for."""
        return max(self.content_size.width, 1)

    def put(self, figure: str, values: Sequence[float]) -> None:
        """Show a figure and what it was, minute by minute, the last at the right."""
        if (figure, tuple(values)) != (self._figure, self._values):
            self._figure, self._values = figure, tuple(values)
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw a line."""
        width, height = self.content_size
        if y == 0:
            return self._head(width)
        drawn = bars(self._values[-width:], max(height - 1, 1))
        line = drawn[y - 1] if y <= len(drawn) else ""
        is_ground = y == len(drawn)
        looks, base = looks_of(self), self.rich_style
        plain, coloured = base + looks["ground"], base + looks[self._look]
        segments = [
            Segment("▁", plain) if char == " " and is_ground else Segment(char, coloured)
            for char in line.rjust(width)
        ]
        return Strip(segments).simplify()

    def _head(self, width: int) -> Strip:
        room = max(width - len(self._figure) - 1, 0)
        looks, base = looks_of(self), self.rich_style
        title, figure = base + looks["label"], base + looks["strong"]
        head = Segment(self._title[:room].ljust(room), title)
        return Strip([head, Segment(f" {self._figure}"[:width], figure)]).adjust_cell_length(width)
