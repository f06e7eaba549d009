"""The embedders: each turns texts into vectors in one way."""
