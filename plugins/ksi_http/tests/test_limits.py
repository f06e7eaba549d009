"""Bounds on what one key may take, by a clock of the test's own."""

from ksi_http.sidecar import limits
from ksi_http.sidecar.limits import Buckets


def test_a_bucket_gives_its_burst_and_then_what_flows_in() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 3)
    buckets.clock = lambda: now[0]

    waits = [buckets.take("a") for _ in range(4)]
    now[0] = 0.5
    later = [buckets.take("a"), buckets.take("a")]
    now[0] = 100.0
    full = [buckets.take("a") for _ in range(4)]

    assert waits == [0, 0, 0, 0.5]
    assert later == [0, 0.5]
    assert full == [0, 0, 0, 0.5]


def test_what_waits_does_not_wait_longer_for_asking_again() -> None:
    buckets = Buckets(1.0, 1)
    buckets.clock = lambda: 0.0
    buckets.take("a")

    assert [buckets.take("a") for _ in range(3)] == [1.0, 1.0, 1.0]


def test_each_has_a_bucket_of_its_own_and_no_rate_is_no_bound() -> None:
    buckets, free = Buckets(1.0, 1), Buckets(0.0, 1)
    buckets.clock = lambda: 0.0

    assert [buckets.take("a"), buckets.take("b"), buckets.take("a")] == [0, 0, 1.0]
    assert [free.take("a") for _ in range(5)] == [0] * 5


def test_buckets_that_were_not_used_for_long_are_forgotten() -> None:
    buckets = Buckets(0.001, 1)
    buckets.clock = lambda: 0.0
    for number in range(limits.MAX_BUCKETS + 1):
        buckets.take(str(number))

    assert buckets.take("0") == 0  # which begins anew
    assert buckets.take("2") > 0
