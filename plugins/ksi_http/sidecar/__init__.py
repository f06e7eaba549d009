"""The sidecar: an HTTP server in a process of its own, which is only a client of the daemon."""
