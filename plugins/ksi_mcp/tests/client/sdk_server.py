"""A server by the SDK, over stdio, in the newest protocol."""

from mcp.server import MCPServer

server = MCPServer("newest")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


server.run("stdio")
