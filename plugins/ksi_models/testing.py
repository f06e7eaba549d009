"""Fake providers that speak the real wire formats."""
