"""The hooks of the models."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_models.calls import Calls, Tools
from ksi_models.catalogue import Catalogue
from ksi_models.handlers import Handlers
from ksi_models.keys import Keys
from ksi_models.lanes import Lanes
from ksi_models.prices import EXAMPLE, Prices
from ksi_models.providers import Providers
from ksi_models.recorder import Recorder
from ksi_models.runtimes import Runtimes
from ksi_models.settings import ModelsSettings
from ksi_models.store import Store
from ksi_postgres.database import Database

# Postgres may be away for as long as it likes.
FOR_EVER: Final = RestartPolicy(first_delay_s=0.5, max_delay_s=15.0, max_restarts=1_000_000)

# What these say at `debug` has requests in it, with their headers.
TALKATIVE: Final = ("aiohttp", "anthropic", "hpack", "httpcore", "httpx", "openai")


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres",), settings=ModelsSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Take the keys out of the environment, and ask models while the daemon runs."""
    settings: ModelsSettings = plugin.settings
    keys = Keys(settings, plugin.home)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)
    providers = Providers(settings, keys, plugin.home, plugin.confined)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(providers.close)
        lanes, prices = Lanes(settings), Prices()
        stack.callback(lanes.close)
        store = Store(plugin.service(Database))
        recorder = Recorder(store, settings.record_timeout_s)
        stack.push_async_callback(recorder.flush)
        catalogue = Catalogue(settings, providers, prices)
        for name in (*settings.aliases, *settings.fallbacks, settings.model):
            if name:
                catalogue.expand(name)  # a wrong one is told at the start
        tools = Tools(settings, catalogue, providers, lanes, prices, recorder, keys)
        handlers = Handlers(tools, store, plugin.bus)
        plugin.add(Calls(tools, plugin.bus), handlers)
        plugin.offer(Runtimes(settings, providers))
        plugin.start_task("rows", recorder.run, FOR_EVER)
        plugin.start_task("old rows", handlers.forget, FOR_EVER)

        async def read_prices() -> None:
            await prices.ready(settings.model, EXAMPLE if keys.set_variables() else "")

        plugin.start_task("prices", read_prices)
        yield
