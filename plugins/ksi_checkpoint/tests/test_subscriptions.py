"""Tests of durable subscriptions: everything comes, in order, again until it is acknowledged."""

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_checkpoint.tests.conftest import Run
from ksi_client import (
    AsyncClient,
    Busy,
    Client,
    Conflict,
    InvalidData,
    NotFound,
    UnixTransport,
)
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.logins import Logins

WAIT_S = 20.0
QUICK = "journal.flush_interval_s=0.01"


async def publish(client: AsyncClient, *numbers: int, event: str = "agent:said") -> None:
    for number in numbers:
        await client.publish(event, {"n": number})


async def read_all(client: AsyncClient, name: str, count: int) -> dict[str, Any]:
    """Read until so many have come; without an acknowledgement they are all in the last answer."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await client.request("subscription:read", {"name": name, "wait_s": 10})
            if len(answer["events"]) >= count:
                return dict(answer)


def numbers_of(answer: dict[str, Any]) -> list[int]:
    return [event["payload"]["n"] for event in answer["events"]]


# -- at least once, in order ---------------------------------------------------------------------


async def test_what_was_not_acknowledged_comes_again_and_what_was_does_not(run: Run) -> None:
    async with run(QUICK) as client:
        await client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        await publish(client, 1, 2, 3)
        first = await read_all(client, "s", 3)
        again = await read_all(client, "s", 3)
        second_position = first["events"][1]["position"]
        acked = await client.request("subscription:ack", {"name": "s", "position": second_position})
        rest = await read_all(client, "s", 1)

    assert numbers_of(first) == numbers_of(again) == [1, 2, 3]
    assert acked["position"] == second_position
    assert numbers_of(rest) == [3]
    assert "gap" not in rest


async def test_an_acknowledgement_that_comes_late_takes_nothing_back(run: Run) -> None:
    async with run(QUICK) as client:
        await client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        await publish(client, 1, 2)
        positions = [event["position"] for event in (await read_all(client, "s", 2))["events"]]
        await client.request("subscription:ack", {"name": "s", "position": positions[1]})
        late = await client.request("subscription:ack", {"name": "s", "position": positions[0]})

    assert late["position"] == positions[1]


async def test_a_reader_that_waits_is_woken_by_an_event_that_it_wants(run: Run) -> None:
    async with run(QUICK) as client, asyncio.TaskGroup() as tasks:
        await client.request("subscription:create", {"name": "s", "pattern": "agent:said"})
        reading = tasks.create_task(
            client.request("subscription:read", {"name": "s", "wait_s": 30})
        )
        await publish(client, 1, event="tool:used")
        await publish(client, 2)

        answer = await reading

    assert numbers_of(answer) == [2]


async def test_a_reader_that_waits_does_not_hold_up_the_daemon_s_end(run: Run) -> None:
    async with asyncio.TaskGroup() as tasks, run("daemon.shutdown_grace_s=30") as client:
        await client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        seen = await client.subscribe("subscription:read")
        reading = tasks.create_task(
            client.request("subscription:read", {"name": "s", "wait_s": 60})
        )
        await anext(seen)
        began = time.monotonic()
        await client.request("system:shutdown")
        assert (await reading)["events"] == []

    assert time.monotonic() - began < 10


async def test_who_creates_it_again_goes_on_where_it_was(run: Run) -> None:
    ask = {"name": "s", "pattern": "agent:*"}
    async with run(QUICK) as client:
        await client.request("subscription:create", ask)
        await publish(client, 1)
        await read_all(client, "s", 1)
    async with run(QUICK) as client:  # after a restart
        await client.request("subscription:create", ask)
        assert numbers_of(await read_all(client, "s", 1)) == [1]

        with pytest.raises(Conflict, match="something else"):
            await client.request("subscription:create", {**ask, "pattern": "agent:said"})


async def test_it_may_begin_at_a_position_or_as_far_back_as_there_is(run: Run) -> None:
    async with run(QUICK) as client:
        await client.request("subscription:create", {"name": "a", "pattern": "agent:*"})
        await publish(client, 1, 2)
        first = (await read_all(client, "a", 2))["events"][0]["position"]
        for name, after in (("b", first), ("c", "start")):
            ask = {"name": name, "pattern": "agent:*", "after": after}
            await client.request("subscription:create", ask)

        assert numbers_of(await read_all(client, "b", 1)) == [2]
        assert numbers_of(await read_all(client, "c", 2)) == [1, 2]


async def test_what_nobody_wanted_is_passed_over_for_good(run: Run) -> None:
    async with run(QUICK) as client:
        await client.request("subscription:create", {"name": "rare", "pattern": "agent:died"})
        await client.request("subscription:create", {"name": "all", "pattern": "agent:*"})
        await publish(client, 1, 2)
        await read_all(client, "all", 2)

        await client.request("subscription:read", {"name": "rare"})

        listed = (await client.request("subscription:list"))["subscriptions"]
        assert [(each["name"], each["behind"] > 0) for each in listed] == [
            ("all", True),
            ("rare", False),
        ]


async def test_what_retention_has_dropped_is_told_until_it_was_acknowledged(
    run: Run, database_logins: Logins
) -> None:
    async with run(QUICK) as client:
        made = await client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        await publish(client, 1, 2)
        lost = await read_all(client, "s", 2)
        await drop_today(database_logins)
        await publish(client, 3)

        answer = await read_all(client, "s", 1)
        (listed,) = (await client.request("subscription:list"))["subscriptions"]
        await client.request("subscription:ack", {"name": "s", "position": answer["position"]})
        after = await client.request("subscription:read", {"name": "s"})

    assert numbers_of(answer) == [3]
    assert answer["gap"]["after"] == made["position"]
    assert lost["position"] <= answer["gap"]["through"] < answer["position"]
    assert listed["gap"] == answer["gap"]
    assert "gap" not in after


async def drop_today(logins: Logins) -> None:
    connection = await asyncpg.connect(logins.admin)
    try:
        await connection.execute("SELECT ksi_journal.drop_partition(ksi_journal.today(), false)")
    finally:
        await connection.close()


# -- bounds --------------------------------------------------------------------------------------


async def test_what_the_journal_does_not_record_can_t_be_subscribed_to(run: Run) -> None:
    async with run() as client:
        with pytest.raises(InvalidData, match=r"journal\.events"):
            await client.request("subscription:create", {"name": "s", "pattern": "weather:*"})
        with pytest.raises(InvalidData, match="pattern"):
            await client.request("subscription:create", {"name": "s", "pattern": "no pattern"})


async def test_a_tenant_has_only_so_many(run: Run) -> None:
    async with run("checkpoint.max_subscriptions=2") as client:
        for name in ("a", "b", "b"):
            await client.request("subscription:create", {"name": name, "pattern": "agent:*"})
        with pytest.raises(Busy, match=r"checkpoint\.max_subscriptions"):
            await client.request("subscription:create", {"name": "c", "pattern": "agent:*"})


async def test_what_is_not_there_yet_can_t_be_acknowledged(run: Run) -> None:
    async with run() as client:
        await client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        with pytest.raises(InvalidData, match="no position"):
            await client.request("subscription:ack", {"name": "s", "position": 1_000_000})


async def test_one_that_was_deleted_is_gone(run: Run) -> None:
    async with run() as client:
        await client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        await client.request("subscription:delete", {"name": "s"})
        for verb, data in (("read", {}), ("ack", {"position": 0}), ("delete", {})):
            with pytest.raises(NotFound, match="subscription:create"):
                await client.request(f"subscription:{verb}", {"name": "s", **data})


# -- walls ---------------------------------------------------------------------------------------


async def guest(client: AsyncClient, home: Path, **who: str) -> AsyncClient:
    grants = {"call": ["*"], "publish": ["*"]}
    issued = await client.request(
        "token:create", {"name": "guest", "ttl_s": 60, "grants": grants, **who}
    )
    return AsyncClient(UnixTransport(home / "run" / "ksi.sock"), token=issued["token"])


async def test_tenants_have_names_and_events_of_their_own(run: Run, ksi_home: Path) -> None:
    ask = {"name": "s", "pattern": "agent:*"}
    async with run(QUICK) as client, await guest(client, ksi_home, tenant="acme") as other:
        await client.request("subscription:create", ask)
        assert (await other.request("subscription:list"))["subscriptions"] == []
        with pytest.raises(NotFound):
            await other.request("subscription:read", {"name": "s"})

        await other.request("subscription:create", ask)
        await publish(client, 1)
        await publish(other, 2)
        assert numbers_of(await read_all(client, "s", 1)) == [1]
        assert numbers_of(await read_all(other, "s", 1)) == [2]

        await other.request("subscription:delete", {"name": "s"})
        assert numbers_of(await read_all(client, "s", 1)) == [1]


async def test_a_user_reads_its_own_events_alone(run: Run, ksi_home: Path) -> None:
    async with run(QUICK) as client, await guest(client, ksi_home, user="ann") as ann:
        await client.request("subscription:create", {"name": "all", "pattern": "agent:*"})
        await ann.request("subscription:create", {"name": "mine", "pattern": "agent:*"})
        await publish(client, 1)
        await publish(ann, 2)

        assert numbers_of(await read_all(ann, "mine", 1)) == [2]
        assert numbers_of(await read_all(client, "all", 2)) == [1, 2]
        assert numbers_of(await read_all(client, "mine", 1)) == [2]
        with pytest.raises(NotFound):
            await ann.request("subscription:read", {"name": "all"})
        names = [each["name"] for each in (await ann.request("subscription:list"))["subscriptions"]]
        assert names == ["mine"]


# -- killed --------------------------------------------------------------------------------------


@pytest.fixture
def quick_daemon(
    database_logins: Logins, daemon_process: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> DaemonProcess:
    """A daemon in a process of its own, on the test's database, that writes its journal often.

    The database comes first, and so goes last: the daemon ends with it there.
    """
    monkeypatch.setenv("KSI_DATABASE_URL", database_logins.admin)
    monkeypatch.setenv("KSI_JOURNAL_FLUSH_INTERVAL_S", "0.01")
    daemon_process.start()
    return daemon_process


def say(client: Client, event: str, number: int) -> None:
    client.request("router:publish", {"event": event, "data": {"n": number}})


def test_after_a_kill_of_the_daemon_nothing_is_missing(quick_daemon: DaemonProcess) -> None:
    read = {"name": "s", "limit": 10, "wait_s": 10}
    with Client(quick_daemon.socket) as client:
        client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        client.request("subscription:create", {"name": "all", "pattern": "agent:*"})
        for number in range(50):
            say(client, "agent:said", number)
        deadline = time.monotonic() + WAIT_S
        while len(client.request("subscription:read", {"name": "all"})["events"]) < 50:
            assert time.monotonic() < deadline
        done = client.request("subscription:read", read)
        client.request("subscription:ack", {"name": "s", "position": done["position"]})
        client.request("subscription:read", read)  # and does not come to say so
    quick_daemon.kill(signal.SIGKILL)
    quick_daemon.start()

    got = numbers_of(done)
    with Client(quick_daemon.socket) as client:
        while len(got) < 50:
            answer = client.request("subscription:read", read)
            got += numbers_of(answer)
            client.request("subscription:ack", {"name": "s", "position": answer["position"]})

    assert got == list(range(50))


READER = """
import sys
from ksi_client import Client
with Client(sys.argv[1]) as client:
    while True:
        answer = client.request("subscription:read", {"name": "s", "limit": 3, "wait_s": 10})
        for event in answer["events"]:
            print(event["payload"]["n"], flush=True)
        client.request("subscription:ack", {"name": "s", "position": answer["position"]})
