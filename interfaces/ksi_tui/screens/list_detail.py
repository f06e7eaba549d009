"""A list, and beside it what is in the row that was chosen; in a narrow terminal one of both."""

import asyncio
from functools import partial
from typing import Final

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from ksi_client import KsiError
from ksi_tui.model import texts
from ksi_tui.model.known import Known
from ksi_tui.screens.base import MonitorScreen
from ksi_tui.widgets.rows import Rows
from ksi_tui.work import begin

SETTLE_S: Final = 0.08  # while somebody runs down the list nothing is asked
AGAIN_S: Final = 2.0


class ListAndDetail(MonitorScreen):
    """Asks for the details of what is chosen, once somebody stays there, and when it changes.

    Attributes:
        shown: The key of what is shown in the detail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: str | None = None
        self._wish: str | None = None
        self._state: object = None
        self._loaded_at = 0.0

    def body(self) -> ComposeResult:
        """Lay the two out."""
        with Horizontal(classes="both"):
            with Vertical(classes="list"):
                yield from self.list_body()
            with Vertical(classes="detail panel"):
                yield from self.detail_body()

    def list_body(self) -> ComposeResult:
        """Lay out the list."""
        raise NotImplementedError

    def detail_body(self) -> ComposeResult:
        """Lay out what is beside it."""
        raise NotImplementedError

    def put_list(self, known: Known, now: float) -> None:
        """Fill the list."""
        raise NotImplementedError

    def state_of(self, key: str) -> tuple[object, bool]:
        """Return what is known of a row, and whether it goes on: then it is asked for again."""
        raise NotImplementedError

    async def load(self, key: str) -> None:
        """Ask for the details, and show them.

        Raises:
            KsiError: There are none.
        """
        raise NotImplementedError

    def show_nothing(self, why: str) -> None:
        """Say why there are no details."""
        raise NotImplementedError

    # -- what is chosen ---------------------------------------------------------------------------

    def put(self, known: Known, now: float) -> None:
        """Fill the list, and the detail where that is another now."""
        self.put_list(known, now)
        if self._wish is not None:
            self.main_table().choose(self._wish)
            if self.main_table().chosen == self._wish:
                self._wish = None
        key = self.main_table().chosen
        if key is None:
            self.shown = None
            self.show_nothing("")
            return
        state, goes_on = self.state_of(key)
        is_old = goes_on and now - self._loaded_at > AGAIN_S
        if key != self.shown or state != self._state or is_old:
            self._state, self._loaded_at = state, now
            self.reload()

    def wish(self, key: str) -> None:
        """Choose a row as soon as it is there."""
        self._wish = key
        self.add_class("-open")
        self.draw()

    def reload(self) -> None:
        """Ask for the details again."""
        key = self.main_table().chosen
        if key is not None:
            begin(self, partial(self._load, key), "detail", replaces=True)

    async def _load(self, key: str) -> None:
        if key != self.shown:
            await asyncio.sleep(SETTLE_S)
        self.shown = key
        try:
            await self.load(key)
        except KsiError as error:
            if self.still_shows(key):
                self.show_nothing(texts.plain(error.message))

    def still_shows(self, key: str) -> bool:
        """Say whether it is this row's detail that is wanted, and the screen is still there."""
        return self.shown == key and bool(self.query(".detail"))

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """Show what is in another row."""
        if event.rows is self.main_table():
            self.draw()

    def on_rows_opened(self, event: Rows.Opened) -> None:
        """Go to the detail."""
        if event.rows is self.main_table():
            self.add_class("-open")
            self.detail_focus().focus()

    def detail_focus(self) -> Widget:
        """Return what is focused in the detail."""
        raise NotImplementedError

    def action_back(self) -> None:
        """Go back to the list; there, give up the filter."""
        if self.has_class("-open") or self.focused is not self.main_table():
            self.remove_class("-open")
            self.main_table().focus()
        else:
            super().action_back()
