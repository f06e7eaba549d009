"""A plugin that keeps notes in memory, and may be told to misbehave."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Literal

from msgspec import Struct

from ksi_daemon.event_system import event_contributor, event_handler
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.plugin import Plugin


class NotesState(Struct, frozen=True, kw_only=True):
    """What is kept of the notes."""

    version: Literal[2] = 2
    state: tuple[str, ...] = ()


class Notes:
    """The notes.

    Args:
        answer: What it says in place of its notes.
    """

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.notes: list[str] = []

    @event_handler("notes:add")
    def add(self, data: dict[str, str]) -> int:
        """Keep a note."""
        self.notes.append(data["text"])
        return len(self.notes)

    @event_handler("notes:list")
    def list_all(self) -> dict[str, Any]:
        """Tell the notes."""
        return {"pid": os.getpid(), "notes": self.notes}

    @event_handler("notes:misbehave")
    def misbehave(self) -> None:
        """Answer rubbish from now on."""
        self.answer = "rubbish"

    @event_contributor("checkpoint:collect")
    async def collect(self) -> Any:
        """Give the notes away."""
        if self.answer is None:
            return NotesState(state=tuple(self.notes))
        if self.answer == "late":
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @event_contributor("checkpoint:apply")
    async def apply(self, saved: NotesState) -> None:
        """Take the notes back, before those that have come since."""
        if self.answer == "late":
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        self.notes[:0] = saved.state


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Keep notes while the daemon runs."""
    plugin.add(Notes())
    yield
