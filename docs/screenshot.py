"""Draws ``docs/monitor.svg``, the picture of the monitor in the README, of a world that is made up.

``python docs/screenshot.py`` draws it anew.
"""

import asyncio
import os
import time
from pathlib import Path

from ksi_tui.testing import still_monitor

PICTURE = Path(__file__).with_name("monitor.svg")
SIZE = (140, 40)


async def drawn() -> str:
    """Return the picture."""
    app = still_monitor()
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        return app.export_screenshot(title="ksi monitor")


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    time.tzset()
    PICTURE.write_text(asyncio.run(drawn()), encoding="utf-8")
    print(f"drew {PICTURE.name}")
