"""The event loop of the daemon and of its hosts: uvloop where it is installed."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, as `asyncio.run` does."""
    try:
        import uvloop  # noqa: PLC0415  there is no wheel for every platform
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
