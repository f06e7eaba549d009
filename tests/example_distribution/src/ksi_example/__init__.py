"""Shouts and spells."""
