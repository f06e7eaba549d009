"""kill -9 of the daemon at random points of turns with five tool calls, two of them effectful."""

import asyncio
import json
import os
import random
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, Busy, Unavailable
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet

POINTS = int(os.environ.get("FAULT_KILLS", "12"))
TURNS = 2  # that are begun before each kill, each at a point of its own then
REPORT = os.environ.get("FAULT_REPORT_TURNS", "")
CALLS = ("look 1", "pay 1", "set 1", "pay 2", "look 2")
PAYMENTS = {"pay 1": "1:1", "pay 2": "2:1"}  # by step and index
TOOLS = {"look": "errand_look", "pay": "errand_pay", "set": "errand_set"}
OUTPUT = {"done": True}
SCHEMA = {"type": "object", "required": ["done"]}
MESSAGES = 4 + 2 + 3 + 1  # the model's, the results of each group of calls, and what does not fit
CALL_S = 0.01
TURN_S = 0.4  # about what a whole turn takes
ANSWER_S = 0.15  # what the first model call takes with all around it, and the last
MOST_OPEN = 4  # turns that are at work as another one begins
SETTINGS = (
    "daemon.plugins=system,postgres,workflows,models,tools,completion,errand",
    "workflows.max_recovery_attempts=100",
    "models.find_local=false",
    "completion.sweep_s=0.5",
)


class Tally:
    """What was counted over all kills."""

    def __init__(self) -> None:
        self.turns = 0
        self.amid = 0
        self.lost = 0
        self.kept_messages = 0
        self.redone_messages = 0
        self.effects = 0
        self.effects_twice = 0
        self.doubts = 0
        self.unlisted_doubts = 0
        self.repeated = 0
        self.wrong = 0
        self.hit: Counter[int] = Counter()


def script(file: Path) -> str:
    """Return what the model is to do: two answers that call, one that does not fit, and the end."""

    def call(what: str) -> dict[str, Any]:
        kind = what.partition(" ")[0]
        arguments = {"file": str(file), "what": what, "before_s": CALL_S, "after_s": CALL_S}
        return {"name": TOOLS[kind], "arguments": arguments}

    first = {"say": "First.", "calls": [call(what) for what in CALLS[:2]], "chunks": 3}
    second = {"say": "Then.", "calls": [call(what) for what in CALLS[2:]], "chunks": 3}
    third = {"say": "Nearly.", "chunks": 2}
    last = {"say": json.dumps(OUTPUT), "chunks": 5, "delay_s": 0.005}
    return json.dumps({"steps": [first, second, third, last]})


def counts(file: Path, kind: str) -> Counter[str]:
    """Return how often each call began, or had its effect."""
    found = file.read_text().splitlines() if file.exists() else []
    return Counter(
        line.split(" ", 1)[1].rpartition(" ")[0] for line in found if line.startswith(f"{kind} ")
    )


async def ask(client: AsyncClient, event: str, data: Any) -> Any:
    """Send an event until a daemon is there that can answer it."""
    while True:
        try:
            return await client.request(event, data)
        except (Unavailable, Busy) as error:
            await asyncio.sleep(error.retry_after_s or 0.1)


