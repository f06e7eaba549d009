"""Tools for the tests of the server."""

import asyncio
import logging

from ksi_daemon.protocol import Busy
from ksi_mcp.api import Content
from ksi_tools.api import Question, ToolContext, tool

log = logging.getLogger(__name__)


class Toolbox:
    """What tests have called, and how."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    @tool(effects="read_only")
    async def add(self, a: int, b: int) -> dict[str, int]:
        """Add two numbers."""
        return {"sum": a + b}

    @tool(effects="effectful")
    async def shout(self, text: str) -> str:
        """Shout."""
        self.calls.append(text)
        return text.upper()

    @tool(effects="effectful")
    async def linger(self, text: str) -> str:
        """Shout, and say nothing more."""
        self.calls.append(text)
        self.begun.set()
        await asyncio.Event().wait()
        return text

    @tool(effects="effectful")
    async def sure(self, context: ToolContext) -> str:
        """Ask until somebody says yes."""
        if context.answer != "yes":
            raise Question("Sure?")
        return "done"

    @tool(effects="read_only")
    async def steps(self, context: ToolContext) -> str:
        """Go on step by step."""
        for number in (1, 2, 3):
            context.progress(f"step {number}", number, 3)
            await asyncio.sleep(0)
        log.warning("the last step was a bad one")
        return "there"

    @tool(effects="read_only")
    async def wait(self) -> str:
        """Wait for ever."""
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return "never"

    @tool(effects="read_only")
    async def fail(self) -> str:
        """Fail."""
        raise Busy("there is too much to do", retry_after_s=3.0)

    @tool(effects="read_only")
    async def picture(self) -> Content:
        """Return a picture, as large as one is."""
        image = {"type": "image", "mimeType": "image/png", "data": "AAAA" * 40_000}
        return Content(blocks=[{"type": "text", "text": "Look:"}, image])

    @tool(effects="read_only")
    async def much(self) -> str:
        """Return more than fits."""
        return "much " * 20_000
