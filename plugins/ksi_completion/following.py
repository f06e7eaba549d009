"""Follows a turn's stream from any offset on: from the conversation, then from memory."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from ksi_completion.events import (
    StreamChunk,
    StreamRestarted,
    StreamStatus,
    StreamStep,
    StreamToolCall,
    StreamToolResult,
)
from ksi_completion.messages import decode_parts
from ksi_completion.store import Store, read_usage, result_of
from ksi_completion.streams import Hub, Live, Position
from ksi_completion.turns import DIED, Turns, texts_of
from ksi_daemon.protocol import NotFound
from ksi_models.events import ToolCallPart, ToolResultPart

LOOK_AGAIN_S: Final = 10.0
ENDED: Final = ("succeeded", "failed", "cancelled")


class Following:
    """Reads turns for those who follow them.

    Args:
        store: Knows what they have said.
        turns: Knows what they say.
    """

    def __init__(self, store: Store, turns: Turns) -> None:
        self._store = store
        self._turns = turns
        self._hub: Hub = turns.hub

    async def follow(
        self, tenant: str, run: str, position: Position
    ) -> AsyncGenerator[StreamChunk]:
        """Yield what a turn says from a position on, and in the end how it ended."""
        while True:
            with self._turns.waiters.watching(run) as news:
                live = self._hub.find(run)
                if live is not None:
                    live.enter()
                    try:
                        async with aclosing(self._follow_live(tenant, live, position)) as chunks:
                            async for chunk in chunks:
                                yield chunk
                    finally:
                        live.leave()
                    if live.result is not None:
                        yield live.result
                        return
                row = await self._store.outcome(tenant, run)
                if row is None:
                    raise NotFound(f"there is no turn {run}")
                async for chunk in self._kept(tenant, run, position):
                    yield chunk
                if row["status"] in ENDED:
                    yield result_of(row)
                    return
                if row["status"] == "waiting" and not position.was_told_to_wait:
                    position.was_told_to_wait = True
                    yield StreamStatus(waits_for="turn", message="another turn is at work")
                await self._wait(run, news)

    async def _wait(self, run: str, news: asyncio.Future[None]) -> None:
        await asyncio.wait({news}, timeout=LOOK_AGAIN_S)

    async def _follow_live(
        self, tenant: str, live: Live, position: Position
    ) -> AsyncGenerator[StreamChunk]:
        while True:
            if position.offset < live.first or not position.is_checked:
                async for chunk in self._kept(tenant, live.run, position):
                    yield chunk
            for chunk in live.read(position):
                yield chunk
            if live.result is not None or self._hub.find(live.run) is not live:
                return
            await live.news()

    async def _kept(self, tenant: str, run: str, position: Position) -> AsyncGenerator[StreamChunk]:
        """Yield what the conversation has of a turn from a position on."""
        rows = await self._store.said_by_turn(tenant, run, position.offset)
        void = min(
            (row["starts_at"] for row in rows if row["attempt"] > position.attempt), default=None
        )
        attempt = max((row["attempt"] for row in rows), default=1)
        position.is_checked = True
        if void is not None and position.attempt and position.offset > void:
            position.offset, position.attempt = void, attempt
            yield StreamRestarted(attempt=attempt, offset=void, why=DIED)
            rows = await self._store.said_by_turn(tenant, run, void)
        for row in rows:
            for chunk in chunks_of(run, row, position):
                yield chunk


def chunks_of(run: str, row: Any, position: Position) -> list[StreamChunk]:
    """Return what a message is in its turn's stream from a position on, and move that on."""
    if row["parts"] is None or position.offset >= row["starts_at"] + row["units"]:
        return []
    found: list[StreamChunk] = []
    offset, attempt = row["starts_at"], row["attempt"]
    position.attempt = max(position.attempt, attempt)
    parts = decode_parts(row["parts"])
    for kind, text in texts_of(parts):
        skip = max(position.offset - offset, 0)
        if skip < len(text):
            found.append(kind(attempt=attempt, offset=offset + skip, text=text[skip:]))
        offset += len(text)
    singles = _singles(run, row, parts, offset)
    found += [single for single in singles if single.offset >= position.offset]
    position.offset = row["starts_at"] + row["units"]
    return found


def _singles(
    run: str, row: Any, parts: tuple[Any, ...], offset: int
) -> list[StreamToolCall | StreamToolResult | StreamStep]:
    first = max(row["place"] - 1, 0)
    attempt = row["attempt"]
    made: list[StreamToolCall | StreamToolResult | StreamStep] = []
    calls = [part for part in parts if isinstance(part, ToolCallPart | ToolResultPart)]
    for index, part in enumerate(calls, first):
        call_id, at = f"{run}:{row['step']}:{index}", offset + len(made)
        if isinstance(part, ToolCallPart):
            made.append(
                StreamToolCall(
                    attempt=attempt,
                    offset=at,
                    call_id=call_id,
                    name=part.name,
                    arguments=part.arguments,
                )
            )
        else:
            made.append(
                StreamToolResult(
                    attempt=attempt,
                    offset=at,
                    call_id=call_id,
                    name=part.name,
                    content=part.content,
                    is_error=part.is_error,
                )
            )
    if row["place"] == 0 and row["usage"] is not None:
        made.append(
            StreamStep(
                attempt=attempt,
                offset=offset + len(made),
                model=row["model"] or "",
                usage=read_usage(row["usage"]),
                cost_usd=None if row["cost_usd"] is None else float(row["cost_usd"]),
            )
        )
    return made
