"""What can be read: agents, conversations, files of the memory, health, and what plugins bring."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import quote, unquote

import mcp_types as types
import msgspec
from mcp.shared.exceptions import MCPError
from msgspec import Raw, Struct

from ksi_agents.events import AgentDefinition, AgentGet, AgentList, AgentListed
from ksi_completion.events import ConversationHistory, ConversationList, ConversationListed
from ksi_daemon.protocol import Denied, InvalidData, NotFound
from ksi_mcp.events import McpOffered, McpResource, McpResourceRead
from ksi_mcp.server.asks import MANY, ask, asked
from ksi_mcp.server.reach import Reach
from ksi_mcp.templates import MAX_URI, pattern_of
from ksi_memory.events import MemoryGet, MemoryList, MemoryListed
from ksi_system.events import SystemDescribe, SystemHealth
from ksi_tools.events import ToolOutput

JSON: Final = "application/json"
TEXT: Final = "text/plain"
FILES: Final = "files"  # the table of the memory that has them whole
LATEST: Final = 50
WHOLE: Final = 1_000_000

Payload = Callable[[dict[str, str]], Any]


class Readable(Struct, frozen=True):
    """Something that can be read.

    Attributes:
        uri: Its URI, with ``{variables}``.
        name: What it is called.
        description: What it is.
        events: The event that tells of it; a second one, where the first finds nothing.
        payloads: What is sent, of the variables.
    """

    uri: str
    name: str
    description: str
    events: tuple[str, ...]
    payloads: tuple[Payload, ...]
    mime_type: str = JSON


READABLE: Final = (
    Readable(
        "ksi://health",
        "health",
        "Whether all is well with the daemon, and with each of its plugins.",
        ("system:health",),
        (lambda _: SystemHealth(),),
    ),
    Readable(
        "ksi://agents",
        "agents",
        "The agents that there are, and what they are doing.",
        ("agent:list",),
        (lambda _: AgentList(limit=MANY),),
    ),
    Readable(
        "ksi://agents/{name}",
        "agent",
        "An agent and its state, or its definition where none of that name runs.",
        ("agent:get", "agent:definition"),
        (
            lambda given: AgentGet(name=given["name"], sections=("conditions", "usage")),
            lambda given: AgentDefinition(name=given["name"]),
        ),
    ),
    Readable(
        "ksi://conversations",
        "conversations",
        "The conversations that were used last.",
        ("conversation:list",),
        (lambda _: ConversationList(limit=LATEST),),
    ),
    Readable(
        "ksi://conversations/{id}",
        "conversation",
        "The last messages of a conversation.",
        ("conversation:history",),
        (lambda given: ConversationHistory(conversation_id=given["id"], limit=MANY),),
    ),
    Readable(
        "ksi://files/{key}",
        "file",
        "What the memory knows of a file: its type and size, and where it came from.",
        ("memory:get",),
        (lambda given: MemoryGet(key=given["key"], table=FILES),),
    ),
    Readable(
        "ksi://memory/{table}/{key}",
        "memory",
        "Something that the memory has, by its table and its key.",
        ("memory:get",),
        (lambda given: MemoryGet(key=given["key"], table=given["table"]),),
    ),
    Readable(
        "ksi://events/{event}",
        "event",
        "What an event does and takes.",
        ("system:describe",),
        (lambda given: SystemDescribe(event=given["event"]),),
    ),
    Readable(
        "ksi://outputs/{ref}",
        "output",
        "The whole output of a tool that was too long to be handed over.",
        ("tool:output",),
        (lambda given: ToolOutput(output_ref=given["ref"], limit=WHOLE),),
        TEXT,
    ),
)


async def listed(reach: Reach) -> dict[str, types.Resource]:
    """Return what the caller can read, by its URI."""
    found = {each.uri: each async for each in _own(reach)}
    offered = await asked(reach, "mcp:offers", result_type=McpOffered)
    for told in () if offered is None else offered.resources:
        each = types.Resource.model_validate(told, by_name=False)
        found.setdefault(each.uri, each)
    return found


async def _own(reach: Reach) -> AsyncIterator[types.Resource]:
    events = await reach.events()
    for each in READABLE:
        known = events.get(each.events[0])
        if "{" not in each.uri and known is not None and reach.may(known.scope or ""):
            yield _resource(each.uri, each.name, each.description)
    agents = await asked(reach, "agent:list", AgentList(limit=MANY), result_type=AgentListed)
    for agent in () if agents is None else agents.agents:
        yield _resource(f"ksi://agents/{quote(agent.name, safe='')}", agent.name, "An agent.")
    ask_for = ConversationList(limit=LATEST)
    talks = await asked(reach, "conversation:list", ask_for, result_type=ConversationListed)
    for talk in () if talks is None else talks.conversations:
        uri = f"ksi://conversations/{quote(talk.conversation_id, safe='')}"
        yield _resource(uri, talk.title or talk.conversation_id, "A conversation.")
    files = await asked(
        reach, "memory:list", MemoryList(table=FILES, limit=MANY), result_type=MemoryListed
    )
    for item in () if files is None else files.items:
        yield _resource(
            f"ksi://files/{quote(item.key, safe='')}", item.title or item.key, "A file."
        )


def _resource(uri: str, name: str, description: str) -> types.Resource:
    return types.Resource(uri=uri, name=name, description=description, mime_type=JSON)


async def templates(reach: Reach) -> dict[str, types.ResourceTemplate]:
    """Return what the caller can read by a name, by the template of its URIs."""
    events = await reach.events()
    found = {}
    for each in READABLE:
        known = events.get(each.events[0])
        if "{" in each.uri and known is not None and reach.may(known.scope or ""):
            found[each.uri] = types.ResourceTemplate(
                uri_template=each.uri,
                name=each.name,
                description=each.description,
                mime_type=each.mime_type,
            )
    offered = await asked(reach, "mcp:offers", result_type=McpOffered)
    for told in () if offered is None else offered.templates:
        template = types.ResourceTemplate.model_validate(told, by_name=False)
        found.setdefault(template.uri_template, template)
    return found


async def check(reach: Reach, uri: str) -> None:
    """Go on only if a caller may read what a URI is of, were it there.

    Raises:
        MCPError: It may not, or there are none of that kind.
    """
    own = [each for each in READABLE if pattern_of(each.uri).fullmatch(uri)]
    if not own and not await _is_offered(reach, uri):
        raise _none(uri)
    event = own[0].events[0] if own else "mcp:resource"
    known = (await reach.events()).get(event)
    if known is None or not reach.may(known.scope or ""):
        raise _none(uri)


async def _is_offered(reach: Reach, uri: str) -> bool:
    offered = await asked(reach, "mcp:offers", result_type=McpOffered)
    if offered is None:
        return False
    return any(told["uri"] == uri for told in offered.resources) or any(
        pattern_of(told["uriTemplate"]).fullmatch(uri) for told in offered.templates
    )


def _none(uri: str) -> MCPError:
    message = f"there is no resource {uri[:200]!r} here"
    return MCPError(types.INVALID_PARAMS, message, {"uri": uri[:MAX_URI]})


async def read(reach: Reach, uri: str) -> types.ReadResourceResult:
    """Return what a resource holds.

    Raises:
        MCPError: There is none, or it is none of the caller's.
    """
    if len(uri) > MAX_URI:
        raise _none(uri)
    try:
        return await _read(reach, uri)
    except (NotFound, Denied, InvalidData) as error:
        raise _none(uri) from error


async def _read(reach: Reach, uri: str) -> types.ReadResourceResult:
    for readable in READABLE:
        found = pattern_of(readable.uri).fullmatch(uri)
        if found is not None:
            given = {name: unquote(value) for name, value in found.groupdict().items()}
            text = await _text_of(reach, readable, given)
            content = types.TextResourceContents(uri=uri, mime_type=readable.mime_type, text=text)
            return types.ReadResourceResult(contents=[content])
    told = await ask(reach, "mcp:resource", McpResource(uri=uri), result_type=McpResourceRead)
    return types.ReadResourceResult.model_validate({"contents": told.contents}, by_name=False)


async def _text_of(reach: Reach, readable: Readable, given: dict[str, str]) -> str:
    *first, last = zip(readable.events, readable.payloads, strict=True)
    for event, payload in first:
        found = await asked(reach, event, payload(given), result_type=Raw)
        if found is not None:
            return bytes(found).decode()
    event, payload = last
    answer = bytes(await ask(reach, event, payload(given), result_type=Raw))
    if readable.mime_type == TEXT:
        content: str = msgspec.json.decode(answer)["content"]
        return content
    return answer.decode()
