"""kill -9 of the daemon at random points of runs of twenty steps."""

import asyncio
import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from ksi_client import AsyncClient
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet, Traces, begun, outcome_of, start_count

POINTS = int(os.environ.get("FAULT_KILLS", "12"))
RUNS = 4  # at once, each at a point of its own when their daemon is killed
REPORT = os.environ.get("FAULT_REPORT", "")
STEPS = 20
STEP_S = 0.004


class Tally:
    """What was counted over all kills."""

    def __init__(self) -> None:
        self.points = 0
        self.kept = 0
        self.repeated = 0
        self.in_flight_again = 0
        self.wrong = 0
        self.hit: dict[int, int] = {}

    def note(self, before: Traces, kept: set[int], begun: dict[int, int], output: object) -> None:
        """Compare a finished run with what it was when its daemon was killed."""
        after = before.count("begin")
        self.points += 1
        self.kept += len(kept)
        self.repeated += sum(after[number] != begun[number] for number in kept)
        self.in_flight_again += sum(after[n] > 1 for n in after if n not in kept)
        self.wrong += output != sum(range(1, STEPS + 1))
        self.hit[len(kept)] = self.hit.get(len(kept), 0) + 1


class Killed(NamedTuple):
    """A run as it was when its daemon was killed."""

    run_id: str
    traces: Traces
    kept: set[int]
    begun: dict[int, int]


@pytest.mark.timeout(120 + 8 * POINTS)
async def test_finished_steps_are_kept_and_none_is_repeated_whenever_the_daemon_is_killed(
    work: Path, database_logins: Logins
) -> None:
    fleet, tally = Fleet(database_logins, "workflows.max_recovery_attempts=10"), Tally()
    began = time.monotonic()
    waiting: list[Killed] = []
    with fleet.daemon() as daemon:
        for first in range(0, POINTS, RUNS):
            files = [work.with_suffix(f".{number}") for number in range(first, first + RUNS)]
            await fleet.start(daemon)
            async with fleet.client(daemon) as client:
                await note_all(client, waiting, tally)
                waiting = await kill_amid(fleet, client, daemon, files)
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            await note_all(client, waiting, tally)
        daemon.stop()

    _report(tally, time.monotonic() - began)
    assert tally.points >= POINTS
    assert tally.repeated == 0
    assert tally.wrong == 0
    assert tally.in_flight_again <= tally.points  # what was in flight may have had its effect
    assert tally.kept > 0


async def note_all(client: AsyncClient, waiting: list[Killed], tally: Tally) -> None:
    """Wait for the ends of runs whose daemon was killed, and count what came of them."""
    for each in waiting:
        outcome = await outcome_of(client, each.run_id)
        tally.note(each.traces, each.kept, each.begun, outcome.get("output"))


async def kill_amid(
    fleet: Fleet, client: AsyncClient, daemon: DaemonProcess, files: list[Path]
) -> list[Killed]:
    """Start runs one after the other, kill the daemon at a random moment; return how they stood."""
    runs = []
    for file in files:
        runs.append(await start_count(client, file, steps=STEPS, step_s=STEP_S))
        await begun(Traces(file), random.randrange(STEPS // len(files)))
    await begun(Traces(files[-1]), random.randrange(STEPS))
    await asyncio.sleep(random.uniform(0.0, 2 * STEP_S))  # the moment is what is tested
    await asyncio.to_thread(daemon.kill)
    return [
        Killed(run_id, traces := Traces(file), await fleet.recorded(run_id), traces.count("begin"))
        for run_id, file in zip(runs, files, strict=True)
    ]


def _report(tally: Tally, took_s: float) -> None:
    if not REPORT:
        return
    spread = ", ".join(f"{number}: {count}" for number, count in sorted(tally.hit.items()))
    Path(REPORT).write_text(
        "# Kills of the daemon\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, by `just faults`: kill -9 of the daemon at {tally.points} "
        f"random points of runs of {STEPS} steps, {RUNS} runs at once, in {took_s:.0f} s.\n\n"
        "| what | count |\n|---|---|\n"
        f"| finished steps at the moment of a kill, all kept | {tally.kept} |\n"
        f"| of these, executed again | {tally.repeated} |\n"
        f"| steps in flight at a kill, executed again | {tally.in_flight_again} |\n"
        f"| wrong results | {tally.wrong} |\n\n"
        f"Points by how many steps were finished: {spread}.\n",
        encoding="utf-8",
    )
