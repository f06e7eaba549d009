"""The protocol's own suite, its inspector and its SDK, against KSI."""
