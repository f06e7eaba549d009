"""A program that the daemon has started is not the owner: the guard, the kernel and tokens."""

import json
import sys
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_daemon.confinement import Confined
from ksi_daemon.daemon import Daemon
from ksi_daemon.principals import Principal, write_private
from ksi_daemon.protocol.events import Grants
from ksi_mcp.runtimes.claude import PROBE, probed
from ksi_mcp.runtimes.probe import WAYS
from ksi_models.api import GuardedProcess

END = [sys.executable, "-I", "-S", "-c", ""]  # what the probe becomes

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the ancestors of a process"
)


async def results(
    daemon: Daemon, folder: Path, confined: Confined | None, grants: Grants, *, once: bool
) -> dict[str, str]:
    token = daemon.tokens.issue(Principal("probe", grants), ttl_s=60.0, once=once)
    handover, told = folder / "handover", folder / "told"
    write_private(
        handover, json.dumps({"socket": str(daemon.home.socket), "token": token}).encode()
    )
    process = await GuardedProcess.start(
        [sys.executable, "-I", "-S", str(PROBE), str(handover), str(told), *END],
        environ={},
        folder=folder,
        max_line_bytes=100_000,
        confined=confined,
    )
    assert await process.read_line() == b""
    process.end()
    await process.until_gone()
    return {each.way: each.result for each in probed(told)}


async def test_a_confined_program_is_nobody_whichever_way_it_comes(
    daemon: Daemon, client: AsyncClient, tmp_path: Path
) -> None:
    confined = daemon.tokens.confined

    found = await results(daemon, tmp_path, confined, Grants(), once=True)

    assert found == dict.fromkeys(WAYS, "held")
    assert await client.request("token:list", {})  # the owner is the owner all the while


async def test_the_probe_gets_through_where_nothing_holds_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    found = await results(daemon, tmp_path, None, Grants(call=("tool:*",)), once=False)

    assert found == dict.fromkeys(WAYS, "through")


def test_nothing_is_looked_up_while_nothing_is_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_daemon.confinement.parent_of", lambda pid: pytest.fail(str(pid)))

    assert not Confined().holds(12345)


def test_a_process_that_is_gone_may_have_been_confined() -> None:
    confined = Confined()
    confined.add(99_999_999)

    assert confined.holds(99_999_998)
    assert not confined.holds(1)

    confined.discard(99_999_999)

    assert not confined.holds(99_999_998)
