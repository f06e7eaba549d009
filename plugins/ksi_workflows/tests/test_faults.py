"""Daemons that are killed, stopped and continued, and a Postgres that goes and comes back."""

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.testing import DaemonProcess, memory_folder, read_log
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import Logins
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.testing import TestServer
from ksi_workflows.tests.daemons import Fleet, Traces, begun, outcome_of, start_count

DOWN_S = float(os.environ.get("FAULT_DOWN_S", "2"))
TOTAL = sum(range(1, 21))


def messages(daemon: DaemonProcess) -> list[str]:
    return [line["message"] for line in read_log(daemon.home)]


@pytest.mark.timeout(120)
async def test_two_others_finish_the_runs_of_a_daemon_that_was_killed(
    work: Path, database_logins: Logins
) -> None:
    takeover_s = 4.0
    fleet = Fleet(database_logins, f"workflows.takeover_after_s={takeover_s}")
    files = [work.with_suffix(f".{n}") for n in range(5)]
    with fleet.daemon() as victim, fleet.daemon() as second, fleet.daemon() as third:
        for daemon in (victim, second, third):
            await fleet.start(daemon)
        async with fleet.client(victim) as client:
            runs = [await start_count(client, file, step_s=0.1) for file in files]
            for file in files:
                await begun(Traces(file), 4)
        await fleet.until(
            "SELECT bool_and(renewed_at > now() - interval '1 s') FROM ksi_workflows.executor"
        )
        await asyncio.to_thread(victim.kill)
        killed_at = time.monotonic()
        kept = [await fleet.recorded(run_id) for run_id in runs]
        before = [Traces(file).count("begin") for file in files]

        await fleet.until(
            "SELECT NOT EXISTS (SELECT FROM dbos.workflow_status w JOIN ksi_workflows.executor e "
            "ON e.id = w.executor_id WHERE w.status = 'PENDING' AND e.ended_at IS NOT NULL) "
            "AND EXISTS (SELECT FROM ksi_workflows.executor WHERE taken_by IS NOT NULL)"
        )
        took_s = time.monotonic() - killed_at
        async with fleet.client(second) as client:
            outcomes = [await outcome_of(client, run_id) for run_id in runs]

        assert took_s < takeover_s + 1.0
        assert [outcome["output"] for outcome in outcomes] == [TOTAL] * 5
        for file, numbers, counts in zip(files, kept, before, strict=True):
            after = Traces(file).count("begin")
            assert numbers
            assert all(after[number] == counts[number] == 1 for number in numbers)


