"""Asking again while Postgres is away."""

import asyncio

import pytest

from ksi_daemon.protocol import Busy, Conflict, KsiError, TimedOut, Unavailable
from ksi_postgres import patience
from ksi_postgres.patience import until_there


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long is waited: the longest that chance may choose, and not really."""
    waited: list[float] = []

    async def sleep(delay_s: float) -> None:
        waited.append(delay_s)

    monkeypatch.setattr("random.uniform", lambda _, most: most)
    monkeypatch.setattr(patience, "asyncio", type("Still", (), {"sleep": staticmethod(sleep)}))
    return waited


async def test_it_asks_until_there_is_an_answer_and_waits_ever_longer(pauses: list[float]) -> None:
    errors: list[KsiError] = [Unavailable("away"), TimedOut("slow"), *[Busy("in the way")] * 6]
    told: list[KsiError] = []

    async def ask() -> str:
        if errors:
            raise errors.pop(0)
        return "there"

    assert await until_there(ask, max_delay_s=0.5, failed=told.append) == "there"
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5]
    assert len(told) == 8


async def test_what_says_nothing_of_postgres_is_raised_at_once(pauses: list[float]) -> None:
    async def ask() -> None:
        raise Conflict("it is taken")

    with pytest.raises(Conflict):
        await until_there(ask)
    assert pauses == []


async def test_who_does_not_want_to_wait_any_longer_may_go() -> None:
    async def ask() -> None:
        raise Unavailable("away")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await until_there(ask)
