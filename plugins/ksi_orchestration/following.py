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
from ksi_orchestration.store import Kept, Open, Store, no_orchestration
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
                kept = await self._find(context, which)
                said = await self._store.said(context.tenant, which, after, limit)
                left_s = until - loop.time()
                if said or kept.has_ended or left_s <= 0:
                    last = said[-1].number if said else after
                    return TranscriptTold(
                        utterances=tuple(said), after=last, status=kept.told.status
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
                kept = await self._find(context, which)
                said = await self._store.said(context.tenant, which, after, PAGE)
                for each in said:
                    yield each
                    after = each.number
                if len(said) == PAGE:
                    continue
                for began in await self._began(kept, begun):
                    yield began
                now = structs.replace(kept.told, result=None)
                if now != was:
                    yield StatusChanged(orchestration=now)
                    was = now
                if kept.has_ended:
                    return
                await asyncio.wait({news}, timeout=LOOK_AGAIN_S)

    async def _began(self, kept: Kept, begun: set[str]) -> list[TurnBegan]:
        """Return the turns that go on and were not told of yet."""
        if kept.has_ended:
            return []
        moves = await self._store.open_moves(kept.tenant, kept.id)
        fresh = [each for each in moves if each.run is not None and each.run not in begun]
        begun.update(each.run for each in fresh if each.run is not None)
        return [_began(each) for each in fresh]

    async def _find(self, context: Context, which: str) -> Kept:
        kept = await self._store.find(context.tenant, context.user, which)
        if kept is None:
            raise no_orchestration(which)
        return kept


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
