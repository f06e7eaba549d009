"""A server by the SDK, over stdio, in the newest protocol."""

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequests,
    InputRequiredResult,
    ListRootsRequest,
)

server = MCPServer("newest")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def greet(ctx: Context) -> str | InputRequiredResult:
    """Greet somebody, by the name that is asked for."""
    given = ctx.input_responses
    if given is None:
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        form = ElicitRequestFormParams(message="Who?", requested_schema=schema)
        requests: InputRequests = {"who": ElicitRequest(params=form), "where": ListRootsRequest()}
        return InputRequiredResult(input_requests=requests, request_state="kept")
    told = {key: each.model_dump(exclude_none=True) for key, each in given.items()}
    return f"{ctx.request_state} {told['who']['content']} {told['where']['roots']}"


@server.tool()
def think(ctx: Context) -> InputRequiredResult:
    """Have a model of the client's think."""
    params = CreateMessageRequestParams(messages=[], max_tokens=10)
    return InputRequiredResult(input_requests={"m": CreateMessageRequest(params=params)})


server.run("stdio")
