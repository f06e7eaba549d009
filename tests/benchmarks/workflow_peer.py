"""Runs workflows of two steps, on bare DBOS or in a daemon, as its standard input asks.

``python workflow_peer.py bare|ksi URL``; a line ``start N`` is answered with the median time that a
start takes in milliseconds, ``flow N`` with workflows a second at sixteen at once, ``queue N`` with
the same through a queue, each with the processor time that one of them took in milliseconds.
"""

import asyncio
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

AT_ONCE = 16
QUEUE_POLL_S = 0.1
Start = Callable[[int, bool], Awaitable[Callable[[], Awaitable[int]]]]


@asynccontextmanager
async def bare(url: str) -> AsyncIterator[Start]:
    """DBOS by itself, with the same serializer, threads and connections."""
    import sqlalchemy as sa  # noqa: PLC0415  the other peer measures without it
    from dbos import DBOS  # noqa: PLC0415  the same

    from ksi_workflows.engine import _serializer  # noqa: PLC0415  the same

    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"), pool_size=16, max_overflow=0
    )
    DBOS(
        config={
            "name": "bare",
            "system_database_url": url,
            "system_database_engine": engine,
            "application_version": "1",
            "executor_id": "bare",
            "max_executor_threads": 16,
            "serializer": _serializer(),
            "log_level": "ERROR",
        }
    )

    @DBOS.step()
    async def add(number: int) -> int:
        return number + 1

    @DBOS.workflow(name="twice")
    async def twice(number: int) -> int:
        return await add(await add(number))

    DBOS.launch()
    await DBOS.register_queue_async("bench", polling_interval_sec=QUEUE_POLL_S)

    async def start(number: int, queued: bool) -> Callable[[], Awaitable[int]]:
        if queued:
            handle = await DBOS.enqueue_workflow_async("bench", twice, number)
            return lambda: handle.get_result(polling_interval_sec=0.05)
        handle = await DBOS.start_workflow_async(twice, number)
        return handle.get_result

    yield start


@asynccontextmanager
async def ksi(url: str) -> AsyncIterator[Start]:
    """A daemon with its plugins."""
    from ksi_daemon.testing import running_daemon  # noqa: PLC0415  the other measures without it
    from ksi_workflows.api import Workflows, step, workflow  # noqa: PLC0415  the same

    @step(name="add")
    async def add(number: int) -> int:
        return number + 1

    @workflow("twice")
    async def twice(number: int) -> int:
        return await add(await add(number))

    plugins = [p for p in entry_points(group="ksi") if p.name in ("postgres", "workflows")]
    settings = [f"postgres.url={url}", "postgres.pool_connections=16"]
    with tempfile.TemporaryDirectory(prefix="ksi-b-") as home:
        async with running_daemon(Path(home), *plugins, settings=settings) as daemon:
            workflows: Any = daemon._services[Workflows]
            workflows.register(twice)
            workflows.queue("bench", poll_s=QUEUE_POLL_S)

            async def start(number: int, queued: bool) -> Callable[[], Awaitable[int]]:
                run_id = await workflows.start(twice, number, queue="bench" if queued else None)
                return lambda: workflows.result(run_id)

            yield start


async def starts(start: Start, count: int) -> str:
    """Time starts, one after the other."""
    taken = []
    for number in range(count):
        began = time.perf_counter()
        result = await start(number, False)
        taken.append(time.perf_counter() - began)
        assert await result() == number + 2
    return f"{statistics.median(taken) * 1000:.4f}"


async def flow(start: Start, count: int, queued: bool) -> str:
    """Count whole workflows a second."""
    gate = asyncio.Semaphore(count if queued else AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            assert await (await start(number, queued))() == number + 2

    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(number))
    took_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{count / took_s:.2f} {used_s / count * 1000:.3f}"


async def main(kind: str, url: str) -> None:
    """Answer lines until there are no more."""
    async with (bare if kind == "bare" else ksi)(url) as start:
        await starts(start, 10)
        print("ready", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).split():
            what, count = line[0], int(line[1])
            if what == "start":
                print(await starts(start, count), flush=True)
            else:
                print(await flow(start, count, what == "queue"), flush=True)
    os._exit(0)  # DBOS leaves threads behind


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
