#!/usr/bin/env python3
"""Have several agents work on something: the same as ``ksi orchestrate``."""

import sys

try:
    from ksi_cli.main import main
except ImportError as error:
    sys.exit(
        f"orchestrate.py: KSI is not installed for {sys.executable} ({error}); start it with "
        "python3 daemon_control.py start, then use .venv/bin/python interfaces/orchestrate.py"
    )

if __name__ == "__main__":
    sys.exit(main(["orchestrate", *sys.argv[1:]]))
