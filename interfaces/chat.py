#!/usr/bin/env python3
"""Talk to a model through the daemon: the same as ``ksi chat``."""

import sys

try:
    from ksi_cli.main import main
except ImportError as error:
    sys.exit(
        f"chat.py: KSI is not installed for {sys.executable} ({error}); start it with "
        "python3 daemon_control.py start, then use .venv/bin/python interfaces/chat.py"
    )

if __name__ == "__main__":
    sys.exit(main(["chat", *sys.argv[1:]]))
