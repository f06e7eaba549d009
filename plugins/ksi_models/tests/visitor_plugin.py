"""A plugin that runs in a process of its own, and would like to know the keys."""

import os
from typing import Any

from ksi_daemon.event_system import event_handler


@event_handler("visitor:look")
async def look(data: Any) -> dict[str, Any]:
    """Tell all that this process knows of its environment."""
    return {"pid": os.getpid(), "environ": dict(os.environ)}
