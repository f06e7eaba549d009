"""The payloads of ``mcp:*``."""
