"""A daemon that stops before its engine runs."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import read_log, running_daemon
from ksi_workflows.engine import Engine

WELL_WITHIN_S = 10.0


@pytest.mark.parametrize("stage", ["prepare", "launch"])
async def test_a_daemon_that_stops_while_the_engine_is_launched_waits_for_that_alone(
    stage: str,
    ksi_home: Path,
    ksi_plugins: list[EntryPoint],
    ksi_settings_of_plugins: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    whole = getattr(Engine, stage)

    def held(engine: Engine, *args: Any) -> None:
        begun.set()
        assert may_go_on.wait(WELL_WITHIN_S)
        whole(engine, *args)

    monkeypatch.setattr(Engine, stage, held)
    async with running_daemon(ksi_home, *ksi_plugins, settings=ksi_settings_of_plugins) as daemon:
        await asyncio.to_thread(begun.wait, WELL_WITHIN_S)
        daemon.shutdown(0.0)
        await daemon.loader.stopping.wait()
        for _ in range(10):  # let the launch be cancelled
            await asyncio.sleep(0)
        may_go_on.set()
        asked_at = time.monotonic()

    assert time.monotonic() - asked_at < WELL_WITHIN_S
    said = read_log(ksi_home)
    assert [line for line in said if line["level"] in ("warning", "error", "critical")] == []
    assert ("left office" in [line["message"] for line in said]) is (stage == "launch")
