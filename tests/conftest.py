import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_cli.testing import Checkout
from ksi_daemon import process
from ksi_daemon.home import Home
from ksi_daemon.testing import DaemonProcess

ROOT = Path(__file__).resolve().parent.parent
LONG_S = 200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left alone with it in the end."""
    items.sort(key=lambda item: not is_long(item))


def is_long(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("timeout")
    return mark is not None and bool(mark.args) and mark.args[0] >= LONG_S


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Spare the collector of garbage what stays to the end: the modules, and thousands of tests."""
    gc.collect()
    gc.freeze()


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
