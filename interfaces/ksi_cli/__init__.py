"""The ``ksi`` command."""
