#!/usr/bin/env python3
"""Show what the daemon does, live: the same as ``ksi monitor``."""

import sys

try:
    from ksi_cli.main import main
except ImportError as error:
    sys.exit(
        f"monitor_tui.py: KSI is not installed for {sys.executable} ({error}); start it with "
        "python3 daemon_control.py start, then use .venv/bin/python interfaces/monitor_tui.py"
    )

if __name__ == "__main__":
    sys.exit(main(["monitor", *sys.argv[1:]]))
