"""Runs plain functions in threads that nobody has to wait for."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from ksi_daemon.protocol import Busy

Result = TypeVar("Result")

MAX_THREADS: Final = 256  # with those that go on past their time-out, of which some never end
NAME: Final = "tool function"


async def in_thread(function: Callable[[], Result]) -> Result:
    """Run a function in a thread of its own.

    The loop's own threads are few, and the daemon waits for them when it stops: functions that hang
    would take all of them, and whatever else the daemon does in threads would wait, too.

    Raises:
        Busy: Too many run already.
    """
    running = sum(thread.name == NAME for thread in threading.enumerate())
    if running >= MAX_THREADS:
        raise Busy(f"{running} plain functions of tools run already, some past their time-out")
    ended: Future[Result] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        if not ended.set_running_or_notify_cancel():
            return
        try:
            result = context.run(function)
        except StopIteration:  # which no future of the loop takes
            ended.set_exception(RuntimeError("StopIteration"))
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            ended.set_exception(error)
        else:
            ended.set_result(result)

    threading.Thread(target=run, name=NAME, daemon=True).start()
    return await asyncio.wrap_future(ended)
