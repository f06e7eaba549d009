"""Keeps the answers of keyed requests, so that no daemon does one of them twice."""

import asyncio
import logging
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Raw

from ksi_daemon.idempotency import KEEP_S, Key
from ksi_daemon.protocol import Busy, Conflict, ErrorBody, KsiError, TimedOut, Unavailable
from ksi_daemon.protocol.errors import error_from
from ksi_postgres.database import Database
from ksi_postgres.migrations import SQL

log = logging.getLogger(__name__)

AT_WORK_RETRY_S: Final = 1.0
KEEP: Final = timedelta(seconds=KEEP_S)
# What could not be written while Postgres was away; the oldest is given up past these.
MAX_OWED: Final = 10_000
MAX_OWED_BYTES: Final = 64 * 1024 * 1024
PAY_AGAIN_S: Final = 1.0


class Keys:
    """A ledger's keeper in Postgres.

    What it could not write, as Postgres was away, it owes: an answer, or that a key is free. `pay`
    writes it later, and a key that is owed is paid before it is claimed again.

    Args:
        database: The store.
        boot: What names this run of the daemon.
        is_alone: Whether no other daemon can use the store: then a key that another run has left
            without an answer is in doubt at once.
        in_doubt_after_s: After how long it is in doubt where others may be at work.
    """

    def __init__(
        self, database: Database, boot: str, *, is_alone: bool, in_doubt_after_s: float
    ) -> None:
        self._database = database
        self._boot = boot
        self._in_doubt_after = timedelta(seconds=0.0 if is_alone else in_doubt_after_s)
        self._owed: dict[Key, bytes | None] = {}  # the answer; None where the key is to be free
        self._owed_bytes = 0
        self._owes = asyncio.Event()
        self._paying = asyncio.Lock()

    async def claim(self, key: Key, digest: bytes) -> Raw | KsiError | None:
        """Take a key, or return what it was answered with before."""
        if key in self._owed:
            async with self._paying:
                await self._pay(key)
        was_up = self._database.is_up
        try:
            row = await self._database.fetchrow(
                SQL["claim_key"], *_columns(key), digest, self._boot, self._in_doubt_after
            )
        except (TimedOut, Unavailable, asyncio.CancelledError):
            if was_up:  # it may have been claimed all the same
                self._owe(key, None)
            raise
        assert row is not None
        if row["state"] == "claimed":
            return None
        if row["state"] == "another":
            raise Conflict("this idempotency key was used for another request; take a new one")
        if row["state"] == "at_work":
            raise Busy("another daemon is at work on this key", retry_after_s=AT_WORK_RETRY_S)
        if row["state"] == "in_doubt":
            raise Conflict(
                "a daemon ended while it worked on this key, and whether it was done is not known: "
                "look, and send it with a new key if it was not",
                details={"in_doubt": True, "began_at": row["began_at"].isoformat()},
            )
        return _answer(row["answer"])

    async def keep(self, key: Key, answer: Raw | KsiError) -> None:
        """Note the answer."""
        if isinstance(answer, KsiError):
            kept = msgspec.json.encode({"error": answer.body})
        else:
            kept = b'{"result":%b}' % bytes(answer)
        await self._settle(key, kept)

    async def release(self, key: Key) -> None:
        """Give the key back."""
        await self._settle(key, None)

    async def pay(self) -> None:
        """Write, for ever, what is owed, as soon as it can be written."""
        while True:
            await self._owes.wait()
            try:
                for key in list(self._owed):
                    async with self._paying:
                        await self._pay(key)
                self._owes.clear()
            except KsiError:
                await asyncio.sleep(PAY_AGAIN_S)

    async def _settle(self, key: Key, answer: bytes | None) -> None:
        try:
            await self._write(key, answer)
        except (KsiError, asyncio.CancelledError):
            self._owe(key, answer)
            raise

    async def _write(self, key: Key, answer: bytes | None) -> None:
        if answer is None:
            await self._database.execute(SQL["release_key"], *_columns(key), self._boot)
        else:
            await self._database.execute(SQL["keep_key"], *_columns(key), answer)

    async def _pay(self, key: Key) -> None:
        """Write what is owed for a key; the caller holds the lock, so that no claim is undone."""
        if key in self._owed:
            await self._write(key, self._owed[key])
            self._owed_bytes -= len(self._owed.pop(key) or b"")

    def _owe(self, key: Key, answer: bytes | None) -> None:
        self._owed_bytes -= len(self._owed.get(key) or b"")
        self._owed[key] = answer
        self._owed_bytes += len(answer or b"")
        while len(self._owed) > MAX_OWED or self._owed_bytes > MAX_OWED_BYTES:
            oldest = next(iter(self._owed))
            self._owed_bytes -= len(self._owed.pop(oldest) or b"")
            log.error("what became of a keyed request is forgotten", extra={"key": oldest[3]})
        self._owes.set()

    async def forget(self) -> None:
        """Forget the keys that are older than a day."""
        await self._database.execute(SQL["forget_keys"], KEEP)


class _Kept(msgspec.Struct, omit_defaults=True):
    result: Raw = Raw(b"null")
    error: ErrorBody | None = None


def _answer(kept: bytes) -> Raw | KsiError:
    read = msgspec.json.decode(kept, type=_Kept)
    return read.result if read.error is None else error_from(read.error)


def _columns(key: Key) -> tuple[str, str, str, str]:
    tenant, principal, user, text = key
    return tenant, principal, user or "", text
