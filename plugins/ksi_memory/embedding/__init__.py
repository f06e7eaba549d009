"""Vectors: who makes them, the queue of texts that wait, and where they are kept."""