"""


def test_after_a_kill_of_the_reader_nothing_is_missing(quick_daemon: DaemonProcess) -> None:
    with Client(quick_daemon.socket) as client:
        client.request("subscription:create", {"name": "s", "pattern": "agent:*"})
        for number in range(40):
            say(client, "agent:said", number)

    got: list[int] = []
    for enough in (8, 20, 40):
        command = [sys.executable, "-c", READER, str(quick_daemon.socket)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            try:
                for line in reader.stdout:
                    got.append(int(line))
                    if len(set(got)) >= enough:
                        break
            finally:
                reader.kill()
            got += map(int, reader.stdout)  # what it had said before it was killed

    assert sorted(set(got)) == list(range(40))
    new = [number for place, number in enumerate(got) if number not in got[:place]]
    assert new == sorted(new), "something came before what stands before it"
    assert len(got) <= 40 + 2 * 3, "more came again than a page for each kill"


# -- against a model -----------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("wanted"), st.integers(1, 4)),
        st.tuples(st.just("unwanted"), st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(1, 5)),
        st.tuples(st.just("ack"), st.integers(0, 20)),
        st.tuples(st.just("reconnect"), st.just(0)),
    ),
    max_size=25,
)
EXAMPLES = itertools.count()


class Model:
    """A reader, and what it must have got."""

    def __init__(self, client: Client, example: int) -> None:
        self.client = client
        self.name = f"s{example}"
        self.event = f"agent:example{example}.said"
        self.published = 0
        self.acked = 0  # how many of them
        self.positions: list[int] = []  # of those that have come so far
        ask = {"name": self.name, "pattern": self.event}
        client.request("subscription:create", ask)

    def wanted(self, count: int) -> None:
        for _ in range(count):
            say(self.client, self.event, self.published)
            self.published += 1

    def unwanted(self, count: int) -> None:
        for number in range(count):
            say(self.client, "agent:other", number)

    def read(self, limit: int, wait_s: float = 0.0) -> int:
        ask = {"name": self.name, "limit": limit, "wait_s": wait_s}
        answer = self.client.request("subscription:read", ask)
        got = numbers_of(answer)
        assert got == list(range(self.acked, self.acked + len(got)))
        assert len(got) <= limit
        assert "gap" not in answer
        seen = [event["position"] for event in answer["events"]]
        known = self.positions[self.acked : self.acked + len(seen)]
        assert seen[: len(known)] == known
        self.positions += seen[len(known) :]
        assert self.positions == sorted(set(self.positions))
        if seen:
            assert answer["position"] >= seen[-1]
        return len(seen)

    def ack(self, place: int) -> None:
        """Acknowledge one of those that have come, perhaps once more."""
        if self.positions:
            count = place % len(self.positions) + 1
            position = self.positions[count - 1]
            ask = {"name": self.name, "position": position}
            stands = self.client.request("subscription:ack", ask)["position"]
            self.acked = max(self.acked, count)
            assert stands >= self.positions[self.acked - 1]
            if self.acked < len(self.positions):
                assert stands < self.positions[self.acked]

    def drain(self) -> None:
        """Read and acknowledge all that is left."""
        while self.acked < self.published:
            if self.read(5, wait_s=10):
                self.ack(len(self.positions) - 1)


def test_whatever_a_reader_does_everything_comes_once_acknowledged_never_again(
    quick_daemon: DaemonProcess,
) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(OPERATIONS)
    def check(operations: list[tuple[str, int]]) -> None:
        client = Client(quick_daemon.socket)
        try:
            model = Model(client, next(EXAMPLES))
            for name, number in operations:
                if name == "reconnect":
                    client.close()
                    model.client = client = Client(quick_daemon.socket)
                else:
                    getattr(model, name)(number)
            model.drain()
            assert model.read(5) == 0
        finally:
            client.close()

    check()
