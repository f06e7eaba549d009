"""Answers ``subscription:*``: delivers the journal's events at least once, and in their order."""

import asyncio
from typing import Final

from ksi_checkpoint import events as e
from ksi_checkpoint.store import Subscription, Subscriptions
from ksi_daemon.event_system import current_context, event_handler, event_observer
from ksi_daemon.protocol import Busy, Conflict, Context, Event, InvalidData, NotFound
from ksi_journal.events import JournalRecord
from ksi_journal.journal import Bounds, Journal, Page

ATTEMPTS: Final = 5
IDENTITY: Final = ("user", "agent", "conversation", "run")


class Reading:
    """Reads the journal for those that acknowledge.

    Args:
        store: Has the cursors.
        journal: Has the events.
        max_subscriptions: How many a tenant may have.
    """

    def __init__(self, store: Subscriptions, journal: Journal, max_subscriptions: int) -> None:
        self._store = store
        self._journal = journal
        self._max_subscriptions = max_subscriptions
        self._draining = asyncio.Event()

    @event_handler("subscription:create")
    async def create(self, request: e.SubscriptionCreate) -> e.SubscriptionCreated:
        """Have events kept for a reader until it acknowledges them."""
        self._journal.check_recorded(request.pattern)
        whose = _caller()
        position = await self._position(request.after)
        made = await self._store.create(
            whose, request.name, request.pattern, position, self._max_subscriptions
        )
        if made is None:
            raise Busy(
                f"the tenant has {self._max_subscriptions} subscriptions, and "
                "checkpoint.max_subscriptions allows no more: delete some"
            )
        if made.pattern != request.pattern or _scope(made) != _scope(whose):
            raise Conflict(f"there is a subscription {request.name!r} to something else")
        return e.SubscriptionCreated(name=made.name, pattern=made.pattern, position=made.position)

    async def _position(self, after: str | int) -> int:
        if after == "start":
            return (await self._journal.bounds()).dropped_through
        last = (await self._journal.bounds()).last
        if after == "now":
            return last
        return _checked(int(after), last)

    @event_handler("subscription:delete")
    async def delete(self, request: e.SubscriptionDelete) -> e.SubscriptionDeleted:
        """End a subscription."""
        whose = _caller()
        await self._find(whose, request.name)
        await self._store.delete(whose.tenant, request.name)
        return e.SubscriptionDeleted(name=request.name)

    @event_handler("subscription:list")
    async def list_all(self, request: e.SubscriptionList) -> e.SubscriptionListed:
        """List the tenant's durable subscriptions."""
        whose = _caller()
        found = await self._store.list(whose.tenant)
        bounds = await self._journal.bounds()
        return e.SubscriptionListed(
            subscriptions=tuple(_summary(each, bounds) for each in found if _may_read(whose, each))
        )

    @event_handler("subscription:read", timeout_s=90.0)
    async def read(self, request: e.SubscriptionRead) -> e.SubscriptionEvents:
        """Read what comes next and was not acknowledged, or wait for it."""
        whose = _caller()
        subscription = await self._find(whose, request.name)
        clock = asyncio.get_running_loop().time
        deadline = clock() + request.wait_s
        position = subscription.position
        while True:
            records, position = await self._look(
                whose.tenant, subscription, position, request.limit
            )
            if records or not await self._more(position, deadline - clock()):
                break
        # Asked for after the events: what was dropped while they were read is told, too.
        gap = _gap(subscription.position, await self._journal.bounds())
        if not records and gap is None and position > subscription.position:
            # There was nothing to deliver up to here, and nothing that retention could take.
            await self._store.move(whose.tenant, request.name, position, acknowledged=False)
        return e.SubscriptionEvents(events=tuple(records), position=position, gap=gap)

    async def _look(
        self, tenant: str, subscription: Subscription, position: int, limit: int
    ) -> tuple[list[JournalRecord], int]:
        """Return the next events of a subscription, and how far was looked."""
        while True:
            page = await self._page(tenant, subscription.pattern, position, limit)
            wanted = [record for record in page.records if _is_wanted(record, subscription)]
            if wanted or not page.records:
                return wanted, page.through
            position = page.through

    async def _page(self, tenant: str, pattern: str, position: int, limit: int) -> Page:
        """Read the journal, once more where its partitions are being made or dropped just now."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._journal.read_after(tenant, [pattern], position, limit)
            except Busy as error:
                await asyncio.sleep(error.retry_after_s or 0.0)
        return await self._journal.read_after(tenant, [pattern], position, limit)

    async def _more(self, position: int, wait_s: float) -> bool:
        """Wait until the journal has more; say so, unless the time is up or the daemon stops."""
        if wait_s <= 0 or self._draining.is_set():
            return False
        async with asyncio.TaskGroup() as tasks:
            news = tasks.create_task(self._journal.wait_after(position), name="news")
            end = tasks.create_task(self._draining.wait(), name="end")
            await asyncio.wait({news, end}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            came = news.done()
            news.cancel()
            end.cancel()
        return came

    @event_observer("system:draining")
    def end(self, event: Event) -> None:
        """Answer those who wait, so that the daemon needn't wait for them."""
        self._draining.set()

    @event_handler("subscription:ack")
    async def acknowledge(self, request: e.SubscriptionAck) -> e.SubscriptionAcked:
        """Say that all up to a position is done with."""
        whose = _caller()
        await self._find(whose, request.name)
        _checked(request.position, (await self._journal.bounds()).last)
        stands = await self._store.move(
            whose.tenant, request.name, request.position, acknowledged=True
        )
        if stands is None:
            raise NotFound(f"there is no subscription {request.name!r} any more")
        return e.SubscriptionAcked(name=request.name, position=stands)

    async def _find(self, whose: Context, name: str) -> Subscription:
        """Return a subscription that the caller may read; another's is as if it were not there."""
        found = await self._store.find(whose.tenant, name)
        if found is None or not _may_read(whose, found):
            raise NotFound(f"there is no subscription {name!r}: send subscription:create")
        return found


