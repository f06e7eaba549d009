"""Saves the state that plugins have in memory and gives it back; delivers events durably."""
