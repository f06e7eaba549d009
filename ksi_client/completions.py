"""Having turns with a model: what both clients offer for it.

The turn runs in the daemon and is durable there: a client that goes away does not end it, and a
connection that is lost is found again without a gap.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar, Unpack, cast

from ksi_client.turns import (
    RECONNECT_S,
    Completion,
    CompletionChunk,
    Following,
    TurnAccepted,
    TurnOptions,
    delays_s,
    succeeded,
    turn_request,
)
from ksi_daemon.protocol import KsiError, TimedOut, Unavailable

Answer = TypeVar("Answer")

FOREVER_S = 1_000_000.0  # more milliseconds than these don't fit into what poll() takes
POLL_S = 25.0  # how long one question after a turn's end stays open


class _Asks(Protocol):
    """What of the asynchronous client is used here."""

    closed: asyncio.Event

    async def request(self, event: str, data: Any = None, **options: Any) -> Any: ...

    def stream(self, event: str, data: Any = None, **options: Any) -> AsyncGenerator[Any]: ...


class CompletionCalls:
    """The calls of `AsyncClient` that have turns with a model."""

    async def create_completion(
        self,
        prompt: str | None = None,
        *,
        wait_s: float | None = None,
        reconnect_s: float = RECONNECT_S,
        context: dict[str, Any] | None = None,
        **options: Unpack[TurnOptions],
    ) -> Completion:
        """Have a turn, and wait for its end.

        Args:
            prompt: What to say; or else ``messages``, among the options.
            wait_s: How long to wait here; after that the turn is returned as it stands, and goes
                on. For ever unless given.
            reconnect_s: For how long a lost connection is looked for; the turn goes on meanwhile,
                and is found again.
            context: In whose name to send it; needs the grant ``impersonate``.
            options: How to have it: ``model``, ``conversation_id``, ``tools`` and whatever else
                `TurnOptions` has.

        Raises:
            KsiError: The turn was refused, or it failed; then ``details`` has its ``run_id`` and
                ``conversation_id``.

        Example:
            response = await client.create_completion(prompt="Explain quantum computing")
            print(response.text, response.usage.output_tokens, response.conversation_id)
        """
        start = turn_request(prompt, options)
        accepted = await self._persistently(
            lambda: cast(_Asks, self).request(
                "completion:async",
                start,
                result_type=TurnAccepted,
                idempotency_key=start["request_id"],
                context=context,
            ),
            reconnect_s,
        )
        return await self.wait_completion(
            accepted.run_id, wait_s=wait_s, reconnect_s=reconnect_s, context=context
        )

    async def wait_completion(
        self,
        run_id: str,
        *,
        wait_s: float | None = None,
        reconnect_s: float = RECONNECT_S,
        context: dict[str, Any] | None = None,
    ) -> Completion:
        """Wait for the end of a turn; past ``wait_s`` it is returned as it stands.

        A lost connection is found again, for at most ``reconnect_s``.

        Raises:
            KsiError: The turn failed, or there is none.
        """
        deadline = None if wait_s is None else time.monotonic() + wait_s

        def ask() -> Awaitable[Completion]:
            left = POLL_S if deadline is None else min(POLL_S, max(deadline - time.monotonic(), 0))
            return cast(_Asks, self).request(
                "completion:wait",
                {"run_id": run_id, "timeout_s": left},
                result_type=Completion,
                timeout_s=None,
                idempotency_key=f"wait-{run_id}-{time.monotonic_ns()}",
                context=context,
            )

        while True:
            completion = await self._persistently(ask, reconnect_s, run_id)
            is_late = deadline is not None and time.monotonic() >= deadline
            if is_late or not completion.is_open:
                return succeeded(completion)

    async def stream_completion(
        self,
        prompt: str | None = None,
        *,
        reconnect_s: float = RECONNECT_S,
        context: dict[str, Any] | None = None,
        **options: Unpack[TurnOptions],
    ) -> AsyncGenerator[CompletionChunk]:
        """Have a turn, and yield what comes of it; the last chunk is the `Completion`.

        Takes what `create_completion` takes. A lost connection is told by a `StatusChunk`, found
        again, for at most ``reconnect_s``, and read on without a gap. Stopping early does not end
        the turn: see `cancel_completion`.

        Raises:
            KsiError: The turn was refused, or it failed; then ``details`` has its ``run_id`` and
                ``conversation_id``.

        Example:
            async for chunk in client.stream_completion(prompt="Explain quantum computing"):
                if isinstance(chunk, TextChunk):
                    print(chunk.text, end="")
        """
        start = turn_request(prompt, options)
        async with aclosing(self._follow(Following(start), reconnect_s, context)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def follow_completion(
        self,
        run_id: str,
        *,
        offset: int = 0,
        reconnect_s: float = RECONNECT_S,
        context: dict[str, Any] | None = None,
    ) -> AsyncGenerator[CompletionChunk]:
        """Yield what comes of a turn that was accepted before, from ``offset`` on.

        Raises:
            KsiError: There is no such turn, or it failed.
        """
        place = Following(None, run_id=run_id, offset=offset)
        async with aclosing(self._follow(place, reconnect_s, context)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _follow(
        self, place: Following, reconnect_s: float, context: dict[str, Any] | None
    ) -> AsyncGenerator[CompletionChunk]:
        client = cast(_Asks, self)
        delays, lost_at = delays_s(), 0.0
        while True:
            try:
                chunks = client.stream(
                    "completion:stream", place.request, result_type=CompletionChunk, context=context
                )
                async with aclosing(chunks):
                    async for chunk in chunks:
                        delays, lost_at = delays_s(), 0.0
                        for new in place.take(chunk):
                            yield succeeded(new) if isinstance(new, Completion) else new
                        if isinstance(chunk, Completion):
                            return
                raise Unavailable("the stream ended before the turn did", retry_after_s=0.1)
            except Unavailable as error:
                if client.closed.is_set() or (error.details or {}).get("run_id"):
                    raise  # it is the turn that failed, not the connection
                if not lost_at:
                    lost_at = time.monotonic()
                    yield place.lost(error)
                await self._find_daemon(lost_at + reconnect_s, error, place.run_id)
                await asyncio.sleep(next(delays))

    async def _persistently(
        self, ask: Callable[[], Awaitable[Answer]], reconnect_s: float, run_id: str | None = None
    ) -> Answer:
        """Ask, and once more when the daemon that was lost is there again."""
        delays, lost_at = delays_s(), 0.0
        while True:
            try:
                return await ask()
            except Unavailable as error:
                if cast(_Asks, self).closed.is_set():
                    raise
                lost_at = lost_at or time.monotonic()
                await self._find_daemon(lost_at + reconnect_s, error, run_id)
                await asyncio.sleep(next(delays))

    async def _find_daemon(self, until: float, lost: Unavailable, run_id: str | None) -> None:
        """Wait until a daemon answers.

        Raises:
            Unavailable: None did in time.
        """
        client = cast(_Asks, self)
        delays = delays_s()
        while (left := until - time.monotonic()) > 0:
            try:
                await client.request("system:hello", timeout_s=left)
            except (Unavailable, TimedOut):
                if client.closed.is_set():
                    raise
                await asyncio.sleep(next(delays))
            else:
                return
        raise _given_up(lost, run_id) from lost

    async def cancel_completion(self, run_id: str, *, reason: str = "cancelled") -> str:
        """End a turn; returns the status that it has now. What the user said stays."""
        request = {"run_id": run_id, "reason": reason}
        return str((await cast(_Asks, self).request("completion:cancel", request))["status"])

    async def answer_completion(
        self, run_id: str, content: str, *, call_id: str | None = None
    ) -> None:
        """Answer what a turn has asked a person.

        Raises:
            KsiError: It asks nothing, or several things, and no ``call_id`` says which is meant.
        """
        request = {"run_id": run_id, "content": content, "call_id": call_id}
        await cast(_Asks, self).request("completion:answer", request)


class _AsksInTurn(Protocol):
    """What of the blocking client is used here."""

    @property
    def request(self) -> Callable[..., Any]: ...

    @property
    def stream(self) -> Callable[..., Iterator[Any]]: ...

    def reconnect(self) -> None: ...


def create(
    client: _AsksInTurn,
    start: dict[str, Any],
    wait_s: float | None,
    reconnect_s: float = RECONNECT_S,
) -> Completion:
    """Have a turn by the blocking client, and wait for its end; see `CompletionCalls`."""
    accepted = _persistently(
        client,
        lambda: client.request("completion:async", start, result_type=TurnAccepted),
        reconnect_s,
    )
    return wait(client, accepted.run_id, wait_s, reconnect_s)


def wait(
    client: _AsksInTurn, run_id: str, wait_s: float | None, reconnect_s: float = RECONNECT_S
) -> Completion:
    """Wait for a turn's end by the blocking client; see `CompletionCalls`."""
    deadline = None if wait_s is None else time.monotonic() + wait_s

    def ask() -> Completion:
        left = POLL_S if deadline is None else min(POLL_S, max(deadline - time.monotonic(), 0))
        request = {"run_id": run_id, "timeout_s": left}
        completion: Completion = client.request(
            "completion:wait", request, result_type=Completion, timeout_s=left + RECONNECT_S
        )
        return completion

    while True:
        completion = _persistently(client, ask, reconnect_s, run_id)
        is_late = deadline is not None and time.monotonic() >= deadline
        if is_late or not completion.is_open:
            return succeeded(completion)


