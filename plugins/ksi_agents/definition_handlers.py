"""Answers what is asked of definitions: ``agent:apply`` and its like."""

import asyncio
from datetime import datetime
from typing import Final

import msgspec

from ksi_agents import events as e
from ksi_agents.applying import diff_of, diff_of_resolved
from ksi_agents.definition import Definition
from ksi_agents.definitions import Definitions
from ksi_agents.inheritance import full
from ksi_agents.schema import json_schema
from ksi_agents.standing import VERSION
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.protocol import Context
from ksi_daemon.protocol.names import check_pattern, matches

__all__ = ["DefinitionHandlers"]

OWNER: Final = "owner"


class DefinitionHandlers:
    """What people have to do with definitions.

    Args:
        definitions: Those that there are.
    """

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    # -- changed --------------------------------------------------------------------------------

    @event_handler("agent:validate", scope="agents:read")
    async def validate(self, request: e.AgentValidate) -> e.AgentValidated:
        """Check documents without keeping anything of them."""
        problems, agents = await self._definitions.validate(_context().tenant, request.documents)
        is_valid = all(problem.is_warning for problem in problems)
        return e.AgentValidated(is_valid=is_valid, problems=problems, agents=agents)

    @event_handler("agent:apply", scope="agents:write")
    async def apply(self, request: e.AgentApply) -> e.AgentApplied:
        """Keep definitions: all of them, or where one is wrong, none."""
        context = _context()
        return await self._definitions.apply(
            context.tenant,
            request.documents,
            request.set_name,
            _by(context),
            prune=request.prune,
            dry_run=request.dry_run,
        )

    @event_handler("agent:rollback", scope="agents:write")
    async def rollback(self, request: e.AgentRollback) -> e.AgentApplied:
        """Make an earlier version the newest."""
        context = _context()
        return await self._definitions.roll_back(
            context.tenant, request.name, request.version, _by(context)
        )

    @event_handler("agent:remove", scope="agents:write")
    async def remove(self, request: e.AgentRemove) -> e.AgentRemoved:
        """Delete definitions; agents that run by one keep its version until they end."""
        context = _context()
        names = await self._definitions.remove(context.tenant, request.names, _by(context))
        return e.AgentRemoved(names=names)

    # -- shown ----------------------------------------------------------------------------------

    @event_handler("agent:definitions", scope="agents:read")
    async def definitions(self, request: e.AgentDefinitions) -> e.DefinitionsListed:
        """List definitions by name: those that were applied, and those that stand always."""
        pattern = check_pattern(request.pattern)
        after = request.cursor or ""
        tenant, store = _context().tenant, self._definitions.store
        like = pattern.replace("_", "\\_").replace("*", "%").replace("?", "_")
        rows = await store.page(tenant, like, after, request.limit + 1)
        others = [
            name for name in self._definitions.standing if name > after and matches(name, pattern)
        ]
        shadowed = await store.names(tenant, others)
        found = [
            _info(msgspec.convert(kept.resolved, Definition), kept.version, "applied", at)
            for kept, at in rows
        ]
        found += [self._standing_info(name) for name in others if name not in shadowed]
        found.sort(key=lambda info: info.name)
        page = tuple(found[: request.limit])
        is_more = len(found) > request.limit
        return e.DefinitionsListed(definitions=page, cursor=page[-1].name if is_more else None)

    def _standing_info(self, name: str) -> e.DefinitionInfo:
        standing = self._definitions.standing.find(name)
        assert standing is not None  # it was listed just now
        return _info(standing.definition, VERSION, standing.origin, None)

    @event_handler("agent:definition", scope="agents:read")
    async def definition(self, request: e.AgentDefinition) -> e.DefinitionShown:
        """Show a definition: its text as it was given, and all that it comes to."""
        tenant, name = _context().tenant, request.name
        kept = await self._definitions.store.version(tenant, name, request.version)
        if kept is not None:
            resolved = msgspec.convert(kept.resolved, Definition)
            info = _info(resolved, kept.version, "applied", kept.applied_at)
            text, kind = kept.text, kept.format
        else:
            standing = self._definitions.standing.find(name, request.version)
            if standing is None:
                raise await self._definitions.not_found(tenant, name, request.version)
            resolved = standing.definition
            info = _info(resolved, VERSION, standing.origin, None)
            text, kind = standing.parsed.text, standing.parsed.format
        return e.DefinitionShown(info=info, text=text, format=kind, resolved=full(resolved))

    @event_handler("agent:history", scope="agents:read")
    async def history(self, request: e.AgentHistory) -> e.HistoryListed:
        """List the versions of a definition, the newest first."""
        tenant, name = _context().tenant, request.name
        # One more than is shown: each is told by how it differs from the one before.
        kept = await self._definitions.store.history(tenant, name, request.limit + 1)
        standing = self._definitions.standing.find(name)
        if not kept and standing is None:
            raise await self._definitions.not_found(tenant, name, None)
        first = "" if standing is None else standing.parsed.text

        def diff(place: int) -> str:
            each = kept[place]
            if place + 1 == len(kept):
                return diff_of(first, each.text, name)
            was = kept[place + 1]
            if was.text == each.text:
                return diff_of_resolved(was.resolved, each.resolved, name)
            return diff_of(was.text, each.text, name)

        def told() -> tuple[e.VersionInfo, ...]:
            return tuple(
                e.VersionInfo(
                    version=each.version,
                    applied_at=each.applied_at,
                    by=each.applied_by,
                    diff=diff(place),
                    is_current=each.is_current,
                )
                for place, each in enumerate(kept[: request.limit])
            )

        return e.HistoryListed(name=name, versions=await asyncio.to_thread(told))

    @event_handler("agent:schema", scope="agents:read")
    def schema(self, request: e.AgentSchema) -> e.SchemaGiven:
        """Give the JSON Schema of definitions, for editors."""
        return e.SchemaGiven(json_schema=json_schema())


def _info(
    resolved: Definition, version: int, origin: str, changed_at: datetime | None
) -> e.DefinitionInfo:
    return e.DefinitionInfo(
        name=resolved.name,
        version=version,
        description=resolved.description,
        origin=origin,
        model=resolved.models,
        labels=resolved.labels,
        extends=resolved.extends,
        changed_at=changed_at,
    )


def _context() -> Context:
    context = current_context()
    assert context is not None  # it is an event that is being handled
    return context


def _by(context: Context) -> str:
    """Say in whose name something is changed."""
    if context.agent is not None:
        return f"agent {context.agent}"
    return context.user or context.principal or OWNER
