"""The hooks of HTTP: keys, and the process that answers requests."""

from collections.abc import AsyncIterator
from typing import Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import KsiError
from ksi_http import keys
from ksi_http.handlers import Handlers
from ksi_http.raw import RawKeeper
from ksi_http.settings import HttpSettings
from ksi_http.store import Kept, KeyStore
from ksi_http.supervision import FOR_EVER, Sidecar
from ksi_postgres.database import Database

OWNER: Final = Kept(
    tenant="default",
    digest="",
    name="the owner's, from the home",
    on_behalf_of=None,
    scopes=("*",),
    may_act_for_others=True,
    expires_at=None,
)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres",), settings=HttpSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Answer for keys, and have requests answered."""
    settings: HttpSettings = plugin.settings
    database = plugin.service(Database)
    store = KeyStore(database)
    handlers = Handlers(store, settings, plugin.bus, plugin.home, plugin.issue_token)
    plugin.add(handlers, RawKeeper(database, settings.raw_days))
    await _see_to_the_home_key(plugin, handlers)
    if settings.enabled:
        sidecar = Sidecar(plugin, plugin.daemon.home.socket)
        plugin.add(sidecar)
        plugin.start_task("sidecar", sidecar.run, FOR_EVER)
    yield


async def _see_to_the_home_key(plugin: Plugin, handlers: Handlers) -> None:
    """Make the owner's key where there is none, and enter it where the database is a new one."""
    key = keys.home_key(plugin.home)
    try:
        if key is None:
            key = keys.make()
            await handlers.enter(key, OWNER)
            keys.keep_home_key(plugin.home, key)
        elif keys.read(key) is None:
            plugin.log.error("the key in the home is none: remove the file, and one is made")
        else:
            await handlers.enter(key, OWNER)
    except (OSError, KsiError) as error:
        plugin.log.error("the owner's key can't be kept", extra={"why": str(error)})
