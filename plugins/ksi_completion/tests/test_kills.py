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

KILLS = int(os.environ.get("FAULT_KILLS", "5"))
TURNS = 4  # at work at each kill, each at another point
REPORT = os.environ.get("FAULT_REPORT_TURNS", "")
CALLS = ("look 1", "pay 1", "set 1", "pay 2", "look 2")
TOOLS = {"look": "errand_look", "pay": "errand_pay", "set": "errand_set"}
CALL_S = 0.01
SETTINGS = (
    "daemon.plugins=system,postgres,workflows,models,tools,completion,errand",
    "workflows.max_recovery_attempts=20",
    "models.find_local=false",
    "completion.sweep_s=0.5",
)


class Tally:
    """What was counted over all kills."""

    def __init__(self) -> None:
        self.turns = 0
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
    """Return what the model is to do: two answers that call, and one that is the end."""

    def call(what: str) -> dict[str, Any]:
        kind = what.partition(" ")[0]
        arguments = {"file": str(file), "what": what, "before_s": CALL_S, "after_s": CALL_S}
        return {"name": TOOLS[kind], "arguments": arguments}

    first = {"say": "First.", "calls": [call(what) for what in CALLS[:2]], "chunks": 3}
    second = {"say": "Then.", "calls": [call(what) for what in CALLS[2:]], "chunks": 3}
    last = {"say": "That is all.", "chunks": 5, "delay_s": 0.005}
    return json.dumps({"steps": [first, second, last]})


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


async def messages_of(fleet: Fleet, run: str) -> dict[tuple[int, int], str]:
    """Return the messages that a turn has made."""
    sql = "SELECT step, place, parts FROM ksi_completion.message WHERE run = $1 AND step > 0"
    return {(row[0], row[1]): row[2] for row in await fleet.query(sql, run)}


class Errand:
    """A turn that is killed at some point, and what it was then."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.run = ""
        self.before: dict[tuple[int, int], str] = {}

    async def begin(self, client: AsyncClient) -> None:
        """Have the turn accepted."""
        request = {"prompt": script(self.file), "model": "test/script", "tools": ["errand_*"]}
        self.run = (await ask(client, "completion:async", request))["run_id"]

    async def finish(self, client: AsyncClient, fleet: Fleet, tally: Tally) -> None:
        """Let the turn end, with a person for what is in doubt, and count."""
        doubts: set[str] = set()
        while True:
            data = {"run_id": self.run, "timeout_s": 0.3}
            result = await ask(client, "completion:wait", data)
            if result["status"] not in ("waiting", "running", "paused"):
                break
            listed = await ask(client, "tool:in_doubt", {})
            for call in listed["calls"]:
                if call["run_id"] == self.run and call["call_id"] not in doubts:
                    doubts.add(call["call_id"])
                    verdict = {"call_id": call["call_id"], "verdict": "done", "content": "looked"}
                    await ask(client, "tool:resolve", verdict)
        self._note(result, await messages_of(fleet, self.run), doubts, tally)

    def _note(
        self, result: Any, after: dict[tuple[int, int], str], doubts: set[str], tally: Tally
    ) -> None:
        effects, begun = counts(self.file, "effect"), counts(self.file, "begin")
        tally.turns += 1
        tally.lost += result["status"] != "succeeded"
        tally.wrong += result["text"] != "That is all." or len(after) != EXPECTED_MESSAGES
        tally.kept_messages += len(self.before)
        tally.redone_messages += sum(after.get(key) != parts for key, parts in self.before.items())
        tally.doubts += len(doubts)
        for what in ("pay 1", "pay 2"):
            tally.effects += effects[what]
            tally.effects_twice += effects[what] > 1 or begun[what] > 1
            if effects[what] == 0 and not doubts:
                tally.unlisted_doubts += 1
        tally.repeated += sum(begun[what] - 1 for what in CALLS if begun[what] > 1)
        tally.hit[len(self.before)] += 1


async def kill_amid(errands: list[Errand], client: AsyncClient, daemon: DaemonProcess) -> None:
    """Begin turns one after the other, and kill the daemon amid them."""
    for errand in errands:
        await errand.begin(client)
        await asyncio.sleep(random.uniform(0.0, 0.12))  # the moment is what is tested
    await asyncio.to_thread(daemon.kill)


EXPECTED_MESSAGES = 3 + 2 + 3  # the model's, and the results of each group of calls


@pytest.mark.timeout(120 + 8 * KILLS)
async def test_no_turn_is_lost_and_no_effect_is_had_twice_whenever_the_daemon_is_killed(
    work: Path, database_logins: Logins
) -> None:
    fleet, tally, began = Fleet(database_logins, *SETTINGS), Tally(), time.monotonic()
    waiting: list[Errand] = []
    with fleet.daemon() as daemon:
        for kill in range(KILLS + 1):
            await fleet.start(daemon)
            async with fleet.client(daemon) as client:
                for errand in waiting:
                    await errand.finish(client, fleet, tally)
                if kill < KILLS:
                    waiting = [Errand(work.with_suffix(f".{kill}.{n}")) for n in range(TURNS)]
                    await kill_amid(waiting, client, daemon)
            for errand in waiting:
                errand.before = await messages_of(fleet, errand.run)
        daemon.stop()

    _report(tally, time.monotonic() - began)
    assert tally.turns == KILLS * TURNS
    assert tally.lost == 0
    assert tally.wrong == 0
    assert tally.redone_messages == 0
    assert tally.effects_twice == 0
    assert tally.unlisted_doubts == 0
    assert tally.kept_messages > 0


def _report(tally: Tally, took_s: float) -> None:
    if not REPORT:
        return
    spread = ", ".join(f"{number}: {count}" for number, count in sorted(tally.hit.items()))
    Path(REPORT).write_text(
        "# Kills of the daemon amid turns\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, by `just faults`: kill -9 of the daemon at {KILLS} "
        f"random moments, {TURNS} turns at work each time: {tally.turns} turns with five tool "
        f"calls, two of them effectful, in {took_s:.0f} s.\n\n"
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
        f"Kills by how many messages the turn had made: {spread}.\n",
        encoding="utf-8",
    )
