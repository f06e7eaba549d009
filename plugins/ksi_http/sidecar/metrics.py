"""Counts for Prometheus, in its text format."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted; routes are named by their pattern, so that their number is bounded."""

    def __init__(self) -> None:
        self._answers: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(BOUNDS_S))
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self.refused_connections = 0
        self.cut_off: defaultdict[str, int] = defaultdict(int)

    def answered(self, method: str, route: str, status: int, took_s: float) -> None:
        """Count an answer."""
        method = method if method in METHODS else "other"
        self._answers[method, route, status] += 1
        self._counts[route] += 1
        self._seconds[route] += took_s
        buckets = self._buckets[route]
        for at, bound in enumerate(BOUNDS_S):
            if took_s <= bound:
                buckets[at] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """Write all of it."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        yield "# TYPE ksi_http_requests_total counter"
        for (method, route, status), count in sorted(self._answers.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            yield f"ksi_http_requests_total{{{labels}}} {count}"
        yield "# TYPE ksi_http_request_seconds histogram"
        for route, count in sorted(self._counts.items()):
            for bound, below in zip(BOUNDS_S, self._buckets[route], strict=True):
                yield f'ksi_http_request_seconds_bucket{{route="{route}",le="{bound}"}} {below}'
            yield f'ksi_http_request_seconds_bucket{{route="{route}",le="+Inf"}} {count}'
            yield f'ksi_http_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}'
            yield f'ksi_http_request_seconds_count{{route="{route}"}} {count}'
        yield "# TYPE ksi_http_cut_off_total counter"
        for why, count in sorted(self.cut_off.items()):
            yield f'ksi_http_cut_off_total{{why="{why}"}} {count}'
        for name, value in gauges.items():
            yield f"# TYPE ksi_http_{name} gauge"
            yield f"ksi_http_{name} {value:g}"
