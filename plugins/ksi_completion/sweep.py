"""Looks after turns that nobody is at, or whose run has ended without them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ksi_completion.acceptance import Acceptance
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import Due, Next, Store
from ksi_daemon.protocol import Busy, Cancelled, ErrorBody, Failed, NotFound, TimedOut, Unavailable
from ksi_workflows.api import Workflows

log = logging.getLogger(__name__)

AT_ONCE: Final = 100
HANDED_OVER_S: Final = 5.0
CHECK_S: Final = 15.0
OLD_S: Final = 30.0
FORGOTTEN_S: Final = 3600.0
OVER: Final = ("finished", "failed", "cancelled", "quarantined")

GiveUp = Callable[[str, str, ErrorBody], Awaitable[None]]


class Sweep:
    """Begins turns that were left, and ends those that can't go on.

    Args:
        settings: The plugin's.
        store: Knows the turns.
        acceptance: Begins them.
        workflows: Knows their runs.
        give_up: Ends one.
    """

    def __init__(
        self,
        settings: CompletionSettings,
        store: Store,
        acceptance: Acceptance,
        workflows: Workflows,
        give_up: GiveUp,
    ) -> None:
        self._settings = settings
        self._store = store
        self._acceptance = acceptance
        self._workflows = workflows
        self._give_up = give_up

    async def run(self) -> None:
        """Look now and then, for ever."""
        loop = asyncio.get_running_loop()
        checked_at = loop.time()
        while True:
            try:
                await self.begin_left()
                if loop.time() - checked_at >= CHECK_S:
                    checked_at = loop.time()
                    await self.end_stranded()
                    await self._store.tidy_relay(FORGOTTEN_S)
                    await self._store.drop_questions()
            except (Unavailable, TimedOut, Busy):
                pass  # Postgres is away; there will be another time
            await asyncio.sleep(self._settings.sweep_s)

    async def begin_left(self) -> None:
        """Begin the turns that may begin and that nobody has begun."""
        for due in await self._store.due(HANDED_OVER_S, AT_ONCE):
            self._acceptance.begin(Next(due.run, due.context))

    async def end_stranded(self) -> None:
        """End the turns whose runs have ended without them."""
        for turn in await self._store.at_work(OLD_S, AT_ONCE):
            why = await self._why_stranded(turn)
            if why is not None:
                log.warning("a turn is ended", extra={"run": turn.run, "why": why.message})
                await self._give_up(turn.tenant, turn.run, why)

    async def _why_stranded(self, turn: Due) -> ErrorBody | None:
        try:
            run = await self._workflows.find(turn.tenant, turn.run)
        except NotFound:
            return None  # it is not begun yet; see begin_left
        status = run["status"]
        if status not in OVER:
            return None
        if status == "cancelled":
            return Cancelled("the turn's run was cancelled").body
        return Failed(
            f"the turn's run is {status}: ksi send workflow:get run_id={turn.run} tells why",
            details={"run_id": turn.run},
        ).body
