"""What all stages share, and the first two: a daemon starts, and reads the documentation."""

import time
from contextlib import aclosing
from typing import Any, Final

from ksi_cli import output
from ksi_cli.demo import documents
from ksi_cli.demo.answers import Answers
from ksi_cli.demo.daemon import Daemon, Running
from ksi_cli.demo.place import PLUGINS, Place
from ksi_cli.demo.screen import Screen
from ksi_client import AsyncClient

NAME: Final = "ksi"  # what keys of the documentation begin with


class Demo:
    """What all stages share.

    Attributes:
        place: Where all of it is.
        screen: Shows it.
        answers: Who is asked.
        daemon: Starts, kills and stops.
        model: Which one agents work with; the default unless given.
        running: The daemon as it runs now.
        client: The connection to it, which comes back by itself.
    """

    running: Running
    client: AsyncClient

    def __init__(self, place: Place, screen: Screen, answers: Answers, model: str | None) -> None:
        self.place = place
        self.screen = screen
        self.answers = answers
        self.model = model or ""
        self.daemon = Daemon(place)


async def start(demo: Demo) -> None:
    """Start a daemon in a home of its own; what a killed demo has left is cleared away."""
    screen, began_at = demo.screen, time.monotonic()
    screen.stage("A daemon starts, with a Postgres of its own")
    with screen.waiting("starting …") as tell:
        left = await demo.daemon.stop()
        demo.place.prepare()
        demo.running = await demo.daemon.start(tell)
    if left.was_running:
        screen.say("(one that a demo before had left behind was stopped)", "dim")
    screen.claim(
        f"it is ready after {time.monotonic() - began_at:.1f} s (pid {demo.running.pid})",
        holds=not demo.running.already_running,
    )


async def look_at_plugins(demo: Demo) -> None:
    """Look whether all have started that the demo needs."""
    listed = (await demo.client.request("system:plugins"))["plugins"]
    states = {each["plugin"]: each["state"] for each in listed if each["plugin"] in PLUGINS}
    demo.screen.claim(
        f"{len(PLUGINS)} plugins are at work in it",
        holds=states == dict.fromkeys(PLUGINS, "ready"),
        found=states,
    )


async def read_documentation(demo: Demo) -> None:
    """Load the documentation into the memory."""
    screen, began_at = demo.screen, time.monotonic()
    screen.stage("It reads the project's documentation")
    files = documents.gather(demo.place.documents)
    loaded: dict[str, Any] = {}
    with screen.waiting("reading …") as tell:
        request = {"path": str(demo.place.documents), "name": NAME}
        chunks = demo.client.stream("content:load", request)
        async with aclosing(chunks):
            async for chunk in chunks:
                loaded = chunk
                if chunk["kind"] == "progress":
                    tell(f"reading {chunk['path']} …")
    screen.claim(
        f"{files} files are remembered in {loaded.get('inserted', 0)} parts, after "
        f"{time.monotonic() - began_at:.1f} s",
        holds=files > 0
        and loaded.get("kind") == "loaded"
        and loaded["files"] == files
        and loaded["inserted"] > files
        and not loaded.get("skipped_files"),
        found=output.encode_json(loaded),
    )
