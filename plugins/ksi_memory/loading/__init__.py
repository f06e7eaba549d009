"""Files: gone over, cut into chunks, and remembered whole or not at all."""