def stream(client: _AsksInTurn, place: Following, reconnect_s: float) -> Iterator[CompletionChunk]:
    """Yield what comes of a turn by the blocking client; see `CompletionCalls`."""
    lost_at = 0.0
    while True:
        try:
            # A chunk may be long in coming: the turn may wait for a person.
            for chunk in client.stream(
                "completion:stream", place.request, result_type=CompletionChunk, timeout_s=FOREVER_S
            ):
                lost_at = 0.0
                for new in place.take(chunk):
                    yield succeeded(new) if isinstance(new, Completion) else new
                if isinstance(chunk, Completion):
                    return
            raise Unavailable("the stream ended before the turn did", retry_after_s=0.1)
        except Unavailable as error:
            if (error.details or {}).get("run_id"):
                raise
            if not lost_at:
                lost_at = time.monotonic()
                yield place.lost(error)
            _find_again(client, lost_at + reconnect_s, error, place.run_id)


def _persistently(
    client: _AsksInTurn,
    ask: Callable[[], Answer],
    reconnect_s: float,
    run_id: str | None = None,
) -> Answer:
    """Ask, and once more when the daemon that was lost is there again."""
    lost_at = 0.0
    while True:
        try:
            return ask()
        except Unavailable as error:
            lost_at = lost_at or time.monotonic()
            _find_again(client, lost_at + reconnect_s, error, run_id)


def _find_again(client: _AsksInTurn, until: float, lost: Unavailable, run_id: str | None) -> None:
    for delay_s in delays_s():
        if time.monotonic() > until:
            raise _given_up(lost, run_id) from lost
        time.sleep(delay_s)
        with suppress(Unavailable):
            client.reconnect()
            return


def _given_up(lost: KsiError, run_id: str | None) -> Unavailable:
    if run_id is None:
        return Unavailable(f"the daemon did not come back: {lost.message}")
    message = f"the daemon did not come back; the turn goes on when it does: ksi turn wait {run_id}"
    return Unavailable(message, details={"run_id": run_id})
