"""Completes what is being typed: agents, conversations, keys, tables and events."""

from collections.abc import AsyncIterator, Callable
from typing import Final

import mcp_types as types

from ksi_agents.events import AgentList, AgentListed
from ksi_completion.events import ConversationList, ConversationListed
from ksi_daemon.protocol import Denied, InvalidData, NotFound
from ksi_mcp.events import McpComplete, McpCompleted
from ksi_mcp.server import prompts
from ksi_mcp.server.asks import MANY, ask, pages
from ksi_mcp.server.reach import Reach
from ksi_mcp.server.resources import FILES
from ksi_memory.events import MemoryList, MemoryListed
from ksi_memory.tables import TABLES

MAX_VALUES: Final = 100
MAX_CHARS: Final = 2000

Find = Callable[[Reach, dict[str, str]], AsyncIterator[str]]


async def _agents(reach: Reach, _: dict[str, str]) -> AsyncIterator[str]:
    async for page in pages(reach, "agent:list", AgentList(limit=MANY), result_type=AgentListed):
        for agent in page.agents:
            yield agent.name
    for name in await prompts.definitions(reach):
        yield name


async def _conversations(reach: Reach, _: dict[str, str]) -> AsyncIterator[str]:
    first = ConversationList(limit=MANY)
    async for page in pages(reach, "conversation:list", first, result_type=ConversationListed):
        for conversation in page.conversations:
            yield conversation.conversation_id


async def _keys(reach: Reach, given: dict[str, str]) -> AsyncIterator[str]:
    first = MemoryList(table=given.get("table", FILES), limit=MANY)
    async for page in pages(reach, "memory:list", first, result_type=MemoryListed):
        for item in page.items:
            yield item.key


async def _tables(reach: Reach, _: dict[str, str]) -> AsyncIterator[str]:
    for name in TABLES:
        yield name


async def _events(reach: Reach, _: dict[str, str]) -> AsyncIterator[str]:
    for name, each in (await reach.events()).items():
        if reach.may(each.scope or ""):
            yield name


# By what is completed, and which of its arguments.
KNOWN: Final[dict[tuple[str, str], Find]] = {
    (prompts.ASK, prompts.AGENT): _agents,
    ("ksi://agents/{name}", "name"): _agents,
    ("ksi://conversations/{id}", "id"): _conversations,
    ("ksi://files/{key}", "key"): _keys,
    ("ksi://memory/{table}/{key}", "table"): _tables,
    ("ksi://memory/{table}/{key}", "key"): _keys,
    ("ksi://events/{event}", "event"): _events,
}


async def complete(reach: Reach, params: types.CompleteRequestParams) -> types.CompleteResult:
    """Return what an argument may be, of which the beginning was typed."""
    name = params.ref.name if isinstance(params.ref, types.PromptReference) else params.ref.uri
    given = params.context.arguments if params.context and params.context.arguments else {}
    typed = params.argument.value[:MAX_CHARS]
    find = KNOWN.get((name, params.argument.name))
    if find is not None:
        return await _own(find(reach, given), typed)
    request = McpComplete(
        kind="prompt" if isinstance(params.ref, types.PromptReference) else "template",
        name=name,
        argument=params.argument.name,
        value=typed,
        arguments=given,
    )
    try:
        told = await ask(reach, "mcp:complete", request, result_type=McpCompleted)
    except (NotFound, Denied, InvalidData):
        return _result([], 0)  # such as an agent's prompt, of which nobody knows how it goes on
    return _result(list(told.values), max(told.total, len(told.values)))


async def _own(names: AsyncIterator[str], typed: str) -> types.CompleteResult:
    """Return the first names that begin so, and how many there are, where all were looked at."""
    found: set[str] = set()
    async for name in names:
        if name.startswith(typed):
            found.add(name)
        if len(found) > MAX_VALUES:
            return _result(sorted(found), None)
    return _result(sorted(found), len(found))


def _result(values: list[str], total: int | None) -> types.CompleteResult:
    shown = values[:MAX_VALUES]
    has_more = total is None or total > len(shown)
    return types.CompleteResult(
        completion=types.Completion(values=shown, total=total, has_more=has_more)
    )
