"""Calls of servers' tools, in whose middle a person may be asked."""
