"""A million requests of all kinds, after which the daemon must hold what it held before."""

from collections.abc import Iterator
from typing import Final

from processes import daemon, load
from report import Figure, at_most

REQUESTS: Final = 1_000_000
QUICK_REQUESTS: Final = 100_000
MB: Final = 1024 * 1024


def measure(*, quick: bool) -> Iterator[Figure]:
    """Compare the memory after a tenth of the requests with that after all of them."""
    total = QUICK_REQUESTS if quick else REQUESTS
    with daemon() as ksi:
        warm = load("soak", path=ksi.path, count=total // 10)
        before = ksi.rss_bytes()
        done = load("soak", path=ksi.path, count=total)
        after = ksi.rss_bytes()
    drift = (after - before) / before * 100
    details = (
        f"{before / MB:.1f} MB after {warm['answered']:,.0f} requests, {after / MB:.1f} MB after "
        f"{done['answered']:,.0f} more, {done['errors']:,.0f} of them errors on purpose; with "
        f"{done['pushed']:,.0f} pushed events and {done['connected']:,.0f} connections; "
        f"{done['answered'] / done['took_s']:,.0f} requests/s"
    )
    yield at_most("soak, memory's drift", drift, 5, " %", details)
