"""One line that says which keys do something here; each can be pressed with the mouse."""

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.binding import Binding
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from ksi_tui.widgets.colours import looks_of

PALETTE = Binding("ctrl+p", "app.command_palette", "all", key_display="^p")


class Hints(Widget):
    """The keys that are shown, in the order of who takes them; that of the palette at the right.

    Textual's own footer makes a widget of each anew whenever the focus moves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hints: list[tuple[Binding, str]] = []

    def on_mount(self) -> None:
        """Follow what the keys do."""
        self.screen.bindings_updated_signal.subscribe(self, self._put)
        self._put(self.screen)

    def _put(self, screen: Screen[object]) -> None:
        found: dict[str, tuple[Binding, str]] = {}
        for active in screen.active_bindings.values():
            if active.binding.show and active.enabled:
                key = self.app.get_key_display(active.binding)
                found.setdefault(active.binding.action, (active.binding, key))
        hints = [each for action, each in found.items() if action != PALETTE.action]
        if hints != self._hints:
            self._hints = hints
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw it."""
        width = self.size.width
        parts = self._parts(width)
        return Strip(parts).adjust_cell_length(width, self.rich_style)

    def _parts(self, width: int) -> list[Segment]:
        looks, base = looks_of(self), self.rich_style
        key_style, what_style = base + looks["key"], base + looks["muted"]
        palette = [Segment("^p", key_style), Segment(f" {PALETTE.description} ", what_style)]
        room = width - sum(part.cell_length for part in palette)
        parts: list[Segment] = []
        used = 0
        for binding, key in self._hints:
            wide = cell_len(key) + cell_len(binding.description) + 4
            if used + wide > room:
                break
            parts += [
                Segment(f" {key}", key_style),
                Segment(f" {binding.description}  ", what_style),
            ]
            used += wide
        return [*parts, Segment(" " * max(room - used, 0), what_style), *palette]

    def on_click(self, event: events.Click) -> None:
        """Press the key that was clicked."""
        at = 0
        for binding, key in self._hints:
            at += cell_len(key) + cell_len(binding.description) + 4
            if event.x < at:
                self.app.simulate_key(binding.key)
                return
        self.app.simulate_key(PALETTE.key)
