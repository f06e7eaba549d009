"""Answers ``checkpoint:*``, and takes checkpoints when the daemon drains and now and then."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

from ksi_checkpoint import events as e
from ksi_checkpoint.keeper import APPLY, COLLECT, Keeper
from ksi_checkpoint.settings import CheckpointSettings
from ksi_checkpoint.store import Checkpoints
from ksi_daemon.event_system import (
    current_context,
    event_contributor,
    event_handler,
    event_interceptor,
)
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import Denied, Event, KsiError
from ksi_system.events import HealthCheck, HealthChecked

log = logging.getLogger(__name__)

DRAIN_SHARE: Final = 0.8  # of the time that a contributor has, so that it ends before it is ended


class Handlers:
    """What is asked of the keeper, and when it acts by itself.

    Args:
        keeper: Takes and applies them.
        store: Keeps them.
        settings: How often.
        drain_timeout_s: How long the drain waits for a contributor.
    """

    def __init__(
        self,
        keeper: Keeper,
        store: Checkpoints,
        settings: CheckpointSettings,
        drain_timeout_s: float,
    ) -> None:
        self._keeper = keeper
        self._store = store
        self._settings = settings
        self._drain_timeout_s = drain_timeout_s

    # -- asked ----------------------------------------------------------------------------------

    @event_handler("checkpoint:create")
    async def create(self, request: e.CheckpointCreate) -> e.CheckpointCreated:
        """Save what the plugins have in memory; one that fails is named, and the rest is saved."""
        _check_owner()
        created = await self._keeper.take(request.reason or "asked for")
        assert created is not None
        return created

    @event_handler("checkpoint:list")
    async def list_all(self, request: e.CheckpointList) -> e.CheckpointListed:
        """List the checkpoints, the newest first."""
        _check_owner()
        found = await self._store.list(request.limit, all_daemons=request.all_daemons)
        return e.CheckpointListed(daemon=self._store.daemon, checkpoints=found)

    @event_handler("checkpoint:show")
    async def show(self, request: e.CheckpointShow) -> e.CheckpointShown:
        """Show what a checkpoint holds."""
        _check_owner()
        return await self._keeper.show(request.id, request.plugin)

    @event_handler("checkpoint:restore")
    async def restore(self, request: e.CheckpointRestore) -> e.CheckpointRestored:
        """Give plugins back what a checkpoint holds; one that fails is named, the rest goes on."""
        _check_owner()
        return await self._keeper.restore(request.id, request.plugins)

    @event_handler("checkpoint:delete")
    async def delete(self, request: e.CheckpointDelete) -> e.CheckpointDeleted:
        """Delete a checkpoint."""
        _check_owner()
        await self._store.delete(request.id)
        return e.CheckpointDeleted(id=request.id)

    @event_handler("checkpoint:acknowledge")
    def acknowledge(self, request: e.CheckpointAcknowledge) -> e.CheckpointAcknowledged:
        """Say that the problems were seen."""
        _check_owner()
        return e.CheckpointAcknowledged(problems=self._keeper.acknowledge())

    # -- not to be sent -------------------------------------------------------------------------

    @event_interceptor(COLLECT)
    async def refuse_collect(
        self, event: Event, proceed: Callable[[Event], Awaitable[Any]]
    ) -> NoReturn:
        """Show nobody the states of all plugins."""
        raise Denied(
            f"{event.name} is the daemon's own: send checkpoint:create (ksi checkpoint create)"
        )

    @event_interceptor(APPLY)
    async def refuse_apply(
        self, event: Event, proceed: Callable[[Event], Awaitable[Any]]
    ) -> NoReturn:
        """Let nobody hand one state to all plugins."""
        raise Denied(
            f"{event.name} is the daemon's own: send checkpoint:restore (ksi checkpoint restore)"
        )

    # -- by itself ------------------------------------------------------------------------------

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether all states could be saved and given back."""
        problems = list(self._keeper.problems.values())
        if not problems:
            return HealthChecked(health="ok")
        return HealthChecked(health="degraded", why="; ".join(problems))

    @event_contributor("system:drained")
    async def drained(self) -> None:
        """Take the last checkpoint, while the plugins are still there."""
        taken = False
        why = "the daemon waits no longer"
        try:
            await self._keeper.take("drain", within_s=self._drain_timeout_s * DRAIN_SHARE)
            taken = True
        except KsiError as error:
            why = error.message
        finally:  # also where the drain has no more time
            if not taken:
                log.error("no checkpoint was taken at the drain", extra={"why": why})

    async def run_interval(self) -> None:
        """Take a checkpoint now and then, where something has changed."""
        while True:
            await asyncio.sleep(self._settings.interval_s)
            try:
                await self._keeper.take("interval", only_if_changed=True)
            except KsiError as error:
                log.warning("no checkpoint could be taken", extra={"why": error.message})


def _check_owner() -> None:
    """Refuse what a token's bearer caused: a checkpoint holds what plugins know of all tenants."""
    context = current_context()
    if context is not None and is_bearers(context):
        raise Denied("checkpoints are of the daemon as a whole: only its owner has to do with them")
