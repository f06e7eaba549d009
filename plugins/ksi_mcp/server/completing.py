"""Completes what is being typed: agents, conversations, keys, tables and events."""

from collections.abc import Awaitable, Callable
from typing import Final

import mcp_types as types

from ksi_agents.events import AgentList, AgentListed
from ksi_completion.events import ConversationList, ConversationListed
from ksi_daemon.protocol import Denied, NotFound
from ksi_mcp.events import McpComplete, McpCompleted
from ksi_mcp.server import prompts
from ksi_mcp.server.asks import ask, asked
from ksi_mcp.server.reach import Reach
from ksi_mcp.server.resources import FILES, MANY
from ksi_memory.events import MemoryList, MemoryListed
from ksi_memory.tables import TABLES

MAX_VALUES: Final = 100
MAX_CHARS: Final = 2000

Find = Callable[[Reach, dict[str, str]], Awaitable[list[str]]]


async def _agents(reach: Reach, _: dict[str, str]) -> list[str]:
    running = await asked(reach, "agent:list", AgentList(limit=MANY), result_type=AgentListed)
    names = [] if running is None else [each.name for each in running.agents]
    return [*names, *await prompts.definitions(reach)]


async def _conversations(reach: Reach, _: dict[str, str]) -> list[str]:
    ask_for = ConversationList(limit=MANY)
    found = await asked(reach, "conversation:list", ask_for, result_type=ConversationListed)
    return [] if found is None else [each.conversation_id for each in found.conversations]


async def _keys(reach: Reach, given: dict[str, str]) -> list[str]:
    ask_for = MemoryList(table=given.get("table", FILES), limit=MANY)
    found = await asked(reach, "memory:list", ask_for, result_type=MemoryListed)
    return [] if found is None else [each.key for each in found.items]


async def _tables(reach: Reach, _: dict[str, str]) -> list[str]:
    return list(TABLES)


async def _events(reach: Reach, _: dict[str, str]) -> list[str]:
    return [name for name, each in (await reach.events()).items() if reach.may(each.scope or "")]


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
    is_prompt = isinstance(params.ref, types.PromptReference)
    name = params.ref.name if isinstance(params.ref, types.PromptReference) else params.ref.uri
    given = params.context.arguments if params.context and params.context.arguments else {}
    typed = params.argument.value[:MAX_CHARS]
    find = KNOWN.get((name, params.argument.name))
    if find is not None:
        found = sorted({each for each in await find(reach, given) if each.startswith(typed)})
        return _result(found, len(found))
    request = McpComplete(
        kind="prompt" if is_prompt else "template",
        name=name[:MAX_CHARS],
        argument=params.argument.name[:200],
        value=typed,
        arguments=given,
    )
    try:
        told = await ask(reach, "mcp:complete", request, result_type=McpCompleted)
    except (NotFound, Denied):
        return _result([], 0)  # such as an agent's prompt, of which nobody knows how it goes on
    return _result(list(told.values), max(told.total, len(told.values)))


def _result(values: list[str], total: int) -> types.CompleteResult:
    shown = values[:MAX_VALUES]
    return types.CompleteResult(
        completion=types.Completion(values=shown, total=total, has_more=total > len(shown))
    )
