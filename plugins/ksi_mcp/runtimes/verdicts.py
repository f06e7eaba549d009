"""Knows of each runtime that can call tools whether it does so by the gate alone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ksi_mcp.events import McpRuntime, McpWay

log = logging.getLogger(__name__)

TRIAL_S: Final = 180.0
AGAIN_S: Final = 5.0

Trial = Callable[[], Awaitable[McpRuntime]]


def never() -> bool:
    """Say that a runtime is the same as it was."""
    return False


class Verdicts:
    """What the trials of the runtimes have shown; each is tried in the background."""

    def __init__(self) -> None:
        self._trials: dict[str, Trial] = {}
        self._found: dict[str, McpRuntime] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._is_stale: dict[str, Callable[[], bool]] = {}
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        self._asked_again: set[str] = set()

    def add(
        self,
        name: str,
        trial: Trial,
        is_stale: Callable[[], bool] = never,
        *,
        is_asked_again: bool = False,
    ) -> None:
        """Say how a runtime is tried.

        Args:
            name: The runtime's.
            trial: Tries it.
            is_stale: Says that it is another one by now.
            is_asked_again: Whether it is tried until that works.
        """
        self._trials[name] = trial
        if is_asked_again:
            self._asked_again.add(name)
        self._is_stale[name] = is_stale
        self._found[name] = McpRuntime(name=name)
        self._ended[name] = asyncio.Event()

    def all(self) -> tuple[McpRuntime, ...]:
        """Return what is known of each."""
        return tuple(self._found.values())

    async def run(self) -> None:
        """Try each, and then whatever is to be tried again."""
        for name in self._trials:
            await self._try(name)
        while True:
            undone = [name for name in self._asked_again if self._found[name].state == "unproven"]
            try:
                async with asyncio.timeout(AGAIN_S if undone else None):
                    undone = [await self._wanted.get()]
            except TimeoutError:
                pass  # whatever kept them from being tried may be over
            for name in undone:
                await self._try(name)

    async def _try(self, name: str) -> None:
        try:
            async with asyncio.timeout(TRIAL_S):
                found = await self._trials[name]()
        except TimeoutError:
            found = McpRuntime(name=name, state="unproven", why=f"its trial took {TRIAL_S:g} s")
        except Exception as error:
            log.exception("a runtime could not be tried", extra={"runtime": name})
            why = f"its trial failed with {type(error).__name__}"
            found = McpRuntime(name=name, state="unproven", why=why)
        self._found[name] = found
        self._ended[name].set()
        if found.state == "refused":
            log.error("a runtime is refused", extra={"runtime": name, "why": found.why})

    async def why_not(self, name: str, *, with_tools: bool) -> str | None:
        """Say why a runtime is not to be used, once it was tried.

        One that could not be tried may do what needs no tools. One that was replaced since is tried
        again before.
        """
        await self._ended[name].wait()
        while self._is_stale[name]():
            if self._ended[name].is_set():
                self._ended[name].clear()
                self._found[name] = McpRuntime(name=name)
                self._wanted.put_nowait(name)
            await self._ended[name].wait()
        state = self._found[name].state
        return self.why_not_now(name) if with_tools or state == "refused" else None

    def why_not_now(self, name: str) -> str | None:
        """Say why a runtime is not to be used, as far as that is known."""
        found = self._found[name]
        match found.state:
            case "refused":
                return f"{name} is refused, as it can go around the gate of tools: {found.why}"
            case "unproven":
                return f"nobody knows whether {name} can go around the gate of tools: {found.why}"
        return None

    def is_refused(self, name: str) -> bool:
        """Say whether a runtime was shown to go around the gate."""
        return self._found[name].state == "refused"

    def problems(self) -> list[str]:
        """Say what is wrong, for the daemon's health."""
        return [why for each in self._found.values() if (why := self.why_not_now(each.name))]


def verdict_of(name: str, ways: list[McpWay]) -> McpRuntime:
    """Return what a trial has shown."""
    through = [f"{way.way} ({way.detail})" for way in ways if way.result == "through"]
    if through:
        why = "; ".join(through)
        return McpRuntime(name=name, state="refused", why=why, ways=tuple(ways))
    unknown = [f"{way.way}: {way.detail}" for way in ways if way.result == "unknown"]
    if unknown:
        why = "; ".join(unknown)
        return McpRuntime(name=name, state="unproven", why=why, ways=tuple(ways))
    return McpRuntime(name=name, state="proven", ways=tuple(ways))
