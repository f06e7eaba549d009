"""The memory is asked something, and where the answer is from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ksi_cli.demo.quotes import TABLE, is_within
from ksi_cli.demo.screen import excerpt
from ksi_cli.demo.stages import Demo

QUESTION: Final = "What does a third-party plugin look like?"
SHOWN_LINES: Final = 6


async def ask(demo: Demo) -> None:
    """Ask the memory, show the best result, and follow it to the file that it is from.

    Raises:
        Broken: It does not stand in that file.
    """
    screen = demo.screen
    screen.stage("The memory is asked")
    question = await screen.ask(demo.answers, "Ask it something about KSI", QUESTION)
    search = {"mode": "search", "query": question, "tables": [TABLE], "limit": 1}
    results = (await demo.client.request("memory:query", search)).get("results", [])
    if not results:
        if question == QUESTION:
            screen.claim("the memory has an answer to that", holds=False)
        screen.say("There is nothing about that in the documentation.")
        return
    (found,) = results
    screen.lines(excerpt(found["snippet"].replace("**", ""), screen.width, SHOWN_LINES))
    why = await demo.client.request("memory:why", {"id": found["id"]})
    chain = list(_chain(why["versions"][0]))
    screen.lines((f"{'  ' * depth}← {_told(each)}" for depth, each in enumerate(chain)), "dim")
    part = chain[0].get("item", {}).get("body", "")
    file = _file(chain)
    screen.claim(
        f"these words stand in the file {file.relative_to(demo.place.documents) if file else '?'}",
        holds=file is not None and is_within(part, file.read_text(encoding="utf-8")),
        found=part,
    )


def _chain(because: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what something rests on, and what that rests on, to the last."""
    yield because
    for each in because.get("rests_on", ())[:1]:
        yield from _chain(each)


def _told(because: dict[str, Any]) -> str:
    is_person = because.get("source", {}).get("kind") == "person"
    return f"loaded by the {because['what']}" if is_person else str(because["what"])


def _file(chain: list[dict[str, Any]]) -> Path | None:
    paths = [each.get("item", {}).get("attributes", {}).get("path") for each in chain]
    return next((Path(path) for path in paths if path), None)
