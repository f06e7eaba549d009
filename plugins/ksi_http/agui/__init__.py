"""AG-UI: what a front end sends, and the stream of events that it gets."""
