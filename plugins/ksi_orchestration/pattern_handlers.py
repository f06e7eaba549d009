"""Answers those events of ``orchestration:*`` that are of patterns."""

import asyncio

from ksi_daemon.event_system import event_handler
from ksi_orchestration import events as e
from ksi_orchestration.documents import full, json_schema, read_patterns
from ksi_orchestration.patterns import Patterns


class PatternHandlers:
    """Lists, shows and checks patterns.

    Args:
        patterns: All there are.
    """

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns

    @event_handler("orchestration:patterns", scope="orchestrations:read")
    async def patterns(self, request: e.OrchestrationPatterns) -> e.PatternsListed:
        """List the patterns by name, and what is wrong with files that hold none."""
        return await self._patterns.listed()

    @event_handler("orchestration:pattern", scope="orchestrations:read")
    async def pattern(self, request: e.OrchestrationPattern) -> e.PatternShown:
        """Show a pattern: its text, and all that it comes to."""
        found = await self._patterns.find(request.name)
        return e.PatternShown(info=found.info, text=found.text, resolved=full(found.pattern))

    @event_handler("orchestration:schema", scope="orchestrations:read")
    def schema(self, request: e.OrchestrationSchema) -> e.PatternSchemaGiven:
        """Give the JSON Schema of patterns, for editors."""
        return e.PatternSchemaGiven(json_schema=json_schema())

    @event_handler("orchestration:validate", scope="orchestrations:read")
    async def validate(self, request: e.OrchestrationValidate) -> e.PatternValidated:
        """Check patterns without starting anything."""
        found, problems = await asyncio.to_thread(read_patterns, request.text, request.path)
        return e.PatternValidated(
            is_valid=not problems,
            problems=tuple(problems),
            names=tuple(each.pattern.name for each in found),
        )
