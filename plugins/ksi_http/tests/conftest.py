"""A daemon with what the tests of requests need, and no more: it starts in a hundredth."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import asdict

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_http import keys
from ksi_http.events import HttpKey
from ksi_http.handlers import Handlers
from ksi_http.keys import Presented
from ksi_http.plugin import OWNER
from ksi_http.settings import HttpSettings
from ksi_http.store import Kept
from ksi_http.tests.odd_plugin import Odd


class KeysInMemory:
    """Keeps keys as the store does, but in no database; test_keys.py has the real one."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.asked = 0

    async def find(self, key_id: str) -> Kept | None:
        self.asked += 1
        kept = self.kept.get(key_id)
        now = datetime.now(UTC)
        return kept if kept and (kept.expires_at is None or kept.expires_at > now) else None

    async def note_use(self, tenant: str, key_id: str) -> None:
        pass

    async def add(self, presented: Presented, kept: Kept, max_keys: int) -> bool:
        self.kept[presented.id] = Kept(**{**asdict(kept), "digest": presented.digest})
        return True

    async def revoke(self, tenant: str, key_id: str) -> bool:
        return self.kept.pop(key_id, None) is not None

    async def listed(self, tenant: str, *, also_ended: bool) -> tuple[HttpKey, ...]:
        return ()


@pytest.fixture
def odd() -> Odd:
    """The plugin of the tests."""
    return Odd()


@pytest.fixture
def kept_keys() -> KeysInMemory:
    """Where the keys are."""
    return KeysInMemory()


@pytest.fixture
def ksi_plugins(odd: Odd, kept_keys: KeysInMemory) -> list[EntryPoint]:
    """What the daemon of these tests loads: the real handlers of keys, without Postgres."""
    store: Any = kept_keys

    @hookimpl
    def ksi_plugin() -> PluginInfo:
        return PluginInfo(settings=HttpSettings)

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        handlers = Handlers(store, plugin.settings, plugin.bus, plugin.home, plugin.issue_token)
        plugin.add(handlers, odd)
        key = keys.make()
        await handlers.enter(key, OWNER)
        keys.keep_home_key(plugin.home, key)
        yield

    return [module_plugin("http", ksi_plugin=ksi_plugin, ksi_lifespan=ksi_lifespan)]


@pytest.fixture
def with_postgres(odd: Odd) -> list[EntryPoint]:
    """The plugin as it is, on Postgres; for modules that override ``ksi_plugins`` by it."""

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        plugin.add(odd)
        yield

    needed: list[Any] = installed_plugins("postgres", "http")
    return [*needed, module_plugin("odd", ksi_lifespan=ksi_lifespan)]
