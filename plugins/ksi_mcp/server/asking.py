"""Asks the program that calls, or the person in front of it, for something."""

import asyncio
from typing import Any, Final

import mcp_types as types
import msgspec
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from msgspec import Struct
from pydantic import TypeAdapter, ValidationError

from ksi_daemon.protocol import Failed, TimedOut

Ctx = ServerRequestContext[Any, Any]
Asks = dict[str, dict[str, Any]]

ANSWER: Final = "answer"
ELICITATION, FORM = "elicitation", "form"
METHODS: Final[dict[str, tuple[type[types.Request[Any, Any]], type[types.Result], str]]] = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult, ELICITATION),
    "sampling/createMessage": (
        types.CreateMessageRequest,
        types.CreateMessageResultWithTools,
        "sampling",
    ),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult, "roots"),
}
REQUESTS: Final = TypeAdapter(types.InputRequests)


def capabilities_of(ctx: Ctx) -> dict[str, Any]:
    """Return what the calling program can do."""
    known = ctx.session.client_capabilities
    if known is None:
        return {}
    return known.model_dump(by_alias=True, mode="json", exclude_none=True)


def is_modern(ctx: Ctx) -> bool:
    """Say whether a program speaks the protocol that knows no sessions."""
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


def can_elicit(ctx: Ctx) -> bool:
    """Say whether the person in front of the calling program can be asked."""
    return _can(capabilities_of(ctx), question(""))


def _can(known: dict[str, Any], ask: dict[str, Any]) -> bool:
    """Say whether a program of these capabilities can be asked for something."""
    needed = METHODS[str(ask.get("method"))][2]
    if needed not in known:
        return False
    mode, modes = _mode(ask), known[needed]
    return needed != ELICITATION or mode in modes or (mode == FORM and not modes)


def _mode(ask: dict[str, Any]) -> str:
    return str((ask.get("params") or {}).get("mode", FORM))


def question(words: str) -> dict[str, Any]:
    """Return the request by which a person is asked."""
    schema = {
        "type": "object",
        "properties": {ANSWER: {"type": "string", "title": "Answer"}},
        "required": [ANSWER],
    }
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": words, "requestedSchema": schema},
    }


def is_answer(given: Any) -> bool:
    """Say whether somebody has answered, be it that they would not."""
    return isinstance(given, dict) and given.get("action") in ("accept", "decline", "cancel")


def answer_in(given: Any) -> str | None:
    """Return what a person answered; ``None`` where they would not."""
    if not isinstance(given, dict) or given.get("action") != "accept":
        return None
    content = given.get("content") or {}
    answer = content.get(ANSWER)
    return answer if isinstance(answer, str) else msgspec.json.encode(content).decode()


def check(ctx: Ctx, asks: Asks, *, is_modern: bool) -> None:
    """Go on only if the calling program can be asked.

    Raises:
        MCPError: It can't, and is told what it would have to be able to do.
        Failed: The same, for the model.
    """
    known = capabilities_of(ctx)
    for ask in asks.values():
        method = str(ask.get("method"))
        if method not in METHODS:
            raise Failed(f"the tool asks for {method[:100]}, which nobody can answer")
        if _can(known, ask):
            continue
        needed, mode = METHODS[method][2], _mode(ask)
        message = f"the tool needs a client that has the capability {needed}"
        if needed == ELICITATION:
            message = f"{message} by {mode}"
        if not is_modern:
            raise Failed(message)
        wanted: dict[str, Any] = {mode: {}} if needed == ELICITATION else {}
        data = {"requiredCapabilities": {needed: wanted}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, message, data)


def required(asks: Asks, state: Struct) -> types.InputRequiredResult:
    """Return what has to be answered before the call is made once more."""
    try:
        requests = REQUESTS.validate_python(asks, by_name=False)
    except ValidationError as error:
        raise Failed("the tool asks for something that is no request of MCP") from error
    return types.InputRequiredResult(
        input_requests=requests, request_state=msgspec.json.encode(state).decode()
    )


async def answers_of(ctx: Ctx, asks: Asks, timeout_s: float) -> dict[str, Any]:
    """Ask a program that has a session, and return its answers.

    Raises:
        TimedOut: It took too long.
        Failed: It would not, or what is asked is nothing that can be.
    """
    answers = {}
    for name, ask in asks.items():
        request_type, result_type, _ = METHODS[str(ask.get("method"))]
        try:
            request = request_type.model_validate(ask, by_name=False)
            async with asyncio.timeout(timeout_s):
                answers[name] = await _answer(ctx, request, result_type)
        except TimeoutError as error:
            raise TimedOut(f"nobody has answered within {timeout_s:g} s") from error
        except ValidationError as error:
            raise Failed("what was asked, or answered, is none of MCP") from error
        except MCPError as error:
            raise Failed(f"the client did not answer: {error.message}") from error
    return answers


async def _answer(
    ctx: Ctx, request: types.Request[Any, Any], result_type: type[types.Result]
) -> dict[str, Any]:
    result = await ctx.session.send_request(
        request,  # type: ignore[arg-type]  # one of METHODS
        result_type,
        metadata=ServerMessageMetadata(related_request_id=ctx.request_id),
    )
    return result.model_dump(by_alias=True, mode="json", exclude_none=True)


def plain_answers(given: types.InputResponses | None) -> dict[str, Any] | None:
    """Return what a program answered that knows no sessions."""
    if given is None:
        return None
    return {
        name: each
        if isinstance(each, dict)
        else each.model_dump(by_alias=True, mode="json", exclude_none=True)
        for name, each in given.items()
    }
