"""What is above and below every screen: where one is, how the daemon is, and the filter."""

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from ksi_tui.model import texts
from ksi_tui.model.known import Known, Link

TABS = (("overview", "Overview"), ("agents", "Agents"), ("events", "Events"), ("runs", "Runs"))
DOTS = {"ok": "$success", "starting": "$warning", "degraded": "$warning", "draining": "$warning"}


class Press(Static):
    """A text that can be pressed.

    Args:
        text: What it says.
        action: What is done then.
    """

    def __init__(self, text: str, action: str, **options: Any) -> None:
        super().__init__(Content(text), **options)
        self._action = action

    async def on_click(self) -> None:
        """Do what it is for."""
        await self.run_action(self._action)


class TopBar(Horizontal):
    """Where one is, and how the daemon is."""

    def __init__(self, current: str) -> None:
        super().__init__()
        self._current = current
        self._said: Content | None = None

    def compose(self) -> ComposeResult:
        """Lay the tabs and the state out."""
        yield Static("KSI", classes="brand", markup=False)
        for number, (mode, title) in enumerate(TABS, 1):
            classes = "tab -on" if mode == self._current else "tab"
            yield Press(f"{number} {title}", f"app.go('{mode}')", classes=classes)
        yield Static("", classes="fill")
        yield Static("", classes="state", markup=False)

    def put(self, known: Known, now: float, width: int) -> None:
        """Say how the daemon is."""
        said = state_of(known, now, is_short=width < 100)
        if said != self._said:
            self._said = said
            self.query_one(".state", Static).update(said)


def state_of(known: Known, now: float, *, is_short: bool) -> Content:
    """Put a daemon's state into few words."""
    link = known.link
    if link.state != "here":
        word = {"looking": "looking for the daemon", "refused": "refused"}.get(link.state, "away")
        lasting = texts.span(now - link.since) if link.state == "away" else ""
        return Content.assemble(("○ ", "$warning"), (f"{word} {lasting}".strip(), "$warning"))
    health = known.health
    if health is None:
        return Content("…")
    colour = DOTS.get(health.health, "$error")
    parts: list[Any] = [("● ", colour), (health.health, colour)]
    if not is_short and known.greeting is not None:
        parts.append(f"  v{texts.plain(known.greeting.version)}")
    parts.append(f"  up {texts.span(health.uptime_s)}")
    if not is_short and known.stats is not None:
        parts.append(f"  {texts.size(known.stats.rss_bytes)}")
        number = known.stats.connections
        parts.append(f"  {texts.count(number)} connection{'' if number == 1 else 's'}")
    return Content.assemble(*parts)


class Banner(Static):
    """Says that the daemon is not there, for as long as it isn't."""

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self._link: Link | None = None

    def put(self, link: Link, *, was_here: bool) -> None:
        """Say so, or nothing; where it was here once, also what that means for what is shown."""
        if link == self._link:
            return
        self._link = link
        self.set_class(link.state in ("away", "refused"), "-shown")
        then = "trying again; s starts it" if link.state == "away" else "trying again"
        what = "; what is shown is what was last known" if was_here else ""
        self.update(Content(f"{texts.plain(link.why)} — {then}{what}"))


class Filter(Input):
    """One line for what to look for; Enter goes back to the table, Escape gives it up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", "No filter", show=False),
    ]

    class Done(Message):
        """The person is done with it."""

    def __init__(self) -> None:
        super().__init__(placeholder="filter: words, or a glob such as model:*", compact=True)

    def open(self) -> None:
        """Show it and take what is typed."""
        self.add_class("-shown")
        self.focus()

    def close(self) -> None:
        """Hide it; what it says goes on to count."""
        self.remove_class("-shown")
        self.post_message(self.Done())

    def on_input_submitted(self) -> None:
        """Go back to the table."""
        self.close()

    def action_give_up(self) -> None:
        """Filter no more."""
        self.value = ""
        self.close()
