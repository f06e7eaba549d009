"""kill -9 of the daemon at random points of runs of twenty steps."""

import asyncio
import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet, Traces, begun, outcome_of, start_count

KILLS = int(os.environ.get("FAULT_KILLS", "20"))
REPORT = os.environ.get("FAULT_REPORT", "")
STEPS = 20
STEP_S = 0.004


class Tally:
    """What was counted over all kills."""

    def __init__(self) -> None:
        self.kills = 0
        self.kept = 0
        self.repeated = 0
        self.in_flight_again = 0
        self.wrong = 0
        self.hit: dict[int, int] = {}

    def note(self, before: Traces, kept: set[int], begun: dict[int, int], output: object) -> None:
        """Compare a finished run with what it was when its daemon was killed."""
        after = before.count("begin")
        self.kills += 1
        self.kept += len(kept)
        self.repeated += sum(after[number] != begun[number] for number in kept)
        self.in_flight_again += sum(after[n] > 1 for n in after if n not in kept)
        self.wrong += output != sum(range(1, STEPS + 1))
        self.hit[len(kept)] = self.hit.get(len(kept), 0) + 1


@pytest.mark.timeout(120 + 8 * KILLS)
async def test_finished_steps_are_kept_and_none_is_repeated_whenever_the_daemon_is_killed(
    work: Path, database_logins: Logins
) -> None:
    fleet, tally = Fleet(database_logins, "workflows.max_recovery_attempts=10"), Tally()
    began = time.monotonic()
    waiting: tuple[str, Traces, set[int], dict[int, int]] | None = None
    with fleet.daemon() as daemon:
        for kill in range(KILLS + 1):
            await fleet.start(daemon)
            async with fleet.client(daemon) as client:
                if waiting is not None:
                    run_id, traces, kept, begun = waiting
                    outcome = await outcome_of(client, run_id)
                    tally.note(traces, kept, begun, outcome.get("output"))
                if kill < KILLS:
                    traces = Traces(work.with_suffix(f".{kill}"))
                    run_id = await kill_amid(client, daemon, traces.file)
            if kill < KILLS:
                waiting = (run_id, traces, await fleet.recorded(run_id), traces.count("begin"))
        daemon.stop()

    _report(tally, time.monotonic() - began)
    assert tally.kills == KILLS
    assert tally.repeated == 0
    assert tally.wrong == 0
    assert tally.in_flight_again <= KILLS  # a step that was in flight may have had its effect
    assert tally.kept > 0


async def kill_amid(client: AsyncClient, daemon: DaemonProcess, file: Path) -> str:
    """Start a run, kill the daemon at a random moment of it; return the run's id."""
    run_id = await start_count(client, file, steps=STEPS, step_s=STEP_S)
    wanted = random.randrange(STEPS)
    traces = Traces(file)
    await begun(traces, wanted)
    await asyncio.sleep(random.uniform(0.0, 2 * STEP_S))  # the moment is what is tested
    await asyncio.to_thread(daemon.kill)
    return run_id


def _report(tally: Tally, took_s: float) -> None:
    if not REPORT:
        return
    spread = ", ".join(f"{number}: {count}" for number, count in sorted(tally.hit.items()))
    Path(REPORT).write_text(
        "# Kills of the daemon\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, by `just faults`: kill -9 of the daemon at {tally.kills} "
        f"random points of runs of {STEPS} steps, in {took_s:.0f} s.\n\n"
        "| what | count |\n|---|---|\n"
        f"| finished steps at the moment of a kill, all kept | {tally.kept} |\n"
        f"| of these, executed again | {tally.repeated} |\n"
        f"| steps in flight at a kill, executed again | {tally.in_flight_again} |\n"
        f"| wrong results | {tally.wrong} |\n\n"
        f"Kills by how many steps were finished: {spread}.\n",
        encoding="utf-8",
    )
