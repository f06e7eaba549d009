"""A line on a terminal's stderr that says what is going on, and leaves no trace."""

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ksi_cli import output

FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
TICK_S: Final = 0.1
CLEAR: Final = "\r\x1b[K"


class Spinner:
    """Shows ``text`` while there is one and nobody has hidden it; silent where nobody looks.

    Args:
        text: Anything whose ``str()`` is what to show; empty shows nothing.
    """

    def __init__(self, text: object) -> None:
        self.is_hidden = False
        self._text = text
        self._shows = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_drawn = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Draw it again and again within this block."""
        if not self._shows:
            yield
            return
        failed: Exception | None = None
        async with asyncio.TaskGroup() as group:
            drawing = group.create_task(self._draw(), name="spinner")
            try:
                yield
            except Exception as error:  # noqa: BLE001  raised below: the group would wrap it
                failed = error
            finally:
                drawing.cancel()
                self.clear()
        if failed is not None:
            raise failed

    def clear(self) -> None:
        """Take it away until it is drawn next."""
        if self._is_drawn:
            self._is_drawn = False
            sys.stderr.write(CLEAR)
            sys.stderr.flush()

    async def _draw(self) -> None:
        for frame in itertools.cycle(FRAMES):
            text = "" if self.is_hidden else str(self._text)
            if text:
                room = shutil.get_terminal_size().columns - 3
                sys.stderr.write(f"{CLEAR}{frame} {output.clean(text)[:room]}")
                sys.stderr.flush()
                self._is_drawn = True
            else:
                self.clear()
            await asyncio.sleep(TICK_S)
