"""Bounds on what one key, and all together, may take."""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ksi_daemon.protocol import Busy
from ksi_http.settings import HttpSettings

MAX_BUCKETS: Final = 10_000
STREAM_RETRY_S: Final = 5.0


class Buckets:
    """A token bucket for each name; what was not used for long is forgotten.

    Args:
        rate_per_s: How fast each fills again; 0 is no bound.
        burst: How much it holds.
    """

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate = rate_per_s
        self._burst = float(burst)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.clock = time.monotonic

    def take(self, name: str) -> float:
        """Take one; return 0, or how many seconds to wait for it."""
        if not self._rate:
            return 0.0
        now = self.clock()
        level, since = self._levels.pop(name, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        wait = 0.0
        if level >= 1.0:
            level -= 1.0
        else:
            wait = (1.0 - level) / self._rate
        self._levels[name] = (level, now)
        if len(self._levels) > MAX_BUCKETS:
            self._levels.popitem(last=False)
        return wait


class Limits:
    """The bounds of this server.

    Args:
        settings: The section ``[http]``.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._requests = Buckets(settings.requests_per_s, settings.request_burst)
        self._streams: defaultdict[str, int] = defaultdict(int)
        self.streams = 0

    def request(self, key_id: str) -> None:
        """Count a request.

        Raises:
            Busy: The key has made too many.
        """
        if wait := self._requests.take(key_id):
            bound = self._settings.requests_per_s
            raise Busy(
                f"a key may make {bound:g} requests a second (http.requests_per_s)",
                retry_after_s=round(wait, 3),
            )

    @contextmanager
    def stream(self, key_id: str) -> Iterator[None]:
        """Count a stream for as long as it is open.

        Raises:
            Busy: There are too many.
        """
        settings = self._settings
        if self.streams >= settings.max_streams:
            bound = f"{settings.max_streams} streams are open (http.max_streams)"
            raise Busy(bound, retry_after_s=STREAM_RETRY_S)
        if self._streams[key_id] >= settings.max_streams_per_key:
            bound = f"a key may have {settings.max_streams_per_key} streams"
            raise Busy(f"{bound} (http.max_streams_per_key)", retry_after_s=STREAM_RETRY_S)
        self.streams += 1
        self._streams[key_id] += 1
        try:
            yield
        finally:
            self.streams -= 1
            self._streams[key_id] -= 1
            if not self._streams[key_id]:
                del self._streams[key_id]
