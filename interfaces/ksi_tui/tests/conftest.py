"""A monitor of the world that is made up, in a time zone that is the same everywhere."""

import time
from collections.abc import AsyncIterator, Iterator

import pytest
from textual.pilot import Pilot

from ksi_tui.app import Monitor
from ksi_tui.screens.agents import AgentsScreen
from ksi_tui.screens.base import MonitorScreen
from ksi_tui.screens.events import EventsScreen
from ksi_tui.testing import StillWatcher, busy_world, settled, still_monitor
from ksi_tui.widgets.frame import Filter
from ksi_tui.widgets.rows import Rows

WIDE = (140, 40)


@pytest.fixture(autouse=True)
def _greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            patch.delenv(name, raising=False)
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(scope="module")
async def _one_for_all() -> AsyncIterator[Pilot[None]]:
    """A monitor for all tests of a module: to start one and its screens takes seconds."""
    async with still_monitor().run_test(size=WIDE) as pilot:
        yield pilot


@pytest.fixture(scope="module")
async def _screens(_one_for_all: Pilot[None]) -> list[MonitorScreen]:
    """Its screens, each of which was shown once."""
    found = []
    for mode in _one_for_all.app.MODES:
        await _one_for_all.app.switch_mode(mode)
        await _one_for_all.pause()
        assert isinstance(_one_for_all.app.screen, MonitorScreen)
        found.append(_one_for_all.app.screen)
    return found


@pytest.fixture
async def pilot(_one_for_all: Pilot[None], _screens: list[MonitorScreen]) -> Pilot[None]:
    """The monitor as it is at its start: wide, at the overview, nothing chosen or filtered."""
    app = _one_for_all.app
    assert isinstance(app, Monitor)
    assert isinstance(app.watcher, StillWatcher)
    while app.screen.is_modal:
        await app.pop_screen()
    app.watcher.sent.clear()
    app.watcher.known = app.known = busy_world()
    if app.size != WIDE:
        await _one_for_all.resize_terminal(*WIDE)
    if app.current_mode != "overview":
        await app.switch_mode("overview")
    for screen in _screens:
        reset(screen)
    await settled(_one_for_all)
    return _one_for_all


def reset(screen: MonitorScreen) -> None:
    screen.query_one(Filter).value = ""
    screen.query_one(Filter).remove_class("-shown")
    screen.remove_class("-open")
    for table in screen.query(Rows):
        table.action_edge(0)
    screen.main_table().focus()
    if isinstance(screen, EventsScreen):
        screen.least = "info"
        if screen.is_held:
            screen.action_hold()
    if isinstance(screen, AgentsScreen):
        screen.action_show_section("details")
    screen.draw()
