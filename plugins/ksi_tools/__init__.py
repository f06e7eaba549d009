"""Calls tools: all effects pass here."""