def _caller() -> Context:
    return current_context() or Context("")


def _checked(position: int, last: int) -> int:
    if position > last:
        raise InvalidData(
            f"the journal has no position {position} yet: it has come to {last}",
            details={"path": "$.position", "last": last},
        )
    return position


def _scope(whose: Context | Subscription) -> tuple[str | None, ...]:
    return tuple(getattr(whose, field) for field in IDENTITY)


def _may_read(whose: Context, subscription: Subscription) -> bool:
    """Say whether a subscription shows nothing that its reader may not see.

    Whoever is somebody (a user, an agent) has to do with that one's subscriptions alone.
    """
    return all(
        own in (None, limit) for own, limit in zip(_scope(whose), _scope(subscription), strict=True)
    )


def _is_wanted(record: JournalRecord, subscription: Subscription) -> bool:
    return all(
        limit is None or getattr(record, field) == limit
        for field, limit in zip(IDENTITY, _scope(subscription), strict=True)
    )


def _gap(position: int, bounds: Bounds) -> e.SubscriptionGap | None:
    if bounds.dropped_through <= position:
        return None
    return e.SubscriptionGap(after=position, through=bounds.dropped_through)


def _summary(subscription: Subscription, bounds: Bounds) -> e.SubscriptionSummary:
    return e.SubscriptionSummary(
        name=subscription.name,
        pattern=subscription.pattern,
        position=subscription.position,
        behind=max(0, bounds.last - subscription.position),
        created_at=subscription.created_at,
        acknowledged_at=subscription.acknowledged_at,
        user=subscription.user,
        agent=subscription.agent,
        conversation=subscription.conversation,
        run=subscription.run,
        gap=_gap(subscription.position, bounds),
    )
