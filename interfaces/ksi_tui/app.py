"""The monitor as an app: its screens, a watcher, and a frame several times a second."""

import asyncio
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from ksi_client import KsiError
from ksi_tui.model import texts
from ksi_tui.screens.agents import AgentsScreen
from ksi_tui.screens.base import NARROW, MonitorScreen
from ksi_tui.screens.dialogs import Help
from ksi_tui.screens.events import EventDialog, EventsScreen
from ksi_tui.screens.overview import OverviewScreen
from ksi_tui.screens.runs import RunsScreen
from ksi_tui.theme import DARK, LIGHT
from ksi_tui.watcher import Watcher
from ksi_tui.work import begin

FRAME_S: Final = 0.2
CLOCK_FRAMES: Final = 5  # charts and spans of time move on without news, too
START: Final = (sys.executable, "-m", "ksi_cli", "start")


class Monitor(App[None]):
    """Shows what a daemon does.

    Args:
        watcher: What it is shown from; it is run with the app.
    """

    TITLE = "KSI monitor"
    CSS_PATH = Path("monitor.tcss")
    ENABLE_COMMAND_PALETTE = True
    MODES: ClassVar[dict[str, Any]] = {
        "overview": OverviewScreen,
        "agents": AgentsScreen,
        "events": EventsScreen,
        "runs": RunsScreen,
    }
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (NARROW, "-wide")]  # noqa: RUF012  as Textual has it
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "go('overview')", "Overview", show=False),
        Binding("2", "go('agents')", "Agents", show=False),
        Binding("3", "go('events')", "Events", show=False),
        Binding("4", "go('runs')", "Runs", show=False),
        Binding("s", "start_daemon", "Start the daemon", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Leave"),
    ]

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher
        self.known = watcher.known
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self._drawn = -1
        self._frames = 0
        self._is_starting = False

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return what our looks need and other themes don't have."""
        return DARK.variables

    def on_mount(self) -> None:
        """Begin to watch, and to draw."""
        self.switch_mode("overview")
        begin(self, self.watcher.run, "watcher")
        self.set_interval(FRAME_S, self.tick)

    def tick(self) -> None:
        """End a frame, and draw what is new since the last."""
        self._frames += 1
        self.known.frame()
        if self.known.revision != self._drawn or self._frames % CLOCK_FRAMES == 0:
            self._drawn = self.known.revision
            for screen in self.screen_stack:
                if isinstance(screen, MonitorScreen):
                    screen.draw()

    # -- going ------------------------------------------------------------------------------------

    async def action_go(self, mode: str) -> None:
        """Show another screen."""
        if self.current_mode != mode and not self.screen.is_modal:
            await self.switch_mode(mode)

    def show_agent(self, name: str) -> None:
        """Show an agent on its screen."""
        self._show("agents", name)

    def show_need(self, key: str) -> None:
        """Show a call or a run that needs a person."""
        if key.startswith(("call ", "run ")):
            self._show("runs", key)

    def _show(self, mode: str, key: str) -> None:
        async def go() -> None:
            await self.switch_mode(mode)
            screen: Any = self.screen
            screen.wish(key)

        begin(self, go, "going")

    def show_event(self, event_id: str, *, causes: bool = False) -> None:
        """Look into an event."""
        seen = self.known.feed.find(event_id)
        self.push_screen(EventDialog(self.watcher, event_id, seen, causes=causes))

    def action_help(self) -> None:
        """Show the keys."""
        if not self.screen.is_modal:
            self.push_screen(Help())

    # -- doing ------------------------------------------------------------------------------------

    def act(self, event: str, data: Any, done: str) -> None:
        """Send an event, and tell what came of it."""

        async def do() -> None:
            try:
                await self.watcher.request(event, data)
            except KsiError as error:
                self.say(error.message, is_bad=True)
            else:
                self.say(done)

        begin(self, do, "acting")

    def say(self, text: str, *, is_bad: bool = False) -> None:
        """Tell something in a corner, for a while."""
        severity: Any = "error" if is_bad else "information"
        self.notify(texts.plain(text), severity=severity, timeout=4, markup=False)

    def action_start_daemon(self) -> None:
        """Start the daemon, where there is none."""
        if self.known.link.state == "away" and not self._is_starting:
            begin(self, self._start, "starting")

    async def _start(self) -> None:
        self._is_starting = True
        self.say("starting the daemon")
        try:
            process = await asyncio.create_subprocess_exec(
                *START,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, told = await process.communicate()
            if process.returncode:
                self.say(told.decode(errors="replace").strip() or "it did not start", is_bad=True)
        finally:
            self._is_starting = False

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """List what the command palette offers: the screens, what this one can do, the app's."""
        for number, mode in enumerate(self.MODES, 1):
            yield SystemCommand(mode.capitalize(), f"Go there; {number}", partial(self._go, mode))
        if isinstance(screen, MonitorScreen):
            for binding in screen.offered():
                yield SystemCommand(
                    binding.description,
                    f"On this screen; {self.get_key_display(binding)}",
                    partial(self._run, screen, binding.action),
                )
        yield SystemCommand("Start the daemon", "Where there is none; s", self.action_start_daemon)
        yield SystemCommand("Keys", "Which key does what; ?", self.action_help)
        yield SystemCommand("Theme", "Other colours", self.action_change_theme)
        yield SystemCommand("Leave", "The daemon goes on; q", self.exit)

    def _go(self, mode: str) -> None:
        begin(self, partial(self.action_go, mode), "going")

    def _run(self, screen: Screen[Any], action: str) -> None:
        begin(self, partial(self.run_action, action, screen), "going")
