"""Asks models: all money passes here."""
