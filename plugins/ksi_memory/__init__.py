"""Remembers: resources, entities, moments, facts, each with its source."""
