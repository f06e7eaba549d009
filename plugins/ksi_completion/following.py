"""Follows a turn's stream from any offset on: from the conversation, then from memory."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from msgspec import structs

from ksi_completion.events import (
    CompletionResult,
    StreamAccepted,
    StreamChunk,
    StreamRestarted,
    StreamStatus,
    StreamStep,
    StreamText,
    StreamThinking,
    StreamToolCall,
    StreamToolResult,
)
from ksi_completion.messages import decode_parts
from ksi_completion.relays import DIED, FOLLOW_S
from ksi_completion.store import Store, read_usage, result_of
from ksi_completion.streams import Hub, Live, Position
from ksi_completion.turns import Turns, texts_of
from ksi_daemon.protocol import NotFound
from ksi_models.events import ToolCallPart, ToolResultPart

LOOK_AGAIN_S: Final = 10.0
ENDED: Final = ("succeeded", "failed", "cancelled")


class Following:
    """Reads turns for those who follow them.

    Args:
        store: Knows what they have said.
        turns: Knows what they say.
        gather_s: For how long text is gathered after a chunk.
    """

    def __init__(self, store: Store, turns: Turns, gather_s: float) -> None:
        self._store = store
        self._gather_s = gather_s
        self._turns = turns
        self._hub: Hub = turns.hub

    async def follow(
        self, tenant: str, run: str, position: Position
    ) -> AsyncGenerator[StreamChunk]:
        """Yield what a turn says from a position on, and in the end how it ended."""
        while True:
            with self._turns.waiters.watching(run) as news:
                live = self._hub.find(run)
                if live is None and self._turns.is_expected(run):
                    await asyncio.wait({news}, timeout=LOOK_AGAIN_S)
                    live = self._hub.find(run)
                chunks = (
                    self._follow_elsewhere(tenant, run, position, news)
                    if live is None
                    else self._follow_live(tenant, live, position)
                )
                async with aclosing(chunks):
                    async for chunk in chunks:
                        yield chunk
                        if isinstance(chunk, CompletionResult):
                            return
            position.is_checked = position.offset == 0

    async def _follow_live(
        self, tenant: str, live: Live, position: Position
    ) -> AsyncGenerator[StreamChunk]:
        loop = asyncio.get_running_loop()
        while True:
            if position.offset < live.first or not position.is_checked:
                async for chunk in self._kept(tenant, live.run, position):
                    yield chunk
            for chunk in live.read(position):
                yield chunk
            if live.result is not None:
                yield live.result
            if live.result is not None or self._hub.find(live.run) is not live:
                return
            told_at = loop.time()
            if not live.has_news(position):
                await live.news()
            left_s = told_at + self._gather_s - loop.time()
            if left_s > 0 and position.offset > 0 and live.result is None:
                await asyncio.sleep(left_s)  # each chunk costs as much as what it says

    async def _follow_elsewhere(
        self, tenant: str, run: str, position: Position, ended: asyncio.Future[None]
    ) -> AsyncGenerator[StreamChunk]:
        """Yield what a turn has said, and what the daemon that is at it hands on."""
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
        until = asyncio.get_running_loop().time() + LOOK_AGAIN_S
        while not ended.done() and asyncio.get_running_loop().time() < until:
            async for chunk in self._handed_on(tenant, run, position, ended):
                yield chunk

    async def _handed_on(
        self, tenant: str, run: str, position: Position, ended: asyncio.Future[None]
    ) -> AsyncGenerator[StreamChunk]:
        """Yield what the daemon at work has handed on since, or wait for more."""
        relays = self._turns.relays
        with relays.following(run) as news:
            handed, position.relayed = await relays.read(tenant, run, position.relayed)
            for each in handed:
                if _is_ahead(each, position):
                    async for chunk in self._kept(tenant, run, position):
                        yield chunk
                for chunk in passed_on(each, position):
                    yield chunk
            if not handed:
                await asyncio.wait(
                    {news, ended}, timeout=FOLLOW_S, return_when=asyncio.FIRST_COMPLETED
                )

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


def _is_ahead(chunk: StreamChunk, position: Position) -> bool:
    """Say whether something lies between a follower and what is handed on."""
    if isinstance(chunk, StreamStatus | StreamRestarted):
        return False
    return getattr(chunk, "offset", 0) > position.offset


def passed_on(chunk: StreamChunk, position: Position) -> list[StreamChunk]:
    """Return what is new to a follower in a chunk of another daemon, and move its position on."""
    if isinstance(chunk, StreamStatus):
        return [chunk]
    if isinstance(chunk, StreamRestarted):
        is_void = chunk.attempt > position.attempt and position.offset > chunk.offset
        position.attempt = max(position.attempt, chunk.attempt)
        if is_void:
            position.offset = chunk.offset
        return [chunk] if is_void else []
    if isinstance(chunk, CompletionResult | StreamAccepted) or chunk.attempt < position.attempt:
        return []
    position.attempt = chunk.attempt
    if isinstance(chunk, StreamText | StreamThinking):
        skip = max(position.offset - chunk.offset, 0)
        if skip >= len(chunk.text):
            return []
        position.offset = chunk.offset + len(chunk.text)
        if skip:
            chunk = structs.replace(chunk, offset=chunk.offset + skip, text=chunk.text[skip:])
        return [chunk]
    if chunk.offset < position.offset:
        return []
    position.offset = chunk.offset + 1
    return [chunk]


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
