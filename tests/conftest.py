import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_cli.testing import Checkout
from ksi_daemon import process
from ksi_daemon.home import Home
from ksi_daemon.testing import DaemonProcess

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def daemon_process(ksi_home: Path) -> Iterator[DaemonProcess]:
    """A daemon of the kernel's own, which starts at once; arguments may name more plugins."""
    made = DaemonProcess(ksi_home, environ={"KSI_DAEMON_PLUGINS": "system"})
    yield made
    made.stop()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    """Somebody's checkout, of the script alone as yet; a daemon that it started is ended."""
    made = Checkout(ROOT, tmp_path)
    for name in ("daemon_control.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, made.root)
    yield made
    process.stop(Home(made.home), timeout_s=0)
