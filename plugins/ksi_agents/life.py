"""Puts together what agents need to live."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ksi_agents.agents import Agents
from ksi_agents.channels import Channels
from ksi_agents.definitions import Definitions
from ksi_agents.life_handlers import LifeHandlers, Spent, nothing_spent
from ksi_agents.mailbox import Mailbox
from ksi_agents.missing import Missing
from ksi_agents.permits import Permits
from ksi_agents.reconcile import Reconciler
from ksi_agents.supervision import Supervision
from ksi_agents.waking import Waking
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_postgres.news import News
from ksi_workflows.api import Workflows

ONCE: Final = RestartPolicy()
FOR_EVER: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=10.0, max_restarts=1_000_000)


@asynccontextmanager
async def living(
    plugin: Plugin,
    agents: Agents,
    definitions: Definitions,
    permits: Permits,
    news: News,
    spent: Spent = nothing_spent,
) -> AsyncIterator[None]:
    """Have agents live for as long as a block, and answer for them.

    Args:
        plugin: The plugin.
        agents: Keeps them.
        definitions: What they are.
        permits: Says what they may call.
        news: Tells other daemons.
        spent: Tells what an agent has taken.
    """
    settings, bus = plugin.settings, plugin.bus
    reconciler = Reconciler(agents, bus, settings)
    mailbox = Mailbox(settings, agents, bus, news, reconciler, Missing(agents, definitions))
    waking = Waking(bus, agents, plugin.add)
    supervision = Supervision(settings, agents, definitions, permits, waking, bus, reconciler)
    channels = Channels(settings, agents, reconciler)
    reconciler.attach(give=mailbox.give, start=supervision.start, cancel=mailbox.cancel)
    plugin.service(Workflows).register(waking.wake)
    async with reconciler:
        plugin.add(
            LifeHandlers(
                settings,
                agents,
                definitions,
                mailbox,
                channels,
                supervision,
                reconciler,
                bus,
                spent,
            )
        )
        plugin.start_task("runs", mailbox.run_notes, FOR_EVER)
        plugin.start_task("agents", reconciler.run, FOR_EVER)
        plugin.start_task("wakes", waking.watch_again, ONCE)
        yield
