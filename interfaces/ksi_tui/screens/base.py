"""What all screens have in common."""

from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input

from ksi_tui.model.known import Known
from ksi_tui.widgets.frame import Banner, Filter, TopBar
from ksi_tui.widgets.hints import Hints
from ksi_tui.widgets.rows import Rows

if TYPE_CHECKING:
    from ksi_tui.app import Monitor

NARROW: Final = 100
NAMELESS: Final = frozenset({"back", "section(-1)"})


class MonitorScreen(Screen[None]):
    """A screen that is drawn from what is known, as often as the app says.

    Attributes:
        mode: The app's name of it.
    """

    mode: ClassVar[str] = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("y", "copy", "Copy", show=False),
        Binding("escape", "back", "Back", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Lay it out."""
        yield TopBar(self.mode)
        yield Banner()
        yield from self.body()
        yield Filter()
        yield Hints()

    def body(self) -> ComposeResult:
        """Lay out what is between the bars."""
        raise NotImplementedError

    def put(self, known: Known, now: float) -> None:
        """Show what is known, where the screen has a place for it."""
        raise NotImplementedError

    # -- what is common ---------------------------------------------------------------------------

    @property
    def monitor(self) -> "Monitor":
        """The app."""
        return cast("Monitor", self.app)

    @property
    def wanted(self) -> str:
        """What to look for."""
        return self.query_one(Filter).value.strip()

    def offered(self) -> list[Binding]:
        """List what can be done here, and has a name."""
        own = (*type(self).BINDINGS, *MonitorScreen.BINDINGS)
        return [each for each in own if isinstance(each, Binding) and each.action not in NAMELESS]

    def draw(self) -> None:
        """Show what is known now."""
        if not self.is_mounted or not self.query(TopBar):
            return
        known, now = self.monitor.known, self.monitor.watcher.clock()
        self.query_one(TopBar).put(known, now, self.size.width)
        self.query_one(Banner).put(known.link, was_here=known.greeting is not None)
        self.put(known, now)

    def on_mount(self) -> None:
        """Draw it for the first time."""
        self.draw()

    def on_resize(self) -> None:
        """Draw it in its new size."""
        self.call_after_refresh(self.draw)

    def on_screen_resume(self) -> None:
        """Draw it again: while another one was shown it wasn't."""
        self.draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while something is typed."""
        if isinstance(event.input, Filter):
            self.draw()

    def on_filter_done(self) -> None:
        """Go back to the table."""
        self.main_table().focus()
        self.draw()

    def main_table(self) -> Rows:
        """Return the table that the screen is about."""
        return self.query(Rows).first()

    def action_filter(self) -> None:
        """Ask what to look for."""
        self.query_one(Filter).open()

    def action_back(self) -> None:
        """Give up the filter."""
        self.query_one(Filter).value = ""

    def action_copy(self) -> None:
        """Copy what is chosen."""
        text = self.copied()
        if text:
            self.app.copy_to_clipboard(text)
            self.notify("copied", timeout=2, markup=False)

    def copied(self) -> str:
        """Return what a copy is of."""
        table = self.focused if isinstance(self.focused, Rows) else self.main_table()
        for row in table.rows:
            if row.key == table.chosen:
                return "  ".join(cell.text.strip() for cell in row.cells if cell.text.strip())
        return ""


def entitle(panel: Widget, title: str, subtitle: str = "") -> None:
    """Give a panel its titles, which are no markup; a narrow one has only the upper line."""
    if subtitle and panel.is_attached and panel.screen.has_class("-narrow"):
        title, subtitle = f"{title} · {subtitle}", ""
    for name, text in (("border_title", title), ("border_subtitle", subtitle)):
        made: Any = Content(text)
        if getattr(panel, f"_{name}") != made:
            setattr(panel, name, made)
