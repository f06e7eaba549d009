"""Leaves a provider alone that has failed time and again, until a probe finds it there."""

import asyncio
from typing import Literal

State = Literal["closed", "open", "half_open"]


class Circuit:
    """Closed while all is well; open after so many failures in a row; then half open.

    Half open it lets one call pass. If that is answered the circuit closes; if it fails, it stays
    open for as long again; if it tells nothing, the next call is the probe.

    Args:
        failures: How many in a row open it; 0 is never.
        open_s: How long it stays open.
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self.failed = 0
        self.why = ""
        self._limit = failures
        self._open_s = open_s
        self._opened_at: float | None = None
        self._passed = 0
        self._probe = 0  # the number of the call that tries; 0 where none does
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        """How it stands."""
        if self._opened_at is None:
            return "closed"
        return "half_open" if self._probe or self._remaining_s() <= 0 else "open"

    def _remaining_s(self) -> float:
        assert self._opened_at is not None
        return self._opened_at + self._open_s - asyncio.get_running_loop().time()

    @property
    def lets_pass(self) -> bool:
        """Whether a call could pass now."""
        return self._opened_at is None or (not self._probe and self._remaining_s() <= 0)

    def try_pass(self) -> int:
        """Return a number for a call that may pass, 0 where it may not.

        Who may must tell how it went, with one of `succeed`, `fail` and `drop`.
        """
        if not self.lets_pass:
            return 0
        self._passed += 1
        if self._opened_at is not None:
            self._probe = self._passed
        return self._passed

    def delay_s(self) -> float | None:
        """Return how long it stays open; ``None`` where that depends on the probe."""
        if self._opened_at is None:
            return 0.0
        return None if self._probe else max(self._remaining_s(), 0.0)

    async def wait(self, timeout_s: float) -> None:
        """Wait until it may let a call pass; at most that long."""
        changed, delay = self._changed, self.delay_s()
        limit = timeout_s if delay is None else min(delay, timeout_s)
        try:
            async with asyncio.timeout(limit):
                await changed.wait()
        except TimeoutError:
            return

    def succeed(self) -> None:
        """Note that the provider answered."""
        self.failed, self.why = 0, ""
        if self._opened_at is not None:
            self._opened_at, self._probe = None, 0
            self._tell()

    def fail(self, why: str) -> bool:
        """Note that it did not; say whether that has opened the circuit just now."""
        self.failed += 1
        self.why = why
        was_open = self._opened_at is not None
        if (self._probe or not was_open) and 0 < self._limit <= self.failed:
            self._opened_at = asyncio.get_running_loop().time()
            self._probe = 0
            self._tell()
            return not was_open
        return False

    def drop(self, number: int) -> None:
        """Note that the call of that number ended without telling anything of the provider."""
        if number == self._probe != 0:
            self._probe = 0
            self._tell()

    def _tell(self) -> None:
        """Wake those who wait; each looks for itself."""
        self._changed.set()
        self._changed = asyncio.Event()
