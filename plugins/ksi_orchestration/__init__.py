"""Orchestration: several agents at work on one thing, by patterns that are documents."""
