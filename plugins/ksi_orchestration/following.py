"""Follows an orchestration in whichever daemon it is worked on: reads, and waits for news."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from msgspec import structs

from ksi_daemon.protocol import Context
from ksi_orchestration.events import (
    FollowChunk,
    Orchestration,
    StatusChanged,
    TranscriptTold,
    TurnBegan,
)
from ksi_orchestration.store import Open, Seen, Store, no_orchestration
from ksi_orchestration.telling import Telling, about

LOOK_AGAIN_S: Final = 5.0  # where a word that was told got lost
PAGE: Final = 100


class Following:
    """Reads orchestrations for those who follow them.

    Args:
        store: Keeps them.
        telling: Wakes who waits.
    """

    def __init__(self, store: Store, telling: Telling) -> None:
        self._store = store
        self._waiters = telling.waiters

    async def transcript(
        self,
        context: Context,
        which: str,
        after: int,
        limit: int,
        wait_s: float,
    ) -> TranscriptTold:
        """Return what was said after a number, as soon as there is something, or the time is up.

        Raises:
            NotFound: There is no such orchestration.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            with self._waiters.watching(about(context.tenant, which)) as news:
                seen = await self._look(context, which, after, limit)
                left_s = until - loop.time()
                if seen.said or seen.kept.has_ended or left_s <= 0:
                    last = seen.said[-1].number if seen.said else after
                    return TranscriptTold(
                        utterances=seen.said, after=last, status=seen.kept.told.status
                    )
                await asyncio.wait({news}, timeout=min(left_s, LOOK_AGAIN_S))

    async def follow(
        self,
        context: Context,
        which: str,
        after: int,
    ) -> AsyncGenerator[FollowChunk]:
        """Yield what is said, who begins to speak and how it stands, until it has ended.

        Raises:
            NotFound: There is no such orchestration.
        """
        was: Orchestration | None = None
        begun: set[str] = set()
        while True:
            with self._waiters.watching(about(context.tenant, which)) as news:
                seen = await self._look(context, which, after, PAGE)
                for each in seen.said:
                    yield each
                    after = each.number
                if len(seen.said) == PAGE:
                    continue
                for began in _new_ones(seen, begun):
                    yield began
                now = structs.replace(seen.kept.told, result=None)
                if now != was:
                    yield StatusChanged(orchestration=now)
                    was = now
                if seen.kept.has_ended:
                    return
                await asyncio.wait({news}, timeout=LOOK_AGAIN_S)

    async def _look(self, context: Context, which: str, after: int, limit: int) -> Seen:
        seen = await self._store.look(context.tenant, context.user, which, after, limit)
        if seen is None:
            raise no_orchestration(which)
        return seen


def _new_ones(seen: Seen, begun: set[str]) -> list[TurnBegan]:
    """Return the turns that go on and were not told of yet, and note that they are."""
    if seen.kept.has_ended:
        return []
    fresh = [each for each in seen.moves if each.run is not None and each.run not in begun]
    begun.update(each.run for each in fresh if each.run is not None)
    return [_began(each) for each in fresh]


def _began(each: Open) -> TurnBegan:
    assert each.run is not None
    move = each.move
    return TurnBegan(
        stage=move.stage,
        round=move.round,
        member=move.member,
        agent=move.agent,
        run_id=each.run,
        item=move.item,
    )