class Errand:
    """A turn that the daemon is killed amid, perhaps more than once, and what is known of it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.run = ""
        self.kept: dict[tuple[int, int], str] = {}
        self.doubts: set[str] = set()

    def see(self, messages: dict[tuple[int, int], str], tally: Tally) -> None:
        """Compare the messages that the turn has with those that it had."""
        tally.redone_messages += sum(messages.get(key) != parts for key, parts in self.kept.items())
        self.kept = messages

    def note(self, result: Any, tally: Tally) -> None:
        """Count what came of the turn, and what its tools have left."""
        effects, begun = counts(self.file, "effect"), counts(self.file, "begin")
        tally.turns += 1
        tally.lost += result["status"] != "succeeded"
        tally.wrong += result.get("output") != OUTPUT or len(self.kept) != MESSAGES
        tally.doubts += len(self.doubts)
        for what, place in PAYMENTS.items():
            is_doubtful = f"{self.run}:{place}" in self.doubts
            tally.effects += effects[what]
            tally.effects_twice += effects[what] > 1 or begun[what] > 1
            tally.unlisted_doubts += effects[what] == 0 and not is_doubtful
        tally.repeated += sum(begun[what] - 1 for what in CALLS if begun[what] > 1)


class Errands:
    """All turns of the test."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.tally = Tally()
        self._fleet = fleet
        self._folder = folder
        self._all: dict[str, Errand] = {}
        self._open: list[Errand] = []

    async def begin(self, client: AsyncClient, wanted: int) -> None:
        """Begin a turn, and wait until it has made so many calls, or is making the last."""
        errand = Errand(self._folder.with_suffix(f".{len(self._all)}"))
        request = {
            "prompt": script(errand.file),
            "model": "test/script",
            "tools": ["errand_*"],
            "output_schema": SCHEMA,
        }
        errand.run = (await ask(client, "completion:async", request))["run_id"]
        self._all[errand.run] = errand
        self._open.append(errand)
        while counts(errand.file, "begin").total() < wanted:  # noqa: ASYNC110  others write it
            await asyncio.sleep(0.002)

    def calls_begun(self) -> int:
        """Count the calls that were begun."""
        return sum(counts(errand.file, "begin").total() for errand in self._all.values())

    async def kill_amid(self, client: AsyncClient, daemon: DaemonProcess) -> None:
        """Begin turns, and kill the daemon at some point of each."""
        for _ in range(TURNS - 1):
            await self.begin(client, 0)
            await asyncio.sleep(random.uniform(0.0, TURN_S))
        wanted = random.randrange(len(CALLS) + 1)
        await self.begin(client, wanted)
        span_s = ANSWER_S if wanted in (0, len(CALLS)) else 3 * CALL_S
        await asyncio.sleep(random.uniform(0.0, span_s))  # the moment is what is tested
        await asyncio.to_thread(daemon.kill)
        await self.look()
        for each in self._open:
            self.tally.amid += 1
            self.tally.kept_messages += len(each.kept)
            self.tally.hit[len(each.kept)] += 1

    async def settle(self, client: AsyncClient, most: int) -> None:
        """Wait until few turns are open, with a person who decides what is in doubt."""
        while True:
            listed = await ask(client, "tool:in_doubt", {})
            for call in listed["calls"]:
                self._all[call["run_id"]].doubts.add(call["call_id"])
                verdict = {"call_id": call["call_id"], "verdict": "done", "content": "looked"}
                await ask(client, "tool:resolve", verdict)
            await self.look()
            if len(self._open) <= most:
                return
            await asyncio.sleep(0.05)

    async def look(self) -> None:
        """See what the turns have made, and which are open."""
        runs = [errand.run for errand in self._open]
        made: dict[str, dict[tuple[int, int], str]] = {run: {} for run in runs}
        for run, step, place, parts in await self._fleet.query(
            "SELECT run, step, place, parts FROM ksi_completion.message "
            "WHERE run = ANY ($1) AND step > 0",
            runs,
        ):
            made[run][step, place] = parts
        for errand in self._open:
            errand.see(made[errand.run], self.tally)
        rows = await self._fleet.query(
            "SELECT run FROM ksi_completion.turn "
            "WHERE run = ANY ($1) AND status IN ('waiting', 'running', 'paused')",
            runs,
        )
        still = {row[0] for row in rows}
        self._open = [errand for errand in self._open if errand.run in still]

    async def note_all(self, client: AsyncClient) -> None:
        """Count what came of all."""
        for run, errand in self._all.items():
            sql = (
                "SELECT step, place, parts FROM ksi_completion.message WHERE run = $1 AND step > 0"
            )
            rows = await self._fleet.query(sql, run)
            errand.see({(row[0], row[1]): row[2] for row in rows}, self.tally)
            result = await ask(client, "completion:wait", {"run_id": run, "timeout_s": 0})
            errand.note(result, self.tally)


@pytest.mark.timeout(120 + 8 * POINTS)
async def test_no_turn_is_lost_and_no_effect_is_had_twice_whenever_the_daemon_is_killed(
    work: Path, database_logins: Logins
) -> None:
    fleet, began = Fleet(database_logins, *SETTINGS), time.monotonic()
    errands = Errands(fleet, work)
    tally = errands.tally
    with fleet.daemon() as daemon:
        for _ in range(0, POINTS, TURNS):
            await fleet.start(daemon)
            async with fleet.client(daemon) as client:
                await errands.settle(client, MOST_OPEN)
                await errands.kill_amid(client, daemon)
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            await errands.settle(client, 0)
            await errands.note_all(client)
        daemon.stop()

    _report(tally, time.monotonic() - began)
    assert tally.turns >= POINTS
    assert_sound(tally)
    assert tally.kept_messages > 0


def assert_sound(tally: Tally) -> None:
    """Check that nothing was lost, made again or had twice."""
    assert tally.lost == 0
    assert tally.wrong == 0
    assert tally.redone_messages == 0
    assert tally.effects_twice == 0
    assert tally.unlisted_doubts == 0


def _report(tally: Tally, took_s: float) -> None:
    if not REPORT:
        return
    spread = ", ".join(f"{number}: {count}" for number, count in sorted(tally.hit.items()))
    Path(REPORT).write_text(
        "# Kills of the daemon amid turns\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, by `just faults`: kill -9 of the daemon at "
        f"{tally.turns} random points of turns with five tool calls, two of them effectful, "
        f"{TURNS} turns at once, in {took_s:.0f} s. Turns that were amid their work are counted at "
        f"each kill: {tally.amid}.\n\n"
        "| what | count |\n|---|---|\n"
        f"| accepted turns that were lost | {tally.lost} |\n"
        f"| wrong answers, or messages too many or too few | {tally.wrong} |\n"
        f"| messages that were kept at the moment of a kill | {tally.kept_messages} |\n"
        f"| of these, made again | {tally.redone_messages} |\n"
        f"| effects | {tally.effects} |\n"
        f"| effects had twice | {tally.effects_twice} |\n"
        f"| calls in doubt, all listed | {tally.doubts} |\n"
        f"| effects not had, and not listed as in doubt | {tally.unlisted_doubts} |\n"
        f"| calls without effect, or with the same, made again | {tally.repeated} |\n\n"
        f"Turns by how many messages they had made at a kill: {spread}.\n",
        encoding="utf-8",
    )
