"""The Model Context Protocol, both ways: KSI's tools for other programs, and theirs for agents."""
