"""Answers ``agent:*``, as far as it is about their life."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import structs

from ksi_agents import events as e
from ksi_agents.agents import (
    Agents,
    Going,
    Kept,
    Spawn,
    agent_of,
    conditions_of,
    encoded,
)
from ksi_agents.channels import Channels
from ksi_agents.definition import Definition
from ksi_agents.definitions import Definitions
from ksi_agents.inputs import check_input
from ksi_agents.mailbox import Mailbox
from ksi_agents.missing import Missing
from ksi_agents.reconcile import AWAY, Reconciler, about
from ksi_agents.settings import AgentsSettings
from ksi_agents.supervision import Supervision
from ksi_completion.events import CompletionResult
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import (
    acting_as,
    current_context,
    event_contributor,
    event_handler,
    event_observer,
)
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import (
    Busy,
    Conflict,
    Context,
    Denied,
    Event,
    InvalidData,
    NotFound,
)
from ksi_system.events import HealthCheck, HealthChecked
from ksi_tools.events import ToolPermissions, ToolPermitted
from ksi_workflows.events import WorkflowDescribed, WorkflowGet

WAIT_MARGIN_S: Final = 3700.0
START_S: Final = 10.0  # a start that asks nothing is waited for
MANY_S: Final = 600.0  # ten thousand at once take their time
NAME_TRIES: Final = 5
LEAVE_S: Final = 0.5
LOOK_AGAIN_S: Final = 5.0  # where a word that was told got lost
MAX_STEM: Final = 50
MAX_SHOWN: Final = 100
ONLY_READS: Final = "restricted"
STARTED: Final = ("Ready", "Busy", "Failed", "Completed", "Terminated")
_GLOB: Final = re.compile(r"[*?]")

Spent = Callable[[str, str], Awaitable[e.Spent | None]]


async def nothing_spent(tenant: str, name: str) -> e.Spent | None:
    """Know nothing of what agents take."""
    return None


class LifeHandlers:
    """Has agents run, and tells of them; shows each caller what is his.

    Args:
        settings: The plugin's.
        agents: Keeps them.
        definitions: What they are.
        mailbox: Takes their messages.
        channels: Hands round what is published.
        supervision: Starts them.
        reconciler: Sees to what they need.
        bus: Asks what they may call.
        spent: Tells what an agent has taken.
    """

    def __init__(
        self,
        settings: AgentsSettings,
        agents: Agents,
        definitions: Definitions,
        mailbox: Mailbox,
        channels: Channels,
        supervision: Supervision,
        reconciler: Reconciler,
        bus: Bus,
        spent: Spent = nothing_spent,
    ) -> None:
        self._settings = settings
        self._agents = agents
        self._definitions = definitions
        self._mailbox = mailbox
        self._channels = channels
        self._supervision = supervision
        self._reconciler = reconciler
        self._bus = bus
        self._spent = spent
        self._missing = Missing(agents, definitions)
        self._sections: dict[str, Callable[[Kept], Awaitable[Any]]] = {
            "conditions": self._conditions,
            "definition": self._definition,
            "mailbox": self._mail,
            "usage": self._usage,
            "children": self._children,
            "channels": agents.channels,
            "tools": self._tools,
        }

    # -- having one -----------------------------------------------------------------------------

    @event_handler("agent:spawn", scope="agents:write", timeout_s=WAIT_MARGIN_S)
    async def spawn(self, request: e.AgentSpawn) -> e.Agent:
        """Have an agent run: by a definition's name, or by a document of its own."""
        context = _context()
        _check_conversation(request, context)
        definition, version = await self._asked_for(request, context)
        await self._check_name(request, definition, context)
        if request.prompt is not None:
            check_input(definition.name, definition.input, request.prompt)
        verdict, kept = await self._keep(request, definition, version, context)
        self._check(verdict, kept, request, definition)
        assert kept is not None
        if verdict == "new":
            self._reconciler.tell(structs.replace(kept, phase="Pending"), "")
            self._reconciler.tell(kept, "Pending")
        wait_s = request.wait_s if definition.probes else max(request.wait_s, START_S)
        return agent_of(await self._started(kept, wait_s, is_new=verdict == "new"))

    async def _asked_for(self, request: e.AgentSpawn, context: Context) -> tuple[Definition, int]:
        if (request.definition is None) == (request.document is None):
            raise InvalidData("an agent runs by a definition, or by a document of its own")
        if request.document is not None:
            if request.version is not None:
                raise InvalidData("a document of its own has no version")
            definition = await self._definitions.read(context.tenant, request.document)
            if is_bearers(context) and context.agent is None:  # nobody bounds it who may do more
                definition = structs.replace(definition, permissions=ONLY_READS)
            return definition, 1
        assert request.definition is not None
        asked = (context.tenant, request.definition, request.version)
        found = await self._definitions.find(*asked)
        if found is None:
            raise await self._definitions.not_found(*asked)
        return found.definition, found.version

    async def _check_name(
        self, request: e.AgentSpawn, definition: Definition, context: Context
    ) -> None:
        """Keep the name of a definition for agents that run by it, and are nobody's children."""
        if request.name is None:
            return
        if request.document is None and context.agent is None and request.name == definition.name:
            return
        if await self._definitions.find(context.tenant, request.name) is not None:
            raise Conflict(
                f"{request.name} is the name of a definition: give the agent another one, or none"
            )

    async def _keep(
        self, request: e.AgentSpawn, definition: Definition, version: int, context: Context
    ) -> tuple[str, Kept | None]:
        asked = encoded(structs.replace(request, request_id=None, wait_s=0.0))
        digest = hashlib.sha256(asked.encode()).hexdigest()
        for _ in range(NAME_TRIES):
            agent_id = secrets.token_hex(6)
            name = request.name or name_for(definition.name, agent_id)
            verdict, kept = await self._agents.spawn(
                Spawn(
                    context=context,
                    name=name,
                    id=agent_id,
                    definition=definition,
                    version=version,
                    is_inline=request.document is not None,
                    conversation=request.conversation_id or f"{name}-{agent_id}",
                    labels={**definition.labels, **request.labels},
                    is_errand=request.prompt is not None and definition.restart.policy == "never",
                    request_id=request.request_id,
                    request_digest=digest,
                    prompt=request.prompt,
                ),
                self._settings.max_agents,
            )
            if verdict != "exists" or (
                request.name is not None and not await self._leaves(context, request.name)
            ):
                break
        return verdict, kept

    async def _leaves(self, context: Context, name: str) -> bool:
        """Say whether an agent has ended and is only at its last work; wait for that a while."""
        kept = await self._agents.find(context, name)
        if kept is None or kept.ended_at is None:
            return kept is None
        with self._reconciler.waiters.watching(about(kept)) as news:
            await asyncio.wait({news}, timeout=LEAVE_S)
        return True

    def _check(
        self, verdict: str, kept: Kept | None, request: e.AgentSpawn, definition: Definition
    ) -> None:
        if verdict == "exists":
            raise Conflict(
                f"there is an agent {request.name or definition.name} already: give the new one "
                "another name, or terminate that one first (ksi agent terminate)"
            )
        if verdict == "other":
            raise Conflict(f"the request_id {request.request_id} was that of another request")
        if verdict == "orphan":
            raise Conflict("an agent that has ended has no new ones")
        if verdict == "full":
            bound = self._settings.max_agents
            raise Busy(
                f"there are {bound} agents (agents.max_agents): terminate some",
                retry_after_s=5.0,
                details={"kind": "agents", "setting": "agents.max_agents"},
            )

    async def _started(self, kept: Kept, wait_s: float, *, is_new: bool) -> Kept:
        """Have a new agent started, wait for its start's end, and return how it is then."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            with self._reconciler.waiters.watching(about(kept)) as news:
                if is_new:  # it can't have started before it is told
                    is_new = False
                    self._reconciler.go_on(Going(kept))
                    await asyncio.wait({news}, timeout=min(wait_s, LOOK_AGAIN_S))
                    continue
                now = await self._agents.find(_owner_of(kept), kept.name)
                if now is None or now.id != kept.id:
                    raise NotFound(f"the agent {kept.name} is gone")
                if now.phase in STARTED or loop.time() >= until:
                    return now
                await asyncio.wait({news}, timeout=min(until - loop.time(), LOOK_AGAIN_S))

    # -- telling of them ------------------------------------------------------------------------

    @event_handler("agent:list", scope="agents:read")
    async def list(self, request: e.AgentList) -> e.AgentListed:
        """List agents by name; those that have ended only where it is asked."""
        found = await self._agents.list(
            _context(),
            pattern=request.pattern,
            definition=request.definition,
            phases=request.phase,
            labels=request.labels,
            parent=request.parent,
            ended=request.ended,
            after=request.cursor,
            limit=request.limit + 1,
        )
        shown = found[: request.limit]
        cursor = shown[-1].name if len(found) > request.limit else None
        return e.AgentListed(agents=tuple(map(agent_of, shown)), cursor=cursor)

    @event_handler("agent:get", scope="agents:read")
    async def get(self, request: e.AgentGet) -> e.AgentShown:
        """Tell of an agent, with the sections that are asked for."""
        kept = await self._find(request.name)
        told: dict[str, Any] = {}
        for section in dict.fromkeys(request.sections):
            told[section] = await self._sections[section](kept)
        return e.AgentShown(agent=agent_of(kept), **told)

    async def _conditions(self, kept: Kept) -> tuple[e.Condition, ...]:
        return (*conditions_of(kept), await self._liveness(kept))

    async def _liveness(self, kept: Kept) -> e.Condition:
        """Say whether somebody is at what it is to do: by a lease, and not by what it says.

        One that rests lives, and one that is slow, or queued, too.
        """
        condition = e.Condition(type="Live", status="True", reason="AtRest")
        if kept.ended_at is not None:
            return structs.replace(condition, status="False", reason="Ended")
        if kept.run is None:
            return condition if kept.at_work is None else structs.replace(condition, reason="Given")
        try:
            with acting_as(_owner_of(kept)):
                asked = WorkflowGet(run_id=kept.run)
                found = await self._bus.request(
                    "workflow:get", asked, result_type=WorkflowDescribed
                )
        except NotFound:
            return structs.replace(condition, status="Unknown", reason="NotBegun")
        run = found.run
        if run.status == "running":
            message = f"the daemon {run.executor} has a lease on its run"
            return structs.replace(condition, reason="LeaseHeld", message=message)
        is_waiting = run.status in ("queued", "delayed", "waiting")
        return structs.replace(
            condition,
            status="True" if is_waiting else "False",
            reason="Queued" if is_waiting else "RunOver",
            message=f"its run is {run.status}",
        )

    async def _definition(self, kept: Kept) -> dict[str, Any]:
        definition = await self._agents.definition_of(kept, kept.tenant)
        shown: dict[str, Any] = msgspec.to_builtins(definition)
        return shown

    async def _mail(self, kept: Kept) -> tuple[e.Mail, ...]:
        return tuple(await self._agents.mailbox(kept, MAX_SHOWN))

    async def _usage(self, kept: Kept) -> e.Spent | None:
        return await self._spent(kept.tenant, kept.name)

    async def _children(self, kept: Kept) -> tuple[e.Agent, ...]:
        found = await self._agents.list(_context(), parent=kept.name, ended=True)
        return tuple(map(agent_of, found))

    async def _tools(self, kept: Kept) -> tuple[str, ...]:
        asked = ToolPermissions(subject=f"agent:{kept.name}")
        found = await self._bus.request("tool:permissions", asked, result_type=ToolPermitted)
        return tuple(found.tools)

    @event_handler("agent:logs", scope="agents:read")
    async def logs(self, request: e.AgentLogs) -> e.LogsListed:
        """Tell what happened to an agent, the newest first."""
        kept = await self._find(request.name)
        return e.LogsListed(entries=await self._agents.entries(kept, request.before, request.limit))

    async def _find(self, name: str) -> Kept:
        kept = await self._agents.find(_context(), name)
        if kept is None:
            raise await self._missing.error(_context(), name)
        return kept

    # -- giving them work -----------------------------------------------------------------------

    @event_handler("agent:send", scope="agents:write")
    async def send(self, request: e.AgentSend) -> e.AgentSent:
        """Put a message into an agent's mailbox; accepted, it is worked off once, in its order."""
        return await self._mailbox.send(request, _context())

    @event_handler("agent:ask", scope="agents:write", timeout_s=WAIT_MARGIN_S)
    async def ask(self, request: e.AgentAsk) -> e.AgentAnswered:
        """Send a message and wait for what comes of it."""
        return await self._mailbox.ask(request, _context())

    @event_handler("agent:subscribe", scope="agents:write")
    async def subscribe(self, request: e.AgentSubscribe) -> e.AgentSubscribed:
        """Have an agent get what is published on a channel."""
        kept = await self._find(request.agent)
        channels = await self._channels.subscribe(kept, request.channel, wanted=True)
        return e.AgentSubscribed(agent=kept.name, channels=channels)

    @event_handler("agent:unsubscribe", scope="agents:write")
    async def unsubscribe(self, request: e.AgentUnsubscribe) -> e.AgentSubscribed:
        """Have an agent get no more of a channel."""
        kept = await self._find(request.agent)
        channels = await self._channels.subscribe(kept, request.channel, wanted=False)
        return e.AgentSubscribed(agent=kept.name, channels=channels)

    @event_handler("agent:publish", scope="agents:write")
    async def publish(self, request: e.AgentPublish) -> e.AgentPublished:
        """Say something on a channel: each subscriber finds it in its mailbox."""
        return await self._channels.publish(request, _context())

    @event_observer("completion:result")
    def see(self, event: Event) -> None:
        """See turns end; nobody's word but that of who has them is taken."""
        if event.context.origin == "completion" and isinstance(event.data, CompletionResult):
            self._mailbox.see(event.context.tenant, event.data)

    # -- changing them --------------------------------------------------------------------------

    @event_handler("agent:pause", scope="agents:write")
    async def pause(self, request: e.AgentPause) -> e.AgentsChanged:
        """Have agents take no more messages from their mailboxes; what runs is finished."""
        context = _context()
        chosen = await self._chosen(request.which, context)
        paused = await self._agents.pause(context.tenant, [each.id for each in chosen])
        for each in paused:
            self._reconciler.tell(each, each.phase, each.run, always=True)
        return _changed(paused)

    @event_handler("agent:resume", scope="agents:write", timeout_s=MANY_S)
    async def resume(self, request: e.AgentResume) -> e.AgentsChanged:
        """Have paused agents go on."""
        changed = []
        for each in await self._chosen(request.which, _context()):
            going = await self._agents.resume(each)
            self._reconciler.go_on(going, was=each.phase)
            if going.agent.phase == each.phase:
                self._reconciler.tell(going.agent, each.phase, always=True)
            changed.append(going.agent)
        return _changed(changed)

    @event_handler("agent:restart", scope="agents:write", timeout_s=MANY_S)
    async def restart(self, request: e.AgentRestart) -> e.AgentsChanged:
        """Start agents anew, by the newest version of their definitions; mailboxes stay."""
        changed = []
        chosen = await self._chosen(request.which, _context(), with_ended=True)
        for each in chosen:
            if each.phase == "Terminated":
                if len(chosen) == 1:
                    raise Conflict(f"the agent {each.name} is terminated: spawn another one")
                continue
            definition, version = await self._newest(each, keep=request.keep_version)
            is_errand = definition.restart.policy == "never"
            kept = await self._agents.restart(each, definition, version, is_errand=is_errand)
            if kept is not None:
                self._reconciler.go_on(Going(kept), was=each.phase)
                changed.append(kept)
        return _changed(changed)

    async def _newest(self, kept: Kept, *, keep: bool) -> tuple[Definition, int]:
        """Return what an agent is to run by; by what it does, where its definition is gone."""
        if not keep and not kept.is_inline:
            found = await self._definitions.find(kept.tenant, kept.definition)
            if found is not None:
                return found.definition, found.version
        return await self._agents.definition_of(kept, kept.tenant), kept.version

    @event_handler("agent:terminate", scope="agents:write", timeout_s=MANY_S)
    async def terminate(self, request: e.AgentTerminate) -> e.AgentsChanged:
        """End agents for good: what runs is cancelled, what waits in their mailboxes too."""
        context = _context()
        chosen = await self._chosen(request.which, context, with_children=request.children)
        if request.dry_run:
            return e.AgentsChanged(agents=tuple(map(agent_of, chosen)), is_dry_run=True)
        await self._supervision.forbid(chosen)  # first: after that their names are free
        was = {each.id: each.phase for each in chosen}
        why = request.reason or "it was terminated"
        ended = await self._agents.terminate(context.tenant, [each.id for each in chosen], why)
        for each in ended:
            self._reconciler.go_on(Going(each), was=was[each.id])
            self._mailbox.look(each)
        return _changed(ended)

    async def _chosen(
        self,
        which: e.AgentSelect,
        context: Context,
        *,
        with_children: bool = False,
        with_ended: bool = False,
    ) -> Sequence[Kept]:
        """Return the agents that are meant.

        Raises:
            InvalidData: None are named.
            NotFound: One that is named is not there.
        """
        if not which.names and not which.labels and which.idle_s is None:
            raise InvalidData("say which agents: names (* is all), labels, or idle_s")
        chosen = await self._agents.chosen(
            context,
            which.names,
            which.labels,
            which.idle_s,
            with_children=with_children,
            with_ended=with_ended,
        )
        if not which.labels and which.idle_s is None:
            there = {each.name for each in chosen}
            missing = [n for n in which.names if not _GLOB.search(n) and n not in there]
            if missing:
                if len(missing) == 1 and not await self._has_ended(context, missing[0]):
                    raise await self._missing.error(context, missing[0])
                raise NotFound(
                    f"there is no agent {', '.join(missing)} that has not ended: see agent:list "
                    "(ksi agent list)"
                )
        return chosen

    async def _has_ended(self, context: Context, name: str) -> bool:
        kept = await self._agents.find(context, name)
        return kept is not None and kept.ended_at is not None

    # -- by itself ------------------------------------------------------------------------------

    @event_contributor("health:check")
    async def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether agents want a person."""
        try:
            failed = await self._agents.list(_context(), phases=("Failed",), limit=MAX_SHOWN)
        except AWAY:
            return HealthChecked(health="degraded", why="agents can't be seen to")
        if not failed:
            return HealthChecked(health="ok")
        names = ", ".join(each.name for each in failed[:5])
        more = " and others" if len(failed) > 5 else ""
        return HealthChecked(
            health="degraded",
            why=f"agents have failed: {names}{more}: see agent:logs (ksi agent logs), and restart "
            "them (ksi agent restart)",
        )


def name_for(definition: str, agent_id: str) -> str:
    """Return a name for an agent of a definition."""
    return f"{definition[:MAX_STEM].rstrip('._-')}-{agent_id[:6]}"


def _check_conversation(request: e.AgentSpawn, context: Context) -> None:
    """Have nobody read a conversation by an agent of his that he has nothing to do with."""
    is_own = request.conversation_id in (None, context.conversation)
    is_bound = context.agent is not None or context.conversation is not None
    if is_bound and not is_own:
        raise Denied(f"the conversation {request.conversation_id} is not the sender's own")


def _changed(agents: Iterable[Kept]) -> e.AgentsChanged:
    return e.AgentsChanged(agents=tuple(map(agent_of, agents)))


def _owner_of(kept: Kept) -> Context:
    return Context("", tenant=kept.tenant, user=kept.owner)


def _context() -> Context:
    return current_context() or Context("")
