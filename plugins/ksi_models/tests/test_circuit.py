"""The circuit: when a provider is left alone, and how it comes back."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ksi_models.circuit import Circuit


def opened(open_s: float = 0.0, failures: int = 2) -> Circuit:
    """Make one that has just opened."""
    circuit = Circuit(failures, open_s)
    for _ in range(failures):
        circuit.try_pass()
        circuit.fail("down")
    return circuit


async def test_it_opens_after_so_many_failures_in_a_row() -> None:
    circuit = Circuit(3, 60.0)

    told = []
    for outcome in (False, False, True, False, False, False):
        assert circuit.try_pass()
        if outcome:
            circuit.succeed()
        else:
            told.append(circuit.fail("down"))

    assert told == [False, False, False, False, True]
    assert circuit.state == "open"
    assert not circuit.try_pass()


async def test_half_open_it_lets_one_call_pass() -> None:
    circuit = opened(open_s=0.0)

    passed = [circuit.try_pass() for _ in range(3)]

    assert [bool(number) for number in passed] == [True, False, False]
    assert circuit.state == "half_open"


async def test_a_probe_that_succeeds_closes_it_for_all() -> None:
    circuit = opened(open_s=0.0)
    circuit.try_pass()

    circuit.succeed()

    assert circuit.state == "closed"
    assert circuit.try_pass()
    assert circuit.try_pass()


async def test_a_probe_that_fails_leaves_it_open_for_as_long_again() -> None:
    circuit = opened(open_s=0.0)
    circuit.try_pass()
    circuit._open_s = 60.0

    circuit.fail("down still")

    assert circuit.state == "open"
    assert (circuit.delay_s() or 0) > 50.0
    assert circuit.why == "down still"


async def test_a_probe_that_tells_nothing_makes_room_for_another() -> None:
    circuit = opened(open_s=0.0)
    number = circuit.try_pass()

    circuit.drop(number)

    assert circuit.try_pass()


async def test_an_old_call_that_ends_does_not_take_the_probe_s_place() -> None:
    circuit = Circuit(2, 0.0)
    old = circuit.try_pass()
    for _ in range(2):
        circuit.try_pass()
        circuit.fail("down")
    assert circuit.try_pass()

    circuit.drop(old)

    assert not circuit.try_pass()


async def test_who_waits_is_woken_when_it_closes() -> None:
    circuit = opened(open_s=0.0)
    circuit.try_pass()

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(circuit.wait(30.0))
        await asyncio.sleep(0)
        circuit.succeed()
        async with asyncio.timeout(5):
            await waiting


async def test_it_never_opens_where_that_is_turned_off() -> None:
    circuit = Circuit(0, 60.0)

    for _ in range(100):
        assert circuit.try_pass()
        circuit.fail("down")

    assert circuit.state == "closed"


@given(
    failures=st.integers(1, 4),
    acts=st.lists(st.sampled_from(["pass", "succeed", "fail", "drop", "later"]), max_size=60),
)
def test_never_are_two_probes_under_way_and_never_is_it_shut_for_good(
    failures: int, acts: list[Any]
) -> None:
    async def run() -> None:
        circuit = Circuit(failures, 10.0)
        under_way: list[int] = []
        for act in acts:
            if act == "pass":
                was_closed = circuit.state == "closed"
                number = circuit.try_pass()
                assert number or not was_closed
                if number:
                    under_way.append(number)
            elif act == "later" and circuit._opened_at is not None:
                circuit._opened_at -= 20.0
            elif under_way and act in ("succeed", "fail", "drop"):
                number = under_way.pop()
                if act == "drop":
                    circuit.drop(number)
                else:
                    circuit.succeed() if act == "succeed" else circuit.fail("x")
            assert circuit.failed >= 0
        for number in under_way:
            circuit.drop(number)
        if circuit._opened_at is not None:
            circuit._opened_at -= 20.0
        assert circuit.try_pass()

    asyncio.run(run())
