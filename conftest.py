"""What holds for every test of the project."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

BEFORE_THE_LIMIT = 0.9
LOG_LINES = 60


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """End an asynchronous test a little before its limit.

    The limit's signal breaks into the loop, not into the test that runs on it: the fixtures would
    wait for that test for ever, and the run for them.
    """
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test):
        pyfuncitem.obj = bounded(test, BEFORE_THE_LIMIT * limit_of(pyfuncitem))
    return (yield)


def limit_of(item: pytest.Item) -> float:
    """Return how many seconds a test may take."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0] if mark else item.config.getini("timeout"))


def bounded(test: Callable[..., Awaitable[None]], limit_s: float) -> Callable[..., Any]:
    """Return a test that is cancelled where it is still at work after so long."""

    @functools.wraps(test)
    async def inner(*args: Any, **fixtures: Any) -> None:
        async with asyncio.timeout(limit_s):
            await test(*args, **fixtures)

    return inner


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a test that failed what its daemon wrote last."""
    report = yield
    home = getattr(item, "funcargs", {}).get("ksi_home")
    if report.failed and isinstance(home, Path):
        for log in sorted(home.glob("log/*.log")):
            last = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            report.sections.append((f"the last of {log.name}", "\n".join(last)))
    return report
