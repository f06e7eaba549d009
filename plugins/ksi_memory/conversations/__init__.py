"""Conversations: read after their turns, summed up, dreamt over, and recalled before a turn."""
