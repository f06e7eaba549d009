"""KSI's daemon: a microkernel that dispatches namespaced events to plugins."""

__version__ = "0.1.0"