@pytest.mark.timeout(120)
async def test_a_daemon_that_was_stopped_while_another_took_over_ends_itself_and_repeats_nothing(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(database_logins, "workflows.takeover_after_s=2")
    traces = Traces(work)
    with fleet.daemon() as frozen, fleet.daemon() as other:
        await fleet.start(frozen)
        await fleet.start(other)
        async with fleet.client(frozen) as client:
            run_id = await start_count(client, work, step_s=0.2)
            await begun(traces, 4)
        assert frozen.process is not None
        frozen.process.send_signal(signal.SIGSTOP)
        async with fleet.client(other) as client:
            outcome = await outcome_of(client, run_id)
        pid = frozen.process.pid
        before = [line for line in traces.lines() if line.endswith(f" {pid}")]

        frozen.process.send_signal(signal.SIGCONT)
        code = await asyncio.to_thread(frozen.process.wait, 20)

        after = [line for line in traces.lines() if line.endswith(f" {pid}")]
        assert outcome["output"] == TOTAL
        assert code != 0
        assert before == after
        assert set(traces.count("effect").values()) == {1}
        assert "the lease is lost: the daemon stops" in messages(frozen)


@pytest.mark.timeout(60)
async def test_a_daemon_that_was_stopped_with_nobody_else_there_goes_on(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(database_logins, "workflows.takeover_after_s=1")
    traces = Traces(work)
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        assert daemon.process is not None
        async with fleet.client(daemon) as client:
            run_id = await start_count(client, work, step_s=0.05)
            await begun(traces, 4)
            daemon.process.send_signal(signal.SIGSTOP)
            await fleet.until(
                "SELECT renewed_at < now() - interval '2 s' FROM ksi_workflows.executor"
            )
            daemon.process.send_signal(signal.SIGCONT)

            outcome = await outcome_of(client, run_id)

        assert outcome["output"] == TOTAL
        assert set(traces.count("effect").values()) == {1}


@pytest.mark.timeout(120)
async def test_a_run_that_kills_its_workers_is_set_aside_until_it_is_released(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(database_logins, "workflows.max_recovery_attempts=1")
    poison = work.with_suffix(".poison")
    poison.touch()
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            start = {"name": "poison", "args": {"file": str(work)}}
            run_id = (await client.request("workflow:start", start))["run_id"]
            await asyncio.to_thread(died, daemon)
        await fleet.start(daemon)
        await asyncio.to_thread(died, daemon)

        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            outcome = await outcome_of(client, run_id)
            got = await client.request("workflow:get", {"run_id": run_id})
            poison.unlink()
            await client.request("workflow:release", {"run_id": run_id})
            released = await outcome_of(client, run_id)

        assert outcome["status"] == "quarantined"
        assert got["trouble"]["step"] == "swallow"
        assert "its worker ended 2 times" in got["trouble"]["why"]
        assert "a run is set aside" in messages(daemon)
        assert released["output"] == "sound"
        assert len(Traces(work).lines()) == 3


def died(daemon: DaemonProcess) -> None:
    assert daemon.process is not None
    assert daemon.process.wait(30) == -signal.SIGKILL


@pytest.mark.timeout(120)
async def test_a_clean_stop_counts_no_attempt_and_interrupts_no_step(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(database_logins, "workflows.max_recovery_attempts=0")
    traces = Traces(work)
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            run_id = await start_count(client, work, step_s=0.05)
        await begun(traces, 4)
        await asyncio.to_thread(daemon.stop)
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            outcome = await outcome_of(client, run_id)

        assert outcome["output"] == TOTAL
        assert set(traces.count("begin").values()) == {1}


@pytest.mark.timeout(120)
async def test_a_run_waits_for_its_plugin_and_goes_on_though_the_code_has_changed(
    work: Path, database_logins: Logins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(database_logins)
    traces = Traces(work)
    changed = tmp_path / "changed"
    changed.mkdir()
    source = Path(__file__).with_name("work_plugin.py").read_text(encoding="utf-8")
    (changed / "work_plugin.py").write_text(
        source.replace("total = 0", "total = int()") + "\nVERSION = 2\n", encoding="utf-8"
    )
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            run_id = await start_count(client, work, step_s=0.02)
            await begun(traces, 4)
        await asyncio.to_thread(daemon.kill)
        await fleet.start(daemon, "daemon.plugins=system,postgres,workflows")
        await fleet.until("SELECT queue_name = 'ksi_parked' FROM dbos.workflow_status")
        async with fleet.client(daemon) as client:
            listed = await client.request("workflow:list")
        await asyncio.to_thread(daemon.stop)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{changed}")
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            outcome = await outcome_of(client, run_id)

        assert [run["status"] for run in listed["runs"]] == ["waiting"]
        assert outcome["output"] == TOTAL


@pytest.mark.timeout(150)
async def test_runs_go_on_after_postgres_was_away(work: Path) -> None:
    with tempfile.TemporaryDirectory(
        prefix="ksi-pg-", dir=memory_folder(), ignore_cleanup_errors=True
    ) as folder:
        os.chmod(folder, 0o711)  # noqa: PTH101  the server's user passes through
        server = EmbeddedServer(Path(folder) / "pg", PostgresSettings(), fsync=False)
        await server.start()
        try:
            await outlive_an_outage(work, server)
        finally:
            await server.stop()


async def outlive_an_outage(work: Path, server: EmbeddedServer) -> None:
    logins = TestServer(server.host, dict(server.passwords)).logins("postgres")
    fleet = Fleet(logins, "workflows.takeover_after_s=2")
    files = [work.with_suffix(f".{n}") for n in range(6)]
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            runs = [await start_some(client, file, number) for number, file in enumerate(files)]
            for file in files:
                await begun(Traces(file), 3)
            await server.stop()
            await asyncio.sleep(DOWN_S)  # how long it is away is what is tested
            health = await client.request("system:health")
            await server.start()

            outcomes = [await outcome_of(client, run_id) for run_id in runs]

        degraded = {each["plugin"]: each["health"] for each in health["plugins"]}
        assert degraded["workflows"] == "degraded"
        assert [outcome["output"] for outcome in outcomes] == [TOTAL] * len(files)
        for file in files:
            assert set(Traces(file).count("effect").values()) == {1}


async def start_some(client: AsyncClient, file: Path, number: int) -> str:
    """Start a run: every other one goes through a queue."""
    args: dict[str, Any] = {"file": str(file), "step_s": 0.2}
    data = {"name": "count", "args": args, **({"key": f"k{number}"} if number % 2 else {})}
    run_id: str = (await client.request("workflow:start", data))["run_id"]
    return run_id
