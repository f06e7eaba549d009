"""Requests that bear a key are done once, however often they are sent."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from ksi_daemon.protocol import Busy, Conflict, Event, Failed, InvalidData, KsiError, TimedOut
from ksi_daemon.protocol.errors import RETRYABLE_CODES
from ksi_daemon.protocol.wire import ENCODE_ERRORS, encode

KEEP_S: Final = 24 * 3600.0
MAX_KEYS: Final = 100_000
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
MAX_KEY_LENGTH: Final = 200

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


class Ledger:
    """Keeps the answers of keyed requests for a day, in memory.

    The work goes on when its asker's connection is lost, so that a repetition finds the answer.
    Past `MAX_KEYS` keys or `MAX_KEPT_BYTES` of answers the oldest finished ones are forgotten.
    A retryable error is not kept: the repetition tries again.
    """

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._entries: dict[Key, _Entry] = {}
        self._kept_bytes = 0

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
        entry = self._entries.get(key)
        if entry is None or entry.task.cancelled():
            self._make_room()
            task = self._tasks.create_task(
                self._run(key, work(), timeout_s), name=f"keyed {key[3]}"
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
        self, key: Key, work: Coroutine[Any, Any, Any], timeout_s: float
    ) -> Raw | KsiError:
        try:
            async with asyncio.timeout(timeout_s or None):
                answer = Raw(encode(await work))
        except TimeoutError:
            del self._entries[key]
            return TimedOut(f"it took longer than {timeout_s} s (request_timeout_s)")
        except asyncio.CancelledError:
            del self._entries[key]
            raise
        except KsiError as error:
            if error.code in RETRYABLE_CODES:
                del self._entries[key]
            return error
        except ENCODE_ERRORS as error:
            return Failed(f"the answer has no JSON form: {error}")
        self._entries[key].size = len(bytes(answer))
        self._kept_bytes += self._entries[key].size
        return answer

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
