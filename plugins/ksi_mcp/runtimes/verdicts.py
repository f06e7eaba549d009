"""Knows of each runtime that can call tools whether it does so by the gate alone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from msgspec import structs

from ksi_daemon.supervisor import is_stopping
from ksi_mcp.events import McpRuntime, McpWay

log = logging.getLogger(__name__)

TRIAL_S: Final = 180.0
# Whoever wants to use a runtime waits for its trial, but not for ever: Postgres may be away.
PATIENCE_S: Final = 60.0
FIRST_AGAIN_S: Final = 5.0
MAX_AGAIN_S: Final = 300.0

Trial = Callable[[], Awaitable[McpRuntime]]
Ready = Callable[[], Awaitable[None]]


async def at_once() -> None:
    """Wait for nothing."""


def never() -> bool:
    """Say that a runtime is the same as it was."""
    return False


class Verdict:
    """What is known of one runtime, and how that is found out.

    Args:
        name: The runtime's.
        trial: Tries it.
        advice: What to do where it is refused.
        ready: Waits until it can be tried.
        is_stale: Says that it is another one by now.

    Attributes:
        found: What its last trial has shown.
    """

    def __init__(
        self, name: str, trial: Trial, advice: str, ready: Ready, is_stale: Callable[[], bool]
    ) -> None:
        self.found = McpRuntime(name=name)
        self._name = name
        self._trial = trial
        self._advice = advice
        self._ready = ready
        self._is_stale = is_stale
        self._is_known = asyncio.Event()
        self._is_wanted = asyncio.Event()

    async def run(self) -> None:
        """Try it, and again when it is another; one that could not be tried ever later."""
        delay_s = FIRST_AGAIN_S
        while True:
            self._is_wanted.clear()
            await self._ready()
            self.found = await self._tried()
            self._is_known.set()
            if self.found.state != "unproven":
                delay_s = FIRST_AGAIN_S
                await self._is_wanted.wait()
                continue
            with suppress(TimeoutError):  # whatever kept it from being tried may be over
                async with asyncio.timeout(delay_s):
                    await self._is_wanted.wait()
            delay_s = min(2 * delay_s, MAX_AGAIN_S)

    async def _tried(self) -> McpRuntime:
        try:
            async with asyncio.timeout(TRIAL_S):
                found = await self._trial()
        except TimeoutError:
            why = f"its trial took {TRIAL_S:g} s"
            return McpRuntime(name=self._name, state="unproven", why=why)
        except Exception as error:
            if is_stopping():
                raise  # its clean-up failed: to go on would lose the cancellation
            log.exception("a runtime could not be tried", extra={"runtime": self._name})
            why = f"its trial failed with {type(error).__name__}"
            return McpRuntime(name=self._name, state="unproven", why=why)
        if found.state == "refused":
            log.error("a runtime is refused", extra={"runtime": self._name, "why": found.why})
            return structs.replace(found, advice=self._advice)
        return found

    @property
    def is_known(self) -> bool:
        """Whether it was tried as it is now; one that is another by now is tried again."""
        if self._is_known.is_set() and self._is_stale():
            self.forget()
        return self._is_known.is_set()

    def is_of(self, version: str) -> bool:
        """Say whether it was tried in this version; if not, it is tried again."""
        is_it = self.is_known and self.found.version in ("", version)
        if not is_it and self._is_known.is_set():
            self.forget()
        return is_it

    def forget(self) -> None:
        """Have it tried again, before anybody uses it."""
        self._is_known.clear()
        self._is_wanted.set()
        self.found = McpRuntime(name=self._name)

    async def known(self) -> None:
        """Wait until it was tried as it is now."""
        while not self.is_known:
            await self._is_known.wait()

    def why_not(self) -> str | None:
        """Say why it is not to be used, as far as that is known."""
        match self.found.state:
            case "refused":
                return (
                    f"{self._name} is refused, as it can go around the gate of tools: "
                    f"{self.found.why} ({self.found.advice}; ksi doctor lists what was tried)"
                )
            case "unproven":
                return (
                    f"nobody knows whether {self._name} can go around the gate of tools: "
                    f"{self.found.why} (it is tried again by itself, at least every "
                    f"{MAX_AGAIN_S / 60:g} minutes; ksi doctor lists what was tried)"
                )
        return None


class Verdicts:
    """What the trials of the runtimes have shown; each is tried in the background."""

    def __init__(self) -> None:
        self._of: dict[str, Verdict] = {}

    def add(
        self,
        name: str,
        trial: Trial,
        *,
        advice: str,
        ready: Ready = at_once,
        is_stale: Callable[[], bool] = never,
    ) -> None:
        """Say how a runtime is tried; what the arguments are is said by `Verdict`."""
        self._of[name] = Verdict(name, trial, advice, ready, is_stale)

    def all(self) -> tuple[McpRuntime, ...]:
        """Return what is known of each."""
        return tuple(each.found for each in self._of.values())

    async def run(self) -> None:
        """Try all, none after another."""
        async with asyncio.TaskGroup() as group:
            for name, verdict in self._of.items():
                group.create_task(verdict.run(), name=f"trials of {name}")

    def is_known(self, name: str) -> bool:
        """Say whether a runtime was tried as it is now."""
        return self._of[name].is_known

    def is_of(self, name: str, version: str) -> bool:
        """Say whether a runtime was tried in this version; if not, it is tried again."""
        return self._of[name].is_of(version)

    async def why_not(self, name: str, *, with_tools: bool) -> str | None:
        """Say why a runtime is not to be used, once it was tried.

        One that could not be tried may do what needs no tools. One that was replaced since is tried
        again before.
        """
        verdict = self._of[name]
        try:
            async with asyncio.timeout(PATIENCE_S):
                await verdict.known()
        except TimeoutError:
            return f"{name} is still being tried, for more than {PATIENCE_S:g} s: ask again later"
        return verdict.why_not() if with_tools or verdict.found.state == "refused" else None

    def why_not_now(self, name: str) -> str | None:
        """Say why a runtime is not to be used, as far as that is known."""
        return self._of[name].why_not()

    def is_refused(self, name: str) -> bool:
        """Say whether a runtime was shown to go around the gate."""
        return self._of[name].found.state == "refused"

    def problems(self) -> list[str]:
        """Say what is wrong, for the daemon's health; what was not tried yet is no trouble."""
        return [why for each in self._of.values() if (why := each.why_not())]


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
