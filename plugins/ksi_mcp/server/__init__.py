"""KSI as an MCP server, whatever it is reached by: what it offers, and in whose name it acts."""
