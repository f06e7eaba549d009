"""Draws the monitor, of a world that is made up: for the README, and what the tests compare with.

``python docs/screenshot.py`` draws ``docs/monitor.svg`` and the pictures of the tests anew.
"""

import asyncio
import os
import time
from pathlib import Path

from ksi_tui.testing import PICTURES, pictures

ROOT = Path(__file__).resolve().parent.parent


async def draw() -> None:
    """Draw them all."""
    for size in PICTURES:
        for name, drawn in (await pictures(size)).items():
            (ROOT / name).write_text(drawn, encoding="utf-8")
            print(f"drew {name}")


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    time.tzset()
    asyncio.run(draw())
