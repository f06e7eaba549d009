"""The hooks of the journal."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from ksi_daemon import __version__
from ksi_daemon.event_system import event_contributor, event_interceptor
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Busy, Context, Event, KsiError
from ksi_daemon.supervisor import RestartPolicy
from ksi_journal.configuration import Configuration
from ksi_journal.events import JournalDropped, SystemStarted, SystemStopping
from ksi_journal.handlers import Handlers
from ksi_journal.journal import Journal, News
from ksi_journal.recorder import Published, Recorder
from ksi_journal.settings import JournalSettings
from ksi_journal.spool import Spool
from ksi_journal.store import Store
from ksi_journal.writer import Writer
from ksi_postgres.database import Database

FOR_EVER: Final = RestartPolicy(first_delay_s=0.5, max_delay_s=10.0, max_restarts=1_000_000)
LAST_FLUSH_S: Final = 2.0
DAYS_AHEAD: Final = 3
DROP_AGAIN_S: Final = 0.2
GATE_ORDER: Final = -1000  # outside of every other gate: what those refuse is known, too


class Gate:
    """Lets no token be made or ended that is not recorded first."""

    def __init__(self, recorder: Recorder, spool: Spool) -> None:
        self._recorder = recorder
        self._spool = spool

    @event_interceptor("token:create", order=GATE_ORDER)
    @event_interceptor("token:revoke", order=GATE_ORDER)
    async def record_first(self, event: Event, proceed: Callable[[Event], Awaitable[Any]]) -> Any:
        """Record that it begins, on the disk, and only then let it go on."""
        self._recorder.secure_first(event, begun=True)
        await self._spool.sync()
        return await proceed(event)


class Life:
    """Tells when the daemon has started and when it stops."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    async def tell_started(self) -> None:
        """Wait until every plugin has started or failed, and say so."""
        loaded = list(self._plugin.daemon.loader.plugins.values())
        for each in loaded:
            if each.name != self._plugin.name:
                await each.settled.wait()
        states = {
            each.name: "ready" if each.name == self._plugin.name else each.state for each in loaded
        }
        started = SystemStarted(version=__version__, plugins=states)
        self._plugin.bus.publish("system:started", started)

    @event_contributor("system:drained")
    def tell_stopping(self) -> None:
        """Say that the daemon stops."""
        uptime_s = round(time.time() - self._plugin.daemon.started_at, 3)
        self._plugin.bus.publish("system:stopping", SystemStopping(uptime_s=uptime_s))


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres",), settings=JournalSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Record while the daemon runs, and offer the journal to the other plugins."""
    settings: JournalSettings = plugin.settings
    router = plugin.daemon.router
    spool = Spool(plugin.home / "journal" / "security.jsonl", settings.spool_bytes)
    recorder = Recorder(settings, spool)
    database = plugin.service(Database)
    store, news = Store(database), News()

    def tell_dropped(told: JournalDropped) -> None:
        # nobody's doing: the bus would make it an effect of whatever is being handled
        router.notify(Event("journal:dropped", told, Context(router.new_id(), None, plugin.name)))

    writer = Writer(
        store,
        recorder,
        spool,
        name=router.boot,
        flush_interval_s=settings.flush_interval_s,
        wrote=news.tell,
        tell_dropped=tell_dropped,
    )
    journal = Journal(settings, store, recorder, writer, news, router.new_id)
    published = Published(recorder, router.routes.__contains__)
    life = Life(plugin)

    async def keep() -> None:
        await _keep(plugin, store, settings)

    with contextlib.ExitStack() as stack:
        spool.open()
        stack.callback(spool.close)
        news.tell((await store.bounds()).last)
        await _hear(stack, database, news, writer)
        for listener in (recorder, published):
            router.listen(listener)
            stack.callback(router.unlisten, listener)
        plugin.add(Handlers(journal, store, recorder, spool, writer), Gate(recorder, spool), life)
        plugin.offer(journal)
        plugin.start_task("writer", writer.run, FOR_EVER)
        plugin.start_task("security", writer.run_security, FOR_EVER)
        plugin.start_task("retention", keep, FOR_EVER)
        plugin.start_task("started", life.tell_started)
        Configuration(plugin, recorder).record_changes()
        yield
        await _last_flush(plugin, journal, recorder)


async def _hear(
    stack: contextlib.ExitStack, database: Database, news: News, writer: Writer
) -> None:
    """Learn what other daemons have written, and what other plugins have recorded."""

    def written(payload: str | None) -> None:
        if payload is None:
            news.wake()
        else:
            news.tell(int(payload))

    def waits(payload: str | None) -> None:
        writer.come_for_waiting()

    for channel, listener in (("ksi_journal", written), ("ksi_journal_waiting", waits)):
        await database.listen(channel, listener)
        stack.callback(database.unlisten, channel, listener)


async def _keep(plugin: Plugin, store: Store, settings: JournalSettings) -> None:
    """Make the partitions of the days to come, and drop those that are too old or too many."""
    while True:
        await store.make_ahead(DAYS_AHEAD)
        while (dropped := await _drop_one(store, settings)) is not None:
            part, why = dropped
            plugin.log.info("a part of the journal was dropped", extra={"part": part, "why": why})
        await asyncio.sleep(settings.retention_interval_s)


async def _drop_one(store: Store, settings: JournalSettings) -> tuple[str, str] | None:
    """Drop a part in a moment when nobody reads."""
    while True:
        try:
            return await store.drop_one(
                settings.retention_days, settings.security_retention_days, settings.max_bytes
            )
        except Busy as error:
            await asyncio.sleep(error.retry_after_s or DROP_AGAIN_S)


async def _last_flush(plugin: Plugin, journal: Journal, recorder: Recorder) -> None:
    """Write what still waits; what can't be written is lost, and that is logged."""
    try:
        async with asyncio.timeout(LAST_FLUSH_S):
            await journal.flush()
    except (KsiError, TimeoutError) as error:
        plugin.log.error(
            "events were not recorded, as the daemon stops",
            extra={"count": recorder.queued, "why": str(error) or "it took too long"},
        )
