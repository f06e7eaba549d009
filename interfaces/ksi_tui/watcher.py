"""Keeps `Known` up to date: follows the daemon's events, and asks what they don't tell."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from ksi_client import Context, Denied, Event, EventClient, KsiError, NotFound, Unavailable
from ksi_client.client import LAGGED, RECONNECTED
from ksi_client.transports import Transport
from ksi_daemon.protocol import Outcome
from ksi_journal.events import JournalHistory, JournalHistoryListed, JournalRecord
from ksi_models.events import ModelCalled
from ksi_system.events import SystemDiscover, SystemDiscovered, SystemGreeting, SystemHello
from ksi_tui.model import texts
from ksi_tui.model.feed import Seen, severity_of
from ksi_tui.model.known import Known
from ksi_tui.questions import QUESTIONS

ASK_TIMEOUT_S: Final = 10.0
FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 3.0
TRY_AGAIN_S: Final = 2.0
LEAST_GAP_S: Final = 0.5
SHARE_OF_TIME: Final = 10.0  # a question that takes long is asked the more seldom
LOOK_BACK: Final = timedelta(minutes=60)
EARLIER_EVENTS: Final = 300
EARLIER_PAGES: Final = 5
AT_ONCE: Final = 2_000
MAX_OWN_IDS: Final = 4_000
MAX_UNSEEN: Final = 100
PAYLOAD_CHARACTERS: Final = 4_000


class Line(EventClient):
    """A client that says when its connection is lost; it finds the daemon again by itself."""

    def __init__(
        self, transport: Transport | None, token: str | None, lost: Callable[[], None]
    ) -> None:
        super().__init__(
            transport, token=token, timeout_s=ASK_TIMEOUT_S, on_error=lambda _error: None
        )
        self._tell_lost = lost

    def connection_lost(self, peer: Any) -> None:
        """Note that the connection is gone, and tell of it."""
        super().connection_lost(peer)
        self._tell_lost()


class Watcher:
    """Follows one daemon for as long as `run` runs, whether it is there or not.

    What it asks itself is left out of what it sees, and so is all that follows from that.

    Args:
        known: What it keeps up to date.
        transport: How to reach the daemon; that of ``KSI_HOME`` unless given.
        token: Whom to act as.
        pattern: Which events to follow; a token's grants may reach no others.
        clock: The time, as `time.time` tells it.
    """

    def __init__(
        self,
        known: Known,
        transport: Transport | None = None,
        *,
        token: str | None = None,
        pattern: str = "*",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.known = known
        self.clock = clock
        self._transport = transport
        self._token = token
        self._pattern = pattern
        self._line: Line | None = None
        self._woken = asyncio.Event()
        self._due: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        self._gaps: dict[str, float] = {}
        self._unseen: dict[str, int] = {}
        self._own: OrderedDict[str, None] = OrderedDict()

    # -- asking ---------------------------------------------------------------------------------

    async def request(self, event: str, data: Any, kind: Any = None) -> Any:
        """Do something in the name of whoever watches.

        Raises:
            KsiError: It could not be done, or nobody is there.
        """
        if self._line is None or self.known.link.state != "here":
            raise Unavailable("the daemon is away")
        return await self._line.request(event, data, result_type=kind, timeout_s=ASK_TIMEOUT_S)

    async def ask(self, event: str, data: Any, kind: Any = None) -> Any:
        """Ask something that is of no interest to others: it is not shown among the events.

        Raises:
            KsiError: There is no answer.
        """
        self._unseen[event] = min(self._unseen.get(event, 0) + 1, MAX_UNSEEN)
        return await self.request(event, data, kind)

    # -- following ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the daemon, and look for it whenever it is away."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                async with Line(self._transport, self._token, self._lost) as line:
                    delay_s = FIRST_RETRY_S
                    await self._follow(line)
            except Denied as error:
                self.known.linked("refused", self.clock(), error.message)
            except KsiError as error:
                self.known.linked("away", self.clock(), error.message)
            self._line = None
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LAST_RETRY_S)

    async def _follow(self, line: Line) -> None:
        self._line = line
        asking: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as tasks:
            await self._subscribe(line)
            asking = tasks.create_task(self._keep_asking(), name="asking")
            self._found()
            number = 0
            async for event in line.events():
                self.see(event)
                number += 1
                if number % AT_ONCE == 0:  # a queue that isn't empty is read without a pause
                    await asyncio.sleep(0)
            asking.cancel()

    async def _subscribe(self, line: Line) -> None:
        try:
            await line.subscribe(self._pattern)
            await line.subscribe(self._pattern, outcomes=True)
        except Unavailable:
            return  # it is gone again, and subscribes to what it could once it is back
        except KsiError as error:
            self.known.learn("no_events", error.message)
        else:
            self.known.learn("no_events", "")

    def _lost(self) -> None:
        if self.known.link.state != "here":
            return  # it never was, and why is known
        self.known.linked("away", self.clock(), "the connection was lost")
        for of_one_life in ("health", "stats"):
            self.known.learn(of_one_life, None)

    def _found(self) -> None:
        self.known.linked("here", self.clock())
        self._due = {"greeting": 0.0}
        self._asked_at.clear()
        self._unseen.clear()
        self._woken.set()

    # -- events ---------------------------------------------------------------------------------

    def see(self, event: Event) -> None:
        """Take an event that was pushed."""
        if event.name == LAGGED:
            self.known.feed.missed += int(event.data["missed"])
        elif event.name == RECONNECTED:
            self._found()
        elif not self._is_own(event):
            if event.outcome is None:
                self._began(event)
            else:
                self._ended(event, event.outcome)
            self._wake(event.name)

    def _is_own(self, event: Event) -> bool:
        context = event.context
        if context.id in self._own or context.parent in self._own:
            self._note_own(context.id)
            return True
        unseen = self._unseen.get(event.name, 0)
        greeting = self.known.greeting
        if not unseen or event.outcome is not None:
            return False
        if greeting is not None and context.origin != greeting.principal:
            return False
        self._unseen[event.name] = unseen - 1
        self._note_own(context.id)
        return True

    def _note_own(self, event_id: str) -> None:
        self._own[event_id] = None
        if len(self._own) > MAX_OWN_IDS:
            self._own.popitem(last=False)

    def _began(self, event: Event) -> None:
        now = self.clock()
        self.known.happened(now)
        self.known.feed.offer(event.context.id, lambda: _seen(event, now))
        if event.name == "model:called":
            self._count(now, event.data, event.context.agent)

    def _ended(self, event: Event, outcome: Outcome) -> None:
        code = "ok" if outcome.error is None else outcome.error.code
        severity = severity_of(event.name, code)
        now = self.clock()
        if severity == "error":
            self.known.failed(now)
        self.known.feed.settle(
            event.context.id,
            lambda: _seen(event, now),
            outcome=code,
            message=None if outcome.error is None else outcome.error.message,
            duration_s=outcome.duration_s,
            severity=severity,
        )

    def _count(self, at: float, data: Any, agent: str | None) -> None:
        try:
            call = msgspec.convert(data, ModelCalled)
        except msgspec.ValidationError:
            return  # somebody else's event of that name
        self.known.called(at, call, agent)

    # -- questions ------------------------------------------------------------------------------

    def _wake(self, name: str) -> None:
        namespace = name.partition(":")[0]
        for question in _WOKEN_BY.get(namespace, ()):
            key = question.known
            at = self._asked_at.get(key, 0.0) + self._gaps.get(key, LEAST_GAP_S)
            if at < self._due.get(key, 0.0):
                self._due[key] = at
                self._woken.set()

    async def _keep_asking(self) -> None:
        while True:
            now = self.clock()
            due = sorted((at, key) for key, at in self._due.items())
            if due and due[0][0] <= now:
                await self._put(due[0][1])
                continue
            self._woken.clear()
            wait_s = due[0][0] - now if due else TRY_AGAIN_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _put(self, key: str) -> None:
        if self.known.link.state != "here":
            self._due[key] = self.clock() + TRY_AGAIN_S
            return
        if key == "greeting":
            await self._greet()
            return
        question = _BY_NAME[key]
        self._asked_at[key] = began_at = self.clock()
        self._due[key] = began_at + question.every_s
        try:
            answer = await question.put(self.ask)
        except (Denied, NotFound):
            del self._due[key]
            self.known.learn(key, None)
            return
        except KsiError:
            self._due[key] = self.clock() + TRY_AGAIN_S
            return
        took_s = self.clock() - began_at
        self._asked_at[key] = self.clock()
        self._gaps[key] = max(LEAST_GAP_S, took_s * SHARE_OF_TIME)
        self.known.learn(key, answer)

    async def _greet(self) -> None:
        """Ask who is there, what it answers, and what it has recorded of the last hour."""
        now = self.clock()
        try:
            greeting = await self.ask("system:hello", SystemHello(), SystemGreeting)
            self.known.learn("greeting", greeting)
            self.known.learn("offered", await self._discover())
            await self._look_back(datetime.fromtimestamp(now, UTC))
        except KsiError:
            self._due["greeting"] = self.clock() + TRY_AGAIN_S
            return
        del self._due["greeting"]
        for question in QUESTIONS:
            if self.known.offered and question.event not in self.known.offered:
                self.known.learn(question.known, None)
            else:
                self._due[question.known] = 0.0

    async def _discover(self) -> frozenset[str]:
        try:
            found = await self.ask("system:discover", SystemDiscover(), SystemDiscovered)
        except (Denied, NotFound):
            return frozenset()  # then each event says so itself
        return frozenset(each.event for each in found.events)

    async def _look_back(self, until: datetime) -> None:
        since = until - LOOK_BACK
        try:
            earlier = await self._history(JournalHistory(until=until, limit=EARLIER_EVENTS))
            called = await self._pages(
                JournalHistory(
                    patterns=("model:called",), since=since, until=until, payloads=True, limit=1000
                )
            )
            failed = await self._pages(
                JournalHistory(outcome="failed", since=since, until=until, limit=1000)
            )
        except (Denied, NotFound):
            return  # there is no journal, or it is not for this watcher
        self.known.begin_anew()
        self.known.feed.fill([recorded(each) for each in reversed(earlier.records)])
        for each in called:
            self._count(each.at.timestamp(), each.payload, each.agent)
        for each in failed:
            if severity_of(each.event, each.outcome) == "error":
                self.known.failed(each.at.timestamp())

    async def _history(self, request: JournalHistory) -> JournalHistoryListed:
        listed: JournalHistoryListed = await self.ask(
            "journal:history", request, JournalHistoryListed
        )
        return listed

    async def _pages(self, request: JournalHistory) -> list[JournalRecord]:
        records: list[JournalRecord] = []
        for _ in range(EARLIER_PAGES):
            listed = await self._history(request)
            records += listed.records
            if listed.cursor is None:
                break
            request = msgspec.structs.replace(request, cursor=listed.cursor)
        return records


_BY_NAME: Final = {question.known: question for question in QUESTIONS}
_WOKEN_BY: Final = {
    namespace: tuple(question for question in QUESTIONS if namespace in question.wakes)
    for namespace in sorted(frozenset[str]().union(*(each.wakes for each in QUESTIONS)))
}


def _seen(event: Event, at: float) -> Seen:
    context: Context = event.context
    return Seen(
        at=datetime.fromtimestamp(at, UTC),
        name=event.name,
        id=context.id,
        severity=_published_severity(event),
        parent=context.parent,
        origin=context.origin,
        agent=context.agent,
        conversation=context.conversation,
        run=context.run,
        payload=texts.compact(event.data, PAYLOAD_CHARACTERS),
    )


def _published_severity(event: Event) -> Any:
    if event.name == "model:called" and isinstance(event.data, dict):
        return "error" if event.data.get("outcome") == "failed" else "info"
    return severity_of(event.name, None)


def recorded(record: JournalRecord) -> Seen:
    """Return an event as the journal has it, without its payload."""
    return Seen(
        at=record.at,
        name=record.event,
        id=record.id,
        severity=severity_of(record.event, record.outcome),
        parent=record.parent,
        origin=record.origin,
        agent=record.agent,
        conversation=record.conversation,
        run=record.run,
        outcome=record.outcome,
        message=record.message,
        duration_s=record.duration_s,
    )
