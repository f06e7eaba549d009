"""What a guard knows of the command that it ran."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ksi_models.providers.guarded import GuardedProcess


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run on each loop that daemons run on."""
    is_uvloop = request.param == "uvloop"
    if is_uvloop and importlib.util.find_spec("uvloop") is None:
        pytest.skip("there is no uvloop here")
    return "asyncio", {"use_uvloop": is_uvloop}


async def started(folder: Path, script: str) -> GuardedProcess:
    """Run a script."""
    command = [sys.executable, "-I", "-S", "-c", script]
    environ = dict(os.environ)
    return await GuardedProcess.start(command, environ=environ, folder=folder, max_line_bytes=100)


TIMEOUT = asyncio.timeout


@asynccontextmanager
async def old_timeout(delay_s: float) -> AsyncIterator[asyncio.Timeout]:
    """Do as Python 3.11.2, where a task that is being cancelled is never told of a time-out."""
    try:
        async with TIMEOUT(delay_s) as scope:
            yield scope
    except TimeoutError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise


async def test_a_task_that_is_being_cancelled_waits_for_a_command_no_longer_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "timeout", old_timeout)
    process = await started(tmp_path, "import time; time.sleep(1000)")
    begun, was_gone = asyncio.Event(), []

    async def use() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            was_gone.append(await process.until_gone(0.05))
            process.end()
            was_gone.append(await process.until_gone())

    async with asyncio.TaskGroup() as tasks:
        using = tasks.create_task(use())
        await begun.wait()
        using.cancel()

    assert was_gone == [False, True]
    assert process.is_gone


async def test_what_is_given_to_a_command_that_has_ended_was_not_read(tmp_path: Path) -> None:
    process = await started(tmp_path, "import os; os.read(0, 3)")
    await process.write(b"read and not")
    said = await process.read(100)
    await process.write(b" read")
    process.write_and_close(b" at all")
    is_gone = await process.until_gone()

    assert (said, is_gone) == (b"", True)
    assert process.ended.unread_bytes == len(b"d and not read at all")


async def test_what_was_left_is_not_known_while_more_may_come(tmp_path: Path) -> None:
    process = await started(tmp_path, "")
    await process.read(100)
    process.end()
    await process.until_gone()

    assert process.ended.unread_bytes is None


async def test_a_command_that_closes_its_output_is_heard_to_do_so(tmp_path: Path) -> None:
    process = await started(tmp_path, "import os, time; os.close(1); time.sleep(60)")
    said = await process.read(100)
    is_gone = process.is_gone
    process.end()
    await process.until_gone()

    assert (said, is_gone) == (b"", False)


async def test_a_command_that_has_ended_takes_no_more_input(tmp_path: Path) -> None:
    process = await started(tmp_path, "")
    process.write_and_close(b"")
    await process.until_gone()
    process.write_and_close(b"more")

    assert not process.takes_input
    with pytest.raises(BrokenPipeError):
        await process.write(b"more")
