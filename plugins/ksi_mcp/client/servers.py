"""All servers: those of the settings, and those that were added."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from ksi_daemon.bus import Bus
from ksi_daemon.confinement import Confined
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import (
    Busy,
    Conflict,
    Context,
    InvalidData,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_mcp.client import places
from ksi_mcp.client.keys.references import without_references
from ksi_mcp.client.keys.suspects import check_named, secrets_in
from ksi_mcp.client.lookout import Lookout
from ksi_mcp.client.reach import Reach
from ksi_mcp.client.remote import Remote
from ksi_mcp.client.store import Key, Store
from ksi_mcp.client.tools.offer import Rival
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.events import McpHeldBack, McpServer
from ksi_mcp.settings import McpSettings
from ksi_postgres.database import Database
from ksi_postgres.patience import until_there
from ksi_tools.api import Tools
from ksi_tools.events import ToolList, ToolListed

log = logging.getLogger(__name__)

CHANNEL: Final = "ksi_mcp"
ASK: Final = "ask_user"
DEFAULT: Final = "default"  # whose the servers of the settings are, in the store


class Servers:
    """The servers of all tenants.

    Args:
        settings: The plugin's.
        tools: The registry.
        store: Keeps them.
        bus: Publishes what changes.
        home: Where each has a folder of its own.
        confined: Knows whom the daemon does not take for its owner.
    """

    def __init__(
        self,
        settings: McpSettings,
        tools: Tools,
        store: Store,
        bus: Bus,
        home: Path,
        confined: Confined,
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._store = store
        self._bus = bus
        self._home = home
        self._confined = confined
        self._remotes: dict[Key, Remote] = {}
        self._going: dict[Key, asyncio.Event] = {}  # those that are being forgotten
        self._group: asyncio.TaskGroup | None = None
        self._reload: dict[Key, None] = {}
        self._has_missed = False  # what was notified while Postgres was away
        self._wanted = asyncio.Event()
        self._is_loaded = False
        self._lookout = Lookout(self._unknown, settings.first_at_once)

    # -- life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, database: Database) -> AsyncIterator[None]:
        """Offer the tools of all servers that are known, while this runs."""
        for name, server in self._settings.servers.items():
            check_server(name, server)
            self._add((server.tenant or DEFAULT, name), server, was_added=False)
        await database.listen(CHANNEL, self._notified)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    await self._try_to_load()
                    yield
                finally:
                    self._group = None
                    self._end()
        finally:
            database.unlisten(CHANNEL, self._notified)

    def _end(self) -> None:
        """End all connections, each of which has a time limit for that."""
        for each in self._remotes.values():
            each.end()

    def _add(self, key: Key, server: McpServer, *, was_added: bool) -> Remote:
        made = Remote(
            key,
            server,
            was_added=was_added,
            settings=self._settings,
            tools=self._tools,
            store=self._store,
            connect=self._connect,
            rivals=self._rivals,
            held_back=self._tell_held_back,
            may_ask=self._may_ask,
        )
        self._remotes[key] = made
        self._rename_beside(made)
        self._lookout.wake()
        return made

    def _rivals(self, remote: Remote) -> list[Rival]:
        """Return the servers whose tools' names go before a server's."""
        rivals = [each for each in self._remotes.values() if each.goes_before(remote)]
        return [Rival(each.prefix, each.server_name) for each in rivals]

    def _rename_beside(self, remote: Remote) -> None:
        """Offer anew what may have another name, now that a server has come or gone."""
        for each in self._remotes.values():
            if each.offer.known and remote.goes_before(each):
                each.offer.renew()

    async def _try_to_load(self) -> None:
        try:
            await self.load()
        except (Unavailable, TimedOut, Busy) as error:
            log.warning("servers are not known yet", extra={"why": error.message})

    async def load(self) -> None:
        """Take on the servers that were added, and what is known of the tools of all."""
        for key, server in (await self._store.servers()).items():
            if self._is_of_settings(key):
                told = {"server": key[1], "tenant": key[0]}
                log.warning("a server that was added is hidden by one of the settings", extra=told)
            elif key not in self._remotes:
                self._add(key, server, was_added=True)
        known = await self._store.known()
        for key, remote in self._remotes.items():
            remote.offer.load(known.get(key, {}))
        self._is_loaded = True
        self._lookout.wake()

    async def look_out(self) -> None:
        """Ask servers of which nothing is known, until something is."""
        await self._lookout.run()

    def _unknown(self) -> list[Reach]:
        return [
            each.reach
            for each in (self._remotes.values() if self._is_loaded else ())
            if each.server.is_on and not each.offer.known and not each.reach.was_reached
        ]

    async def keep_up(self) -> None:
        """See what other daemons have changed."""
        if not self._is_loaded:
            await self.load()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._has_missed:
                self._has_missed = False
                added = await until_there(self._store.servers)
                self._reload.update(dict.fromkeys((*self._remotes, *added)))
            while self._reload:
                key = next(iter(self._reload))
                del self._reload[key]
                await until_there(partial(self._reload_one, key))

    def _notified(self, payload: str | None) -> None:
        """Note which server has changed; after Postgres was away it may be any, and a new one."""
        if payload is None:
            self._has_missed = True
        else:
            tenant, _, name = payload.rpartition(" ")
            self._reload[tenant, name] = None
        self._wanted.set()

    async def _reload_one(self, key: Key) -> None:
        if not self._is_of_settings(key):
            server = await self._store.server(key)
            if server is None:
                await self._forget(key)
                return
            self._taken_on(key, server)
        if key in self._remotes:
            await self._remotes[key].offer.reload()

    def _taken_on(self, key: Key, server: McpServer) -> Remote:
        """Return a server that was added, perhaps anew under a name that another had."""
        known = self._remotes.get(key)
        if known is not None and known.server == server:
            return known
        self._drop(key)
        return self._add(key, server, was_added=True)

    def _drop(self, key: Key) -> None:
        remote = self._remotes.pop(key, None)
        if remote is not None:
            remote.end()
            self._rename_beside(remote)

    async def _forget(self, key: Key) -> None:
        """Drop a server that was removed, and what there is of it in the home.

        Whoever has asked for it comes here, and the news of it; it goes on without them.
        """
        await self._until_gone(key)
        remote = self._remotes.get(key)
        if remote is None:
            return
        self._going[key] = asyncio.Event()
        self._drop(key)
        if self._group is None:  # the daemon stops
            await self._clear_after(remote)
        else:
            self._group.create_task(self._clear_after(remote), name=f"leave {key[1]}")
            await self._until_gone(key)

    async def _clear_after(self, remote: Remote) -> None:
        try:
            await remote.until_left()
            await self._clear(remote.key)
        finally:
            self._going.pop(remote.key).set()

    async def _until_gone(self, key: Key) -> None:
        while (gone := self._going.get(key)) is not None:
            await gone.wait()

    async def _clear(self, key: Key) -> None:
        try:
            await asyncio.to_thread(places.clear, self._home, *key)
        except OSError as error:
            told = {"server": key[1], "why": str(error)}
            log.warning("not all of a server that was removed can be deleted", extra=told)

    # -- connections ----------------------------------------------------------------------------

    async def _connect(self, remote: Remote) -> Connection:
        """Begin a connection; makes room for it where there are many.

        Raises:
            Busy: There are as many as there may be, and all are used.
            Unavailable: The daemon stops.
        """
        if self._group is None:
            raise Unavailable("no server is connected any more: the daemon stops")
        others = [each.reach.connection for each in self._remotes.values() if each is not remote]
        live = [each for each in others if each is not None and not each.is_over]
        if len(live) >= self._settings.max_connected:
            idle = [each for each in live if each.is_idle()]
            if not idle:
                raise Busy(
                    f"{len(live)} servers are connected and used (mcp.max_connected)",
                    retry_after_s=1.0,
                )
            min(idle, key=lambda each: each.used_at).end()
        tenant, name = remote.key
        connection = Connection(
            name,
            remote.server,
            self._settings,
            places.folder_of(self._home, tenant, name),
            remote.offer.listed,
            places.login_of(self._home, tenant, name) if remote.server.oauth else None,
            self._confined,
            remote.reach.ended,
        )
        connection.start(self._group)
        return connection

    # -- what is asked of them ------------------------------------------------------------------

    def of(self, tenant: str) -> Iterator[Remote]:
        """Yield the servers that a tenant has, by name."""
        for key in sorted(self._remotes, key=lambda key: key[1]):
            remote = self._remotes[key]
            if self._has(tenant, remote):
                yield remote

    def find(self, tenant: str, name: str) -> Remote:
        """Return a server.

        Raises:
            NotFound: There is none of that name.
        """
        for each in self.of(tenant):
            if each.server_name == name:
                return each
        raise NotFound(f"there is no server {name!r}: see mcp:list (ksi mcp list)")

    def _has(self, tenant: str, remote: Remote) -> bool:
        return remote.is_everybodys or remote.key[0] == tenant

    def _is_of_settings(self, key: Key) -> bool:
        """Say whether a tenant has a server of that name by the settings."""
        server = self._settings.servers.get(key[1])
        return server is not None and server.tenant in ("", key[0])

    async def add(self, tenant: str, name: str, server: McpServer) -> Remote:
        """Take on another server, and keep it.

        Raises:
            InvalidData: It can't be one.
            Conflict: There is one of that name.
            Busy: There are too many.
        """
        check_server(name, server)
        check_named(server)
        if server.tenant:
            raise InvalidData("tenant is for servers of the settings: one that is added is yours")
        key = (tenant, name)
        if self._is_of_settings(key):
            raise Conflict(f"the settings have a server {name!r}: choose another name")
        verdict = await self._store.add(key, server, self._settings.max_servers)
        if verdict == "taken":
            raise Conflict(f"there is a server {name!r}: remove it first (mcp:remove)")
        if verdict == "too_many":
            raise Busy(f"there are {self._settings.max_servers} servers (mcp.max_servers)")
        await self._until_gone(key)
        await self._clear(key)  # what one of that name has left, while no daemon ran here
        return self._taken_on(key, server)

    async def remove(self, tenant: str, name: str) -> None:
        """Take a server back, with its folder and the login with it.

        Raises:
            NotFound: There is none of that name.
            Conflict: It stands in the settings.
        """
        remote = self.find(tenant, name)
        if not remote.was_added:
            raise Conflict(f"{name!r} stands in the settings ([mcp.servers.{name}])")
        await self._store.remove(remote.key)
        await self._forget(remote.key)

    # -- what they ask --------------------------------------------------------------------------

    async def _may_ask(self) -> bool:
        """Say whether whoever calls may ask a person: so may the server that is called then."""
        asked = ToolList(pattern=ASK)
        listed = await self._bus.request("tool:list", asked, result_type=ToolListed)
        return bool(listed.tools)

    def drop(self, tenant: str, call_id: str) -> None:
        """Tell a server that nobody answers what it asks in a call, if it does."""
        for each in self._remotes.values():
            each.calls.drop(tenant, call_id)

    # -- what is told ---------------------------------------------------------------------------

    def _tell_held_back(self, remote: Remote, tools: tuple[str, ...]) -> None:
        log.warning(
            "tools of a server have changed and are held back",
            extra={"server": remote.server_name, "tools": list(tools)},
        )
        context = Context(id=f"mcp {time.time_ns():x}", origin="mcp", tenant=remote.key[0])
        with acting_as(context):
            told = McpHeldBack(name=remote.server_name, tools=tools)
            self._bus.publish("mcp:held_back", told)


def check_server(name: str, server: McpServer) -> None:
    """Refuse what can't be a server.

    Raises:
        InvalidData: It has no command and no URL, or both.
    """
    if bool(server.command) == bool(server.url):
        raise InvalidData(f"the server {name!r} is to have a command or a URL")
    if server.url and not server.url.startswith(("http://", "https://")):
        raise InvalidData(f"the URL of the server {name!r} is to begin with https:// or http://")
    if server.oauth and not server.url:
        raise InvalidData(f"the server {name!r} has no URL: one does not log in with a command")
    if server.oauth and (
        secrets_in("", server.url) or without_references(server.url) != server.url
    ):
        raise InvalidData(f"one logs in with the server {name!r}: its URL is to have no secret")
    if server.command and server.headers:
        raise InvalidData(f"the server {name!r} is a command: headers go with a URL")
