"""One conversation with a server, by the MCP SDK.

Imported when the first server is connected: the SDK takes more than a second to load.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from mcp.client import Client
from mcp.client.session import ClientRequestContext
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    REQUEST_TIMEOUT,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitResult,
    Implementation,
    InputRequest,
    InputRequiredResult,
    InputResponse,
    ListRootsRequest,
    ListRootsResult,
    LoggingMessageNotification,
    PaginatedRequestParams,
    ServerNotification,
    ToolListChangedNotification,
)
from pydantic import TypeAdapter, ValidationError

from ksi_daemon import __version__
from ksi_mcp.client.asking.dialogues import Ask
from ksi_mcp.client.asking.forms import Form
from ksi_mcp.client.errors import (
    GONE,
    LOST,
    NOT_SENT,
    AnswerError,
    LostError,
    NotSentError,
)
from ksi_mcp.client.tools.text import cleaned
from ksi_mcp.client.wires.watching import NO_SAMPLING, Wire

MAX_PAGES: Final = 100
MAX_ROUNDS: Final = 10  # in which a call may want to know something
MAX_TOLD_CHARS: Final = 500
MODERN: Final = "2026"
UNKNOWN: Final = frozenset({CONNECTION_CLOSED, LOST, PARSE_ERROR, REQUEST_TIMEOUT})
QUIET: Final = ("mcp", "client", "httpx2", "httpcore2")
_CALLED: Final[TypeAdapter[CallToolResult | InputRequiredResult]] = TypeAdapter(
    CallToolResult | InputRequiredResult
)

Progress = Callable[[str, float | None, float | None], None]


def hush() -> None:
    """Keep out of the log what strangers can have the SDK write there."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Session:
    """A conversation with a server.

    Args:
        client: The SDK's.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def tools(self, max_tools: int, max_bytes: int) -> tuple[list[dict[str, Any]], bool]:
        """Return what the server says of its tools as far as it is bearable, and whether it is all.

        Raises:
            AnswerError: It doesn't say that.
        """
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        left_bytes = max_bytes
        for _ in range(MAX_PAGES):
            page = await self._asked(
                self._client.session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            )
            for each in page.tools:
                told = each.model_dump(by_alias=True, mode="json", exclude_none=True)
                left_bytes -= len(msgspec.json.encode(told))
                if left_bytes < 0 or len(found) == max_tools:
                    return found, False
                found.append(told)
            cursor = page.next_cursor
            if cursor is None:
                return found, True
        return found, False

    async def call(
        self, name: str, arguments: dict[str, Any], tell: Progress, ask: Ask
    ) -> dict[str, Any]:
        """Call a tool, and return what it returned as MCP has it in JSON.

        Raises:
            NotSentError: It has not got the call.
            AnswerError: It says that it can't be done.
            LostError: Nobody knows what came of it.
        """

        async def told(progress: float, total: float | None, message: str | None) -> None:
            tell(cleaned(message or "", MAX_TOLD_CHARS), progress, total)

        params = CallToolRequestParams(name=name, arguments=arguments)
        for _ in range(MAX_ROUNDS):
            # Not the SDK's `call_tool`: that matches results with patterns of the server's choice.
            result = await self._asked(
                self._client.session.send_request(
                    CallToolRequest(params=params), _CALLED, progress_callback=told
                )
            )
            if not isinstance(result, InputRequiredResult):
                made: dict[str, Any] = result.model_dump(
                    by_alias=True, mode="json", exclude_none=True
                )
                return made
            asked = result.input_requests or {}
            responses = {key: await _response(each, ask) for key, each in asked.items()}
            params = params.model_copy(
                update={"input_responses": responses, "request_state": result.request_state}
            )
        raise AnswerError(f"it wanted to know something {MAX_ROUNDS} times")

    async def _asked(self, asking: Awaitable[Any]) -> Any:
        try:
            return await asking
        except MCPError as error:
            raise _translated(error) from error
        except ValidationError as error:
            raise LostError("its answer is not what MCP has there") from error

    async def changes(self, changed: Callable[[], None]) -> None:
        """Tell of changes of the tools, as far as the server does, for as long as this runs."""
        capabilities = self._client.server_capabilities
        is_modern = self._client.protocol_version.startswith(MODERN)
        if not is_modern or capabilities.tools is None or not capabilities.tools.list_changed:
            return
        try:
            async with self._client.listen(tools_list_changed=True) as events:
                async for _ in events:
                    changed()
        except (MCPError, SubscriptionLost, TimeoutError):
            return  # it will be asked when it is connected the next time


async def _response(request: InputRequest, ask: Ask) -> InputResponse:
    """Answer what a server wants to know before it makes a call.

    Raises:
        AnswerError: It gets no answers of models.
    """
    if isinstance(request, ListRootsRequest):
        return ListRootsResult(roots=[])
    if isinstance(request, ElicitRequest):
        return await _elicited(request.params, ask)
    raise AnswerError(f"it wants an answer of a model: {NO_SAMPLING}")


async def _elicited(params: ElicitRequestParams, ask: Ask) -> ElicitResult:
    """Have a form filled in; an address is shown to nobody, since it may lead anywhere."""
    if not isinstance(params, ElicitRequestFormParams):
        return ElicitResult(action="decline")
    schema = params.model_dump(by_alias=True, mode="json")["requestedSchema"]
    answers = await ask(Form(params.message, schema))
    if answers is None:
        return ElicitResult(action="decline")
    return ElicitResult(action="accept", content=answers)


def _translated(error: MCPError) -> Exception:
    told = cleaned(error.error.message, MAX_TOLD_CHARS)
    code = error.error.code
    if code in (NOT_SENT, GONE):
        return NotSentError(told)
    if code in UNKNOWN:
        return LostError(told)
    hint = " (has it such a method?)" if code == METHOD_NOT_FOUND else ""
    return AnswerError(f"{told}{hint}")


@asynccontextmanager
async def opened(
    wire: Wire,
    *,
    handshake: str,
    changed: Callable[[], None],
    logged: Callable[[str], None],
    ask: Ask,
) -> AsyncIterator[Session]:
    """Begin a conversation with a server, and end it.

    Args:
        wire: The way to it.
        handshake: ``auto``, or ``legacy``.
        changed: Called when it says that its tools have changed.
        logged: Told what it logs that is a warning or worse.
        ask: Has a person asked what the server wants to know in the middle of a call.
    """

    async def elicited(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        return await _elicited(params, ask)

    async def heard(message: ServerNotification | Exception) -> None:
        if isinstance(message, ToolListChangedNotification):
            changed()
        elif isinstance(message, LoggingMessageNotification) and message.params.level not in (
            "debug",
            "info",
            "notice",
        ):
            logged(cleaned(str(message.params.data), MAX_TOLD_CHARS))

    client = Client(
        wire,
        mode=handshake,
        client_info=Implementation(name="ksi", version=__version__),
        message_handler=heard,
        elicitation_callback=elicited,
        cache=None,
    )
    async with client:
        session = Session(client)
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(session.changes(changed), name="changes of tools")
            try:
                yield session
            finally:
                listening.cancel()
