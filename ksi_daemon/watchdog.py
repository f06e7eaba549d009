"""Notices a blocked event loop from outside, and names who blocks it."""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final

log = logging.getLogger(__name__)

BEAT_S: Final = 0.25
MAX_STACK_FRAMES: Final = 20


class Watchdog:
    """A thread that looks whether the loop still beats.

    Args:
        stall_s: After how long without a beat the loop counts as blocked; 0 is never.
        packages: Gives the top-level packages of the plugins and whose they are, so that the
            innermost frame of one of them names the guilty one.
    """

    def __init__(self, stall_s: float, packages: Callable[[], dict[str, str]]) -> None:
        self.lag_s = 0.0
        self.stalls = 0
        self.last_stall: str | None = None
        self._stall_s = stall_s
        self._packages = packages
        self._beat_at = time.monotonic()
        self._watched = threading.get_ident()

    async def run(self, each_beat: Iterable[Callable[[], None]]) -> None:
        """Beat until cancelled, and call what wants to be called at each beat."""
        stop = threading.Event()
        if self._stall_s:
            self._beat_at = time.monotonic()
            threading.Thread(target=self._watch, args=(stop,), name="watchdog", daemon=True).start()
        try:
            while True:
                expected = time.monotonic() + BEAT_S
                await asyncio.sleep(BEAT_S)
                self._beat_at = time.monotonic()
                self.lag_s = max(0.0, self._beat_at - expected)
                for call in each_beat:
                    call()
        finally:
            stop.set()

    def _watch(self, stop: threading.Event) -> None:
        reported = 0.0
        while not stop.wait(self._stall_s / 4):
            beat_at = self._beat_at
            if time.monotonic() - beat_at > self._stall_s + BEAT_S and reported != beat_at:
                reported = beat_at
                self._report(sys._current_frames().get(self._watched))

    def _report(self, frame: FrameType | None) -> None:
        stack = traceback.extract_stack(frame, MAX_STACK_FRAMES) if frame else []
        plugin = self._guilty(frame)
        self.stalls += 1
        self.last_stall = f"{plugin or 'something'} blocked the loop"
        log.error(
            "the event loop is blocked",
            extra={"plugin": plugin, "stack": "".join(traceback.format_list(stack))},
        )

    def _guilty(self, frame: FrameType | None) -> str | None:
        packages = self._packages()
        while frame is not None:
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if package in packages:
                return packages[package]
            frame = frame.f_back
        return None
