"""Answers ``tool:*``."""

import asyncio
import logging
from typing import Final, TypeAlias

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import (
    acting_as,
    current_context,
    event_contributor,
    event_handler,
)
from ksi_daemon.protocol import (
    Busy,
    Conflict,
    Context,
    Denied,
    InvalidData,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_daemon.protocol.names import check_pattern, matches
from ksi_system.events import HealthCheck, HealthChecked
from ksi_tools import bearers
from ksi_tools import events as e
from ksi_tools.calls import Calls, context_of, is_agents, may_call_all
from ksi_tools.registry import CLIENT, EventSource, Tools
from ksi_tools.settings import ToolsSettings
from ksi_tools.store import (
    Fenced,
    Known,
    Ledger,
    Permission,
    Permissions,
    Whose,
    whose_of,
)
from ksi_tools.text import clean
from ksi_tools.tool import Tool

log = logging.getLogger(__name__)

DROPPED: Final = (
    "A person has dropped this call: nothing more is done for it. Go on without it, and do not "
    "call it again unless you are asked to."
)
DOUBTED: Final = ("in_doubt",)
WAITING: Final = ("waiting",)
Change: TypeAlias = tuple[tuple[str, ...], str]
DAY_S: Final = 24 * 3600.0
ROWS: Final = 500
TOLD_LATE_S: Final = 5.0
TIDY_EVERY_S: Final = 600.0
HOW_NOT: Final = {
    "cycle": "{subject} would be bounded by itself: choose another parent",
    "too_deep": "{subject} would have more than 15 parents above it",
    "not_its_child": "{subject} is not a child of who asks",
}


class Handlers:
    """What people and agents have to do with tools and with the ledger of calls.

    Args:
        settings: The plugin's.
        tools: The registry.
        calls: Makes calls.
        ledger: Keeps them.
        permissions: Who may call what.
        bus: Publishes, and tells runs.
    """

    def __init__(
        self,
        settings: ToolsSettings,
        tools: Tools,
        calls: Calls,
        ledger: Ledger,
        permissions: Permissions,
        bus: Bus,
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._calls = calls
        self._ledger = ledger
        self._permissions = permissions
        self._bus = bus

    # -- tools ----------------------------------------------------------------------------------

    @event_handler("tool:list", scope="tools:read")
    async def list_tools(self, request: e.ToolList) -> e.ToolListed:
        """List the tools that the caller may call."""
        pattern = check_pattern(request.pattern)
        context = _context()
        found = [each for each in self._tools.all(context.tenant) if matches(each.name, pattern)]
        allowed = await self._allowed(context, found)
        shown = [each for each in found if each.name in allowed or request.all_tools]
        return e.ToolListed(
            tools=tuple(each.info(is_allowed=each.name in allowed) for each in shown),
            schemas=tuple(each.parameters for each in shown) if request.schemas else (),
        )

    @event_handler("tool:describe", scope="tools:read")
    async def describe(self, request: e.ToolDescribe) -> e.ToolDescribed:
        """Tell all of some tools: their schemas too."""
        context = _context()
        found = [self._tools.find(name, context.tenant) for name in request.names]
        allowed = await self._allowed(context, found)
        return e.ToolDescribed(
            tools=tuple(
                e.ToolDescription(
                    info=each.info(is_allowed=each.name in allowed), parameters=each.parameters
                )
                for each in found
            )
        )

    async def _allowed(self, context: Context, tools: list[Tool]) -> set[str]:
        if is_agents(context):
            tools = [each for each in tools if not each.is_for_programs]
        if may_call_all(context):
            return {each.name for each in tools}
        allowed = await self._permissions.which(context, tools)
        if bearers.speaks_for_itself(context):
            scopes = await bearers.scopes_of(self._bus, context)
            allowed |= {each.name for each in tools if bearers.is_covered(each, scopes)}
        return allowed

    @event_handler("tool:register")
    def register(self, request: e.ToolRegister) -> e.ToolRegistered:
        """Make an event a tool: one that this connection serves, or one that a plugin answers."""
        context = _context()
        may_any = _is_owner(context)
        route = self._tools.route_to_register(request.event, context.origin, may_any=may_any)
        source = EventSource(
            name=request.name,
            event=request.event,
            effects=request.effects,
            description=request.description,
            parameters=request.parameters,
            timeout_s=request.timeout_s,
            tenant=context.tenant,
            route=route if route.plugin.startswith(CLIENT) else None,
        )
        self._tools.register(source)
        return e.ToolRegistered(name=request.name)

    @event_handler("tool:unregister")
    def unregister(self, request: e.ToolUnregister) -> e.ToolRegistered:
        """Take back a tool that was registered."""
        context = _context()
        may_any = _is_owner(context)
        self._tools.unregister(context.tenant, request.name, context.origin, may_any=may_any)
        return e.ToolRegistered(name=request.name)

    # -- calls ----------------------------------------------------------------------------------

    @event_handler("tool:call", scope="tools:write", timeout_s=0)
    async def call(self, request: e.ToolCall) -> e.ToolCalled:
        """Call a tool: the one gate of all effects, with intent before and outcome after."""
        return await self._calls.call(request)

    @event_handler("tool:output", scope="tools:read")
    async def output(self, request: e.ToolOutput) -> e.ToolOutputPart:
        """Read more of an output that was too large to be handed over whole."""
        whose = whose_of(_context())
        total = 0
        for call in await self._ledger.calls(whose, call_id=request.output_ref):
            total = await self._ledger.output_chars(call.tenant, call.call_id)
        if not total:
            raise NotFound(f"there is no output {request.output_ref!r}")
        content = await self._ledger.output(
            whose.tenant, request.output_ref, request.offset, request.limit
        )
        end = request.offset + len(content)
        return e.ToolOutputPart(
            content=content, total=total, next_offset=end if content and end < total else None
        )

    @event_handler("tool:calls", scope="tools:read")
    async def calls(self, request: e.ToolCalls) -> e.ToolCallsListed:
        """List calls, the newest first: the ledger of effects."""
        whose = _narrowed(whose_of(_context()), request.conversation_id, request.run_id)
        await self._calls.written()
        found = await self._ledger.calls(whose, status=request.status, limit=request.limit)
        return e.ToolCallsListed(calls=tuple(each.record for each in found))

    @event_handler("tool:in_doubt", scope="tools:read")
    async def in_doubt(self, request: e.ToolInDoubt) -> e.ToolCallsListed:
        """List the calls of which nobody knows whether their effect came about."""
        whose = whose_of(_context())
        found = await self._ledger.calls(whose, status="in_doubt", limit=request.limit)
        return e.ToolCallsListed(calls=tuple(each.record for each in found))

    @event_handler("tool:resolve", scope="tools:write")
    async def resolve(self, request: e.ToolResolve) -> e.ToolResolved:
        """Say what became of a call in doubt."""
        if request.content and request.verdict != "done":
            raise InvalidData(
                f"content is the result of what is done, and not of {request.verdict}"
            )
        change, content = {
            "done": ((DOUBTED, "done"), self._checked(request.content)),
            "redo": ((DOUBTED, "due"), None),
            "drop": (((*DOUBTED, *WAITING), "dropped"), DROPPED),
        }[request.verdict]
        why = f"a person said: {request.verdict}"
        return await self._settle(request.call_id, change, content, why)

    @event_handler("tool:answer", scope="tools:write")
    async def answer(self, request: e.ToolAnswer) -> e.ToolResolved:
        """Answer a call that waits for a person."""
        content = self._checked(request.content)
        found = await self._ledger.calls(whose_of(_context()), call_id=request.call_id)
        # One that was begun before its tool asked is made again, with the answer.
        becomes = "due" if any(each.has_asked for each in found) else "done"
        change = (WAITING, becomes)
        return await self._settle(request.call_id, change, content, "a person answered")

    def _checked(self, content: str) -> str:
        if len(content) > self._settings.max_content_chars:
            limit = self._settings.max_content_chars
            raise InvalidData(
                f"content is longer than {limit} characters (tools.max_content_chars)"
            )
        return clean(content)

    async def _settle(
        self, call_id: str, change: Change, content: str | None, why: str
    ) -> e.ToolResolved:
        context = _context()
        if context.agent is not None or context.run is not None:
            raise Denied("a person says that, and no agent")
        verdict, call = await self._ledger.settle(whose_of(context), call_id, change, content, why)
        if call is None:
            raise NotFound(f"there is no call {call_id!r}")
        status = call.record.status
        if verdict == "not_so":
            raise Conflict(
                f"the call {call_id} is not {' or '.join(change[0])}: it is {status}",
                details={"status": status},
            )
        if verdict == "ok":
            await self._tell(call)
            with acting_as(context_of(call)):
                told = e.ToolSettled(
                    call_id=call.call_id, name=call.name, status=status, run_id=call.run
                )
                self._bus.publish("tool:settled", told)
        return e.ToolResolved(call_id=call_id, status=status)

    async def _tell(self, call: Known) -> None:
        """Wake the run that waits for a call; where that can't be done now, the sweep does it."""
        if call.run is None:
            return
        signal = {
            "run_id": call.run,
            "topic": f"tool:{call.call_id}",
            "payload": {"status": call.record.status},
        }
        try:
            with acting_as(context_of(call)):
                await self._bus.request("workflow:signal", signal)
        except (Unavailable, TimedOut, Busy) as error:
            log.warning("a run could not be told yet", extra={"why": error.message})
            return
        except KsiError as error:  # it has ended, or there is none
            log.info("no run waits for a call", extra={"why": error.message, "run": call.run})
        try:
            await self._ledger.signalled(call)
        except (Unavailable, TimedOut, Busy) as error:
            log.warning("a run may be told twice", extra={"why": error.message})

    # -- who may call what ----------------------------------------------------------------------

    @event_handler("tool:permit")
    async def permit(self, request: e.ToolPermit) -> e.ToolPermitted:
        """Say what an agent, or a conversation, may call."""
        context = _context()
        if request.forget:
            return await self._forget(context, request)
        only_parent = None if _is_owner(context) else _own_subject(context, request)
        words = Permission(request.allow, request.deny, request.parent)
        verdict = await self._permissions.say(context.tenant, request.subject, words, only_parent)
        if verdict == "not_its_child":
            raise Denied(HOW_NOT[verdict].format(subject=request.subject))
        if verdict != "ok":
            raise InvalidData(HOW_NOT[verdict].format(subject=request.subject))
        return await self._permitted(context.tenant, request.subject, words)

    async def _forget(self, context: Context, request: e.ToolPermit) -> e.ToolPermitted:
        if not _is_owner(context):
            raise Denied("only the owner has what was said of somebody forgotten")
        if (request.allow, request.deny, request.parent) != (None, (), None):
            raise InvalidData("forget goes without allow, deny and parent")
        await self._permissions.forget(context.tenant, request.subject)
        return await self._permitted(context.tenant, request.subject)

    @event_handler("tool:permissions")
    async def permissions(self, request: e.ToolPermissions) -> e.ToolPermitted:
        """Tell what an agent or a conversation may call."""
        return await self._permitted(_context().tenant, request.subject)

    async def _permitted(
        self, tenant: str, subject: str, words: Permission | None = None
    ) -> e.ToolPermitted:
        """Tell what a subject may call, by the words that have just been said of it, or were."""
        if words is None:
            words = await self._permissions.find(tenant, subject)
        tools = [each for each in self._tools.all(tenant) if not each.is_for_programs]
        allowed = await self._permissions.of_subject(tenant, subject, tools)
        return e.ToolPermitted(
            subject=subject,
            allow=words.allow,
            deny=words.deny,
            parent=words.parent,
            tools=tuple(sorted(allowed)),
        )

    # -- by itself ------------------------------------------------------------------------------

    @event_contributor("health:check")
    async def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether calls want a person."""
        try:
            found = await self._ledger.open(_context().tenant)
        except (Unavailable, TimedOut, Busy):
            return HealthChecked(health="degraded", why="calls can't be recorded")
        if in_doubt := found.get("in_doubt", 0):
            counted = "1 call is" if in_doubt == 1 else f"{in_doubt} calls are"
            why = (
                f"{counted} in doubt: see tool:in_doubt (ksi tool in-doubt), and say "
                "with tool:resolve (ksi tool resolve)"
            )
            return HealthChecked(health="degraded", why=why)
        return HealthChecked(health="ok")

    async def run_sweeps(self) -> None:
        """Look after what daemons that are gone have left, for as long as this one runs."""
        while True:
            try:
                await self.sweep()
            except (Unavailable, TimedOut, Busy):
                pass  # the next one will
            except Fenced:
                return
            await asyncio.sleep(self._settings.sweep_interval_s)

    async def sweep(self) -> None:
        """Put in doubt what was left without an outcome, and tell the runs that were not told.

        Raises:
            Fenced: Another daemon has taken over from this one.
        """
        for call in await self._ledger.doubt(ROWS):
            log.warning("a call is in doubt", extra={"call_id": call.call_id, "tool": call.name})
            self._calls.tell_doubted(call)
        for call in await self._ledger.unsignalled(TOLD_LATE_S, ROWS):
            await self._tell(call)

    async def run_tidying(self) -> None:
        """Forget what ended long ago."""
        while self._settings.keep_days:
            try:
                forgotten = ROWS
                while forgotten == ROWS:
                    forgotten = await self._ledger.forget(self._settings.keep_days * DAY_S, ROWS)
            except (Unavailable, TimedOut, Busy) as error:
                log.warning("old calls are not forgotten yet", extra={"why": error.message})
            await asyncio.sleep(TIDY_EVERY_S)


def _context() -> Context:
    context = current_context()
    assert context is not None  # an event is being handled
    return context


def _is_owner(context: Context) -> bool:
    """Say whether an event comes from the owner, or from a plugin in nobody's name."""
    return may_call_all(context) and context.run is None


def _own_subject(context: Context, request: e.ToolPermit) -> str:
    """Return whom a context speaks for, which is to be the parent of what it speaks of.

    Raises:
        Denied: It speaks for nobody, or of somebody else than a child of its own.
    """
    if context.agent is not None:
        own = f"agent:{context.agent}"
    elif context.conversation is not None:
        own = f"conversation:{context.conversation}"
    else:
        raise Denied("the owner says what may be called, and who has something hands it on")
    if request.parent != own or request.subject == own:
        raise Denied(f"{own} speaks of its own children alone: those with the parent {own!r}")
    return own


def _narrowed(whose: Whose, conversation: str | None, run: str | None) -> Whose:
    """Return whose calls are asked for, among those that the asker has to do with.

    Raises:
        Denied: They are others'.
    """
    for own, wanted in ((whose.conversation, conversation), (whose.run, run)):
        if own is not None and wanted is not None and own != wanted:
            raise Denied("the calls of another conversation, or run, are not shown here")
    return Whose(whose.tenant, whose.agent, whose.conversation or conversation, whose.run or run)
