"""Other programs' MCP servers: their tools are called by agents as any others are."""
