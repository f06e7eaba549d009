"""Tests of what conversations become."""
