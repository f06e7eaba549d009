"""The hooks of the agents."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from ksi_agents.agents import Agents
from ksi_agents.definition_handlers import DefinitionHandlers
from ksi_agents.definitions import Definitions
from ksi_agents.delegation import Delegation, Lineage
from ksi_agents.events import Spent
from ksi_agents.ledger import Ledger
from ksi_agents.life import living
from ksi_agents.limits import Bounding, account_of_agent
from ksi_agents.permits import Permits
from ksi_agents.profiles import Profiles
from ksi_agents.routing import Routing
from ksi_agents.runs import Budgets, spent_of
from ksi_agents.settings import AgentsSettings
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_postgres.database import Database
from ksi_postgres.news import News
from ksi_tools.api import Tools

CHANNEL: Final = "ksi_agents"
FOR_EVER: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=10.0, max_restarts=1_000_000)
REQUIRED: Final = ("postgres", "workflows", "completion", "tools")


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=REQUIRED, settings=AgentsSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Have agents run."""
    settings: AgentsSettings = plugin.settings
    database, bus = plugin.service(Database), plugin.bus
    news = News(CHANNEL, database)
    definitions = Definitions(database, news, settings, bus)
    agents = Agents(database, news)
    permits = Permits(bus, settings)
    ledger = Ledger(database)
    bounding, lineage = Bounding(ledger, bus), Lineage()
    delegation = Delegation(bus, definitions, agents, lineage, settings)
    plugin.offer(definitions)
    plugin.add(
        DefinitionHandlers(definitions),
        Profiles(definitions, agents, permits, bounding, Routing(definitions), lineage),
        bounding,
        Budgets(ledger, bounding, bus),
    )
    await news.listen()
    plugin.start_task("teller", news.run, FOR_EVER)
    plugin.start_task("accounts", ledger.run_closing, FOR_EVER)
    spent = _spent(agents, ledger)
    with plugin.service(Tools).add(delegation, provider=plugin.name):
        async with living(plugin, agents, definitions, permits, news, spent):
            yield
    news.unlisten()


def _spent(agents: Agents, ledger: Ledger) -> Callable[[str, str], Awaitable[Spent | None]]:
    """Return what tells how much of its limits an agent has taken."""

    async def spent(tenant: str, name: str) -> Spent | None:
        known = await agents.who(tenant, name)
        if known is None:
            return None
        taken = await ledger.taken(tenant, account_of_agent(name, known.id))
        definition = await agents.definition_of(known, tenant)
        return spent_of(taken, definition.limits)

    return spent
