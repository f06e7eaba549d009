"""Requests that bear a key are done once, however often they are sent."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw, Struct

from ksi_daemon.protocol import Busy, Conflict, Event, Failed, InvalidData, KsiError, TimedOut
from ksi_daemon.protocol.errors import RETRYABLE_CODES
from ksi_daemon.protocol.wire import ENCODE_ERRORS, encode

KEEP_S: Final = 24 * 3600.0
MAX_KEYS: Final = 100_000
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
MAX_KEY_LENGTH: Final = 200

log = logging.getLogger(__name__)

# Tenant, principal, the user it speaks for, key: two of any may use the same key.
Key = tuple[str, str, str | None, str]


class _Entry(Struct):
    digest: bytes
    task: asyncio.Task[Raw | KsiError]
    began_at: float
    size: int = 0


def digest_of(event: Event) -> bytes:
    """Fingerprint a request, so that a key is not used for two of them; spacing does not count."""
    content = msgspec.json.encode((event.name, event.data), order="deterministic")
    return hashlib.blake2b(content, digest_size=16).digest()


class Keeper(Protocol):
    """Keeps answers where they outlast the daemon."""

    async def claim(self, key: Key, digest: bytes) -> Raw | KsiError | None:
        """Take a key for work that begins, or return what it was answered with before.

        Raises:
            Conflict: It came with another request, or a daemon ended in the middle of its work.
            Busy: Another daemon is at it.
        """

    async def keep(self, key: Key, answer: Raw | KsiError) -> None:
        """Note the answer."""

    async def release(self, key: Key) -> None:
        """Give the key back: nothing was done."""


class Ledger:
    """Keeps the answers of keyed requests for a day: in memory, and with a keeper if it has one.

    The work goes on when its asker's connection is lost, so that a repetition finds the answer.
    Past `MAX_KEYS` keys or `MAX_KEPT_BYTES` of answers the oldest finished ones are forgotten.
    A retryable error is not kept: the repetition tries again.
    """

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._entries: dict[Key, _Entry] = {}
        self._kept_bytes = 0
        self.keeper: Keeper | None = None

    def __len__(self) -> int:
        return len(self._entries)

    async def once(
        self,
        key: Key,
        digest: bytes,
        work: Callable[[], Coroutine[Any, Any, Any]],
        timeout_s: float = 0.0,
    ) -> Raw:
        """Return the answer of ``work``, which is done only if this key is new.

        The work ends after ``timeout_s`` (0 is never) even if nobody waits for it any more.

        Raises:
            Busy: `MAX_KEYS` requests are being worked on.
            Conflict: The key came with another request before.
            KsiError: What the work ended with.
        """
        if not 0 < len(key[3]) <= MAX_KEY_LENGTH:
            raise InvalidData(f"an idempotency key has 1 to {MAX_KEY_LENGTH} characters")
        if "\0" in "".join(part or "" for part in key):
            raise InvalidData("an idempotency key, and whose it is, can't have a NUL in it")
        entry = self._entries.get(key)
        if entry is None or entry.task.cancelled():
            self._make_room()
            task = self._tasks.create_task(
                self._run(key, digest, work, timeout_s), name=f"keyed {key[3]}"
            )
            entry = self._entries[key] = _Entry(digest, task, time.monotonic())
        elif entry.digest != digest:
            raise Conflict("this idempotency key was used for another request; take a new one")
        answer = await asyncio.shield(entry.task)
        if isinstance(answer, KsiError):
            raise answer
        return answer

    def running_tasks(self) -> set[asyncio.Task[Any]]:
        """List the work that is not done yet."""
        return {entry.task for entry in self._entries.values() if not entry.task.done()}

    def cancel(self, key: Key) -> None:
        """Stop the work under a key."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.task.cancel()

    async def _run(
        self,
        key: Key,
        digest: bytes,
        work: Callable[[], Coroutine[Any, Any, Any]],
        timeout_s: float,
    ) -> Raw | KsiError:
        try:
            answer, is_kept = await self._kept_or_done(key, digest, work, timeout_s)
        except asyncio.CancelledError:
            del self._entries[key]
            raise
        if isinstance(answer, KsiError) and (not is_kept or answer.code in RETRYABLE_CODES):
            del self._entries[key]
        elif isinstance(answer, Raw):
            self._entries[key].size = len(bytes(answer))
            self._kept_bytes += self._entries[key].size
        return answer

    async def _kept_or_done(
        self,
        key: Key,
        digest: bytes,
        work: Callable[[], Coroutine[Any, Any, Any]],
        timeout_s: float,
    ) -> tuple[Raw | KsiError, bool]:
        """Return the answer, and whether a repetition shall get the same."""
        keeper = self.keeper
        try:
            before = await keeper.claim(key, digest) if keeper is not None else None
        except KsiError as refused:
            return refused, False
        except Exception:
            # Whatever a keeper raises: it is this request's end, and not the daemon's.
            log.exception("a key could not be claimed", extra={"key": key[3]})
            return Failed("the key could not be claimed; the daemon's log says why"), False
        if before is not None:
            return before, True
        answer: Raw | KsiError | None = None
        try:
            answer = await _done(work(), timeout_s)
        finally:
            if keeper is not None:
                # also where the work was cancelled: shielded, so that it is noted all the same
                await asyncio.shield(_settle(keeper, key, answer))
        return answer, True

    def _make_room(self) -> None:
        oldest = time.monotonic() - KEEP_S
        for key, entry in list(self._entries.items()):
            full = len(self._entries) >= MAX_KEYS or self._kept_bytes > MAX_KEPT_BYTES
            if entry.began_at > oldest and not full:
                break
            if entry.task.done():
                self._kept_bytes -= entry.size
                del self._entries[key]
        if len(self._entries) >= MAX_KEYS:
            raise Busy(f"{MAX_KEYS} keyed requests are being worked on", retry_after_s=1.0)


async def _done(work: Coroutine[Any, Any, Any], timeout_s: float) -> Raw | KsiError:
    try:
        async with asyncio.timeout(timeout_s or None):
            return Raw(encode(await work))
    except TimeoutError:
        return TimedOut(f"it took longer than {timeout_s} s (request_timeout_s)")
    except KsiError as error:
        return error
    except ENCODE_ERRORS as error:
        return Failed(f"the answer has no JSON form: {error}")


async def _settle(keeper: Keeper, key: Key, answer: Raw | KsiError | None) -> None:
    """Have an answer kept, or the key given back."""
    try:
        if answer is None or (isinstance(answer, KsiError) and answer.code in RETRYABLE_CODES):
            await keeper.release(key)
        else:
            await keeper.keep(key, answer)
    except KsiError as error:
        log.error("an answer could not be kept", extra={"key": key[3], "error": error.message})
    except Exception:
        # The work is done, and its answer there: what the keeper raises must not take its place.
        log.exception("an answer could not be kept", extra={"key": key[3]})
