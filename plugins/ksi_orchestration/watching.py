"""Notes events that may end a stage, while their orchestration is worked on here."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ksi_daemon.event_system import event_observer
from ksi_daemon.protocol import Event
from ksi_orchestration.pattern import Pattern
from ksi_orchestration.store import Store

MAX_GLOBS: Final = 200


class Watching:
    """Watches for the events that the patterns at work here name.

    Args:
        store: Keeps what was seen.
        watch: Has an object's decorated methods called from now on.
    """

    def __init__(self, store: Store, watch: Callable[[object], None]) -> None:
        self._store = store
        self._watch = watch
        self._watched: set[str] = set()
        self._wanted: dict[tuple[str, str], frozenset[str]] = {}
        self._noting: set[tuple[str, str, str]] = set()
        self._again: set[tuple[str, str, str]] = set()

    @contextmanager
    def during(self, tenant: str, which: str, pattern: Pattern) -> Iterator[None]:
        """Note what happens within a block."""
        globs = frozenset(e for stage in pattern.stages if (e := stage.until.event) is not None)
        for glob in globs - self._watched:
            if len(self._watched) < MAX_GLOBS:
                self._watched.add(glob)
                self._watch(_watcher(glob, self._happened))
        if globs:
            self._wanted[tenant, which] = globs
        try:
            yield
        finally:
            self._wanted.pop((tenant, which), None)

    async def _happened(self, glob: str, event: Event) -> None:
        for (tenant, name), globs in list(self._wanted.items()):
            if glob in globs and tenant == (event.context.tenant or "default"):
                await self._note(tenant, name, event.name)

    async def _note(self, tenant: str, which: str, event: str) -> None:
        """Note an event once more at most for all that happened while it was noted."""
        key = (tenant, which, event)
        self._again.add(key)
        if key in self._noting:
            return
        self._noting.add(key)
        try:
            while key in self._again:
                self._again.discard(key)
                await self._store.see(tenant, which, event)
        finally:
            self._noting.discard(key)


def _watcher(glob: str, happened: Callable[[str, Event], Awaitable[None]]) -> object:
    """Return an object that watches the events of a glob."""

    class Watcher:
        @event_observer(glob)
        async def see(self, event: Event) -> None:
            await happened(glob, event)

    return Watcher()
