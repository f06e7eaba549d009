"""A program that the daemon has started is not the owner: the guard, the kernel and tokens."""

import json
import sys
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_daemon.confinement import Confined
from ksi_daemon.daemon import Daemon
from ksi_daemon.principals import Principal
from ksi_daemon.protocol.events import Grants
from ksi_models.api import GuardedProcess

PROBE = Path(__file__).parent.parent / "runtimes" / "probe.py"
WAYS = ["the socket without a token", "a second process", "asking for more", "a token used twice"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the ancestors of a process"
)


async def probed(
    daemon: Daemon, folder: Path, confined: Confined | None, grants: Grants, *, once: bool
) -> dict[str, str | None]:
    token = daemon.tokens.issue(Principal("probe", grants), ttl_s=60.0, once=once)
    (folder / "token").write_text(token)
    process = await GuardedProcess.start(
        [sys.executable, "-I", "-S", str(PROBE), str(daemon.home.socket), str(folder / "token")],
        environ={},
        folder=folder,
        max_line_bytes=100_000,
        confined=confined,
    )
    found: dict[str, str | None] = {}
    while line := await process.read_line():
        told = json.loads(line)
        found[told["way"]] = told["got"]
    process.end()
    await process.until_gone()
    assert sorted(found) == sorted(WAYS), process.complaints
    return found


async def test_a_confined_program_is_nobody_whichever_way_it_comes(
    daemon: Daemon, client: AsyncClient, tmp_path: Path
) -> None:
    confined = daemon.tokens.confined

    found = await probed(daemon, tmp_path, confined, Grants(), once=True)

    assert found == dict.fromkeys(WAYS)
    assert await client.request("token:list", {})  # the owner is the owner all the while


async def test_the_probe_gets_through_where_nothing_holds_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    found = await probed(daemon, tmp_path, None, Grants(call=("tool:*",)), once=False)

    assert [way for way in WAYS if found[way] is None] == []


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
