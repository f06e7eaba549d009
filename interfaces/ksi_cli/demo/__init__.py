"""``ksi demo``: what KSI is, shown in two minutes on a daemon of its own."""
