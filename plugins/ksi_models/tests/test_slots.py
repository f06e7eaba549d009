"""Slots: who is served when, and what is never exceeded."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from ksi_daemon.protocol import Busy
from ksi_models.slots import Slots, Ticket

KEYS = ("a", "b", "c")


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time stands still, unless a test lets it pass."""

    now = 1000.0

    def time(self) -> float:
        """Return the time."""
        return self.now


class Fairness(RuleBasedStateMachine):
    """Whatever comes and goes in whatever order."""

    tickets: Bundle[Ticket] = Bundle("tickets")

    @initialize(size=st.integers(1, 3), rate=st.sampled_from([0, 0, 2]))
    def begin(self, size: int, rate: int) -> None:
        """Make slots."""
        self.loop = Clock()
        asyncio.set_event_loop(self.loop)
        self.size, self.rate = size, rate
        self.in_loop(self._make)
        self.waiting: list[tuple[str, int, Ticket]] = []
        self.held: list[Ticket] = []
        self.served: list[str] = []
        self.started: list[float] = []

    def in_loop(self, work: Any) -> Any:
        """Call a function where a loop runs."""

        async def run() -> Any:
            return work()

        return self.loop.run_until_complete(run())

    def _make(self) -> None:
        self.slots = Slots(self.size, self.rate, 6)

    def see(self) -> None:
        """Note who was served meanwhile, each in its turn."""
        new = [each for each in self.waiting if each[2].is_granted]
        self.waiting = [each for each in self.waiting if not each[2].is_granted]
        for key, priority, ticket in new:
            self.held.append(ticket)
            self.started.append(self.loop.now)
            later = [other for name, other, _ in self.waiting if name == key]
            assert all(priority <= other for other in later), "the lower number is first"

    @rule(target=tickets, key=st.sampled_from(KEYS), priority=st.integers(1, 3))
    def ask(self, key: str, priority: int) -> Any:
        """Come."""
        had = len(self.waiting)
        try:
            ticket = self.in_loop(lambda: self.slots.ask(key, priority))
        except Busy:
            assert had >= 6
            return multiple()
        if ticket.is_granted:
            self.held.append(ticket)
            self.started.append(self.loop.now)
        else:
            self.waiting.append((key, priority, ticket))
        self.see()
        return ticket

    @rule(ticket=consumes(tickets), twice=st.booleans())
    def release(self, ticket: Ticket, twice: bool) -> None:
        """Go, served or not."""
        if ticket in self.held:
            self.held.remove(ticket)
        elif any(each[2] is ticket for each in self.waiting):
            self.waiting = [each for each in self.waiting if each[2] is not ticket]
        else:
            return
        for _ in range(1 + twice):
            self.in_loop(ticket.release)
        self.see()

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.now += seconds
        self.in_loop(lambda: None)
        self.in_loop(lambda: None)
        self.see()

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def pause(self, seconds: float) -> None:
        """Be told to wait."""
        self.in_loop(lambda: self.slots.pause(seconds))

    @invariant()
    def counts_are_true(self) -> None:
        """Nothing is lost, and nothing exceeded."""
        if not hasattr(self, "slots"):
            return
        assert self.slots.running == len(self.held) <= self.size
        assert self.slots.waiting == len(self.waiting)
        if self.rate:
            recent = [at for at in self.started if at > self.loop.now - 60.0]
            assert len(recent) <= self.rate

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        """A free slot is given to who waits, unless the rate forbids it."""
        if hasattr(self, "slots") and self.waiting and len(self.held) < self.size:
            assert self.in_loop(self.slots.delay)[0] == "rate"

    def teardown(self) -> None:
        """Close the loop."""
        if hasattr(self, "slots"):
            self.in_loop(self.slots.close)
            self.loop.close()
            asyncio.set_event_loop(None)


TestFairness = Fairness.TestCase
TestFairness.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


async def test_keys_are_served_in_turn_however_many_calls_each_has() -> None:
    slots = Slots(1, 0, 100)
    running = slots.ask("first")
    waiting = [slots.ask("greedy") for _ in range(10)] + [slots.ask("modest")]
    order: list[str] = []

    for _ in waiting:
        running.release()
        running = next(each for each in waiting if each.is_granted and each.key != "done")
        order.append(str(running.key))
        running.key = "done"

    assert order[:3] == ["greedy", "modest", "greedy"]
    assert Counter(order) == {"greedy": 10, "modest": 1}


async def test_fifty_conversations_on_one_slot_wait_alike() -> None:
    slots = Slots(1, 0, 1000)
    served = at_once = most = 0
    waits: list[int] = []  # in calls that were served meanwhile

    async def converse(name: str) -> None:
        nonlocal served, at_once, most
        for _ in range(4):
            before = served
            ticket = slots.ask(("default", None, name))
            assert await ticket.wait(60)
            waits.append(served - before)
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once, served = at_once - 1, served + 1
            ticket.release()

    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(converse(f"c{number}"), name=f"c{number}")

    assert (most, len(waits)) == (1, 200)
    assert max(waits) <= 3 * sum(waits) / len(waits)


async def test_who_is_cancelled_while_waiting_leaves_no_trace() -> None:
    slots = Slots(1, 0, 10)
    held = slots.ask("a")
    waiting = slots.ask("b")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(waiting.wait(60))
        await asyncio.sleep(0)
        task.cancel()
    waiting.release()
    held.release()

    assert (slots.running, slots.waiting) == (0, 0)
    assert slots.ask("c").is_granted


async def test_one_whose_turn_came_as_it_was_cancelled_gives_the_slot_back() -> None:
    slots = Slots(1, 0, 10)
    held, waiting = slots.ask("a"), slots.ask("b")

    held.release()
    assert waiting.is_granted
    waiting.release()

    assert slots.running == 0


async def test_too_many_that_wait_are_told_the_setting() -> None:
    slots = Slots(1, 0, 1, "openai")
    slots.ask("a")
    slots.ask("b")

    with pytest.raises(Busy, match=r"openai already \(models\.max_waiting\)") as caught:
        slots.ask("c")

    assert caught.value.retry_after_s is not None


async def test_a_wait_ends_in_time() -> None:
    slots = Slots(1, 0, 10)
    slots.ask("a")

    assert not await slots.ask("b").wait(0.01)
