"""Runs the ``ksi`` command as ``python -m ksi_cli``."""

from ksi_cli.main import run

if __name__ == "__main__":
    run()
