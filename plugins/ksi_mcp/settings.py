"""The section ``[mcp]``."""

from msgspec import Struct


class McpSettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How KSI is reached by, and reaches, other programs that speak MCP."""
