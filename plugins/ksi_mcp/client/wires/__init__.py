"""The ways to a server, and a live connection by one of them."""
