"""Keeps the answers of keyed requests, so that no daemon does one of them twice."""

import logging
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Raw

from ksi_daemon.idempotency import KEEP_S, Key
from ksi_daemon.protocol import Busy, Conflict, ErrorBody, KsiError
from ksi_daemon.protocol.errors import error_from
from ksi_postgres.database import Database
from ksi_postgres.migrations import SQL

log = logging.getLogger(__name__)

AT_WORK_RETRY_S: Final = 1.0
KEEP: Final = timedelta(seconds=KEEP_S)


class Keys:
    """A ledger's keeper in Postgres.

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

    async def claim(self, key: Key, digest: bytes) -> Raw | KsiError | None:
        """Take a key, or return what it was answered with before."""
        row = await self._database.fetchrow(
            SQL["claim_key"], *_columns(key), digest, self._boot, self._in_doubt_after
        )
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
        await self._database.execute(SQL["keep_key"], *_columns(key), kept)

    async def release(self, key: Key) -> None:
        """Give the key back."""
        await self._database.execute(SQL["release_key"], *_columns(key))

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
