"""What is remembered: written in one way, read, corrected, forgotten, taken out and in."""
