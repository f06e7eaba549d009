"""What stands above a screen: a question before something ends, an effect in doubt, the help."""

from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ksi_tools.events import CallRecord, ToolAnswer, ToolResolve
from ksi_tui.model import texts
from ksi_tui.screens.base import entitle
from ksi_tui.widgets.frame import Press


class Confirm(ModalScreen[bool]):
    """Asks before something ends; only ``y`` means yes.

    Args:
        title: What is to be done.
        what: What comes of it.
        verb: What the button says.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q,enter", "answer(False)", "No"),
    ]

    def __init__(self, title: str, what: str, verb: str) -> None:
        super().__init__()
        self._title = title
        self._what = what
        self._verb = verb

    def compose(self) -> ComposeResult:
        """Lay it out."""
        with Vertical(classes="dialog -danger") as dialog:
            entitle(dialog, self._title)
            yield Static(Content(self._what), classes="said")
            with Horizontal(classes="buttons"):
                yield Press(f"y  {self._verb}", "screen.answer(True)", classes="-danger")
                yield Press("n  leave it", "screen.answer(False)")

    def action_answer(self, answer: bool) -> None:
        """Close it."""
        self.dismiss(answer)


class Settle(ModalScreen[ToolResolve | ToolAnswer | None]):
    """Asks what became of a call in doubt, or for the answer that a call waits for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Not now"),
        # Before the input, which would take them for editing.
        Binding("ctrl+d", "verdict('done')", "It has happened", priority=True),
        Binding("ctrl+r", "verdict('redo')", "Call again", priority=True),
        Binding("ctrl+x", "verdict('drop')", "Drop", priority=True),
    ]

    def __init__(self, call: CallRecord) -> None:
        super().__init__()
        self._call = call
        self._is_doubt = call.status == "in_doubt"

    def compose(self) -> ComposeResult:
        """Lay it out."""
        call = self._call
        with Vertical(classes="dialog -danger") as dialog:
            entitle(dialog, "Nobody knows whether it happened" if self._is_doubt else "It asks you")
            yield Static(_told(call), classes="said")
            if self._is_doubt:
                yield Input(placeholder="what it gave, where it has happened", id="content")
                with Horizontal(classes="buttons"):
                    yield Press("^d  it has happened", "screen.verdict('done')")
                    yield Press("^r  it has not; call again", "screen.verdict('redo')")
                    yield Press("^x  drop", "screen.verdict('drop')", classes="-danger")
            else:
                yield Input(placeholder="your answer", id="content")
                with Horizontal(classes="buttons"):
                    yield Press("↵  answer", "screen.answer")
                    yield Press("^x  drop it", "screen.verdict('drop')", classes="-danger")

    def on_mount(self) -> None:
        """Have a cursor that stands still."""
        self.query_one("#content", Input).cursor_blink = False

    def action_leave(self) -> None:
        """Leave it as it is."""
        self.dismiss(None)

    def action_verdict(self, verdict: Any) -> None:
        """Say what became of it."""
        if not self._is_doubt and verdict != "drop":
            return
        content = self.query_one("#content", Input).value if verdict == "done" else ""
        self.dismiss(ToolResolve(call_id=self._call.call_id, verdict=verdict, content=content))

    def action_answer(self) -> None:
        """Give the answer that was asked for."""
        content = self.query_one("#content", Input).value
        if not self._is_doubt and content.strip():
            self.dismiss(ToolAnswer(call_id=self._call.call_id, content=content))

    def on_input_submitted(self) -> None:
        """Take Enter for the answer; a doubt needs a verdict."""
        self.action_answer()


def _told(call: CallRecord) -> Content:
    parts: list[Any] = [(texts.plain(call.name), "bold"), "\n"]
    parts += [texts.lines(texts.as_json(call.arguments)), "\n\n"]
    for name, value in (("agent", call.agent), ("run", call.run_id), ("why", call.why)):
        if value:
            parts += [(f"{name:6}", "$quiet"), texts.plain(value), "\n"]
    parts += [("since ", "$quiet"), texts.day(call.begun_at)]
    return Content.assemble(*parts)


KEYS: Final = (
    ("1 2 3 4", "overview, agents, events, runs"),
    ("↑ ↓ k j", "up and down; PgUp PgDn Home End, too"),
    ("enter", "more of it, or a second click"),
    ("tab", "to the next panel"),
    ("esc", "back; no filter"),
    ("/", "filter: words, or a glob such as model:*"),
    ("y", "copy what is chosen; ^c what the mouse has marked"),
    ("^p", "all there is to do, by name"),
    ("q", "leave"),
    ("", ""),
    ("agents", "p pause or resume, r restart, t terminate, [ ] sections"),
    ("events", "space hold, v severity, enter look into, c causes"),
    ("runs", "c cancel, g go on, f fork from a step, d doubt"),
)


class Help(ModalScreen[None]):
    """Shows which key does what."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter,space", "leave", "Close"),
    ]

    def compose(self) -> ComposeResult:
        """Lay it out."""
        parts: list[Any] = []
        for key, what in KEYS:
            parts += [(f"{key:9}", "bold $accent"), what, "\n"]
        with VerticalScroll(classes="dialog") as dialog:
            entitle(dialog, "Keys", "esc closes")
            yield Static(Content.assemble(*parts[:-1]))

    def action_leave(self) -> None:
        """Close it."""
        self.dismiss(None)

    def on_click(self) -> None:
        """Close it, too."""
        self.dismiss(None)
