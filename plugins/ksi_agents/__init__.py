"""Agents: declared in documents, run like services, each with a mailbox of its own."""
