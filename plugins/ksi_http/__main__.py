"""Runs the sidecar: ``python -m ksi_http``, which is ``ksi http``."""

import sys

from ksi_http.sidecar.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
