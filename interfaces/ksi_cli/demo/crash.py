"""A daemon is killed amid an effect: what was done stays done, and a person is asked of the rest.

An agent calls a tool that the demo itself serves, and that has an effect which can be seen: a line
in a file. The daemon is killed after the effect and before it knows of it.
"""

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ksi_cli import output
from ksi_cli.demo.screen import Screen
from ksi_cli.demo.stages import Demo
from ksi_client import AsyncClient, Subscription

WAIT_S: Final = 60.0
LETTER: Final = {"to": "Ada", "text": "The engine is running."}
STEPS: Final[tuple[dict[str, Any], ...]] = (
    {"say": "I look at the clock.", "calls": [{"name": "current_time"}]},
    {"say": "I post the letter.", "calls": [{"name": "post_letter", "arguments": LETTER}]},
    {"say": "The letter is on its way."},
)
DOCUMENT: Final = """---
name: demo-postman
description: Posts letters.
model: test/script
tools: [current_time, post_letter]
memory: { read: false, write: false }
---
You post letters.
"""
SCHEMA: Final = {
    "type": "object",
    "properties": {"to": {"type": "string"}, "text": {"type": "string"}},
    "required": ["to", "text"],
}


class Letter(Struct, frozen=True):
    """What the agent was told to do, and the conversation in which it does it."""

    order: dict[str, str]
    conversation: str


class PostOffice:
    """The world outside the daemon: a box that has a line for each letter that was posted.

    Args:
        box: The file.

    Attributes:
        posted: Set once a letter is in the box.
        is_slow: Whether it takes for ever to say that a letter was posted.
    """

    def __init__(self, box: Path) -> None:
        self.posted = asyncio.Event()
        self.is_slow = True
        self._box = box

    async def post(self, data: dict[str, str], context: object) -> str:
        """Post a letter."""
        self._put(f"To {data['to']}: {data['text']}")
        self.posted.set()
        if self.is_slow:
            await asyncio.Event().wait()
        return "posted"

    @property
    def letters(self) -> list[str]:
        """What is in the box."""
        return self._box.read_text(encoding="utf-8").splitlines() if self._box.exists() else []

    def _put(self, letter: str) -> None:
        with self._box.open("a", encoding="utf-8") as box:
            box.write(letter + "\n")


async def crash(demo: Demo, office: PostOffice) -> None:
    """Have a letter posted, kill the daemon before it knows, and see how the work goes on.

    Raises:
        Broken: It does not go on as it should.
    """
    client, screen = demo.client, demo.screen
    screen.stage("The daemon is killed amid an effect")
    screen.say("An agent posts a letter. A script plays its model, to say the same each time:")
    screen.lines([f"{number}. “{step['say']}”" for number, step in enumerate(STEPS, 1)])
    known = len(office.letters)
    office.posted.clear()
    office.is_slow = True
    letter = await _send(client)
    async with await client.subscribe("tool:doubted") as doubts:
        with screen.waiting("working …"):
            async with asyncio.timeout(WAIT_S):
                await office.posted.wait()
        before = await _calls(client, letter)
        screen.claim(
            "step 1 is done; the letter of step 2 is in the box, and the daemon can't know yet",
            holds=_statuses(before) == {"current_time": "done", "post_letter": "running"},
            found=_statuses(before),
        )
        await _kill_and_start(demo)
        call = await _doubt(client, screen, doubts)
    after = await _calls(client, letter)
    screen.claim(
        "step 1 was not done again",
        holds=[each for each in before if each["name"] == "current_time"]
        == [each for each in after if each["name"] == "current_time"],
        found=output.encode_json(after),
    )
    is_posted = await _ask_person(demo, office)
    office.is_slow = False
    verdict = {"verdict": "done", "content": "posted"} if is_posted else {"verdict": "redo"}
    await client.request("tool:resolve", {"call_id": call["call_id"], **verdict})
    await _see_it_end(client, screen, letter)
    posted = len(office.letters) - known
    if is_posted:
        screen.claim("the letter is in the box once", holds=posted == 1, found=posted)
    else:
        screen.claim("the letter is there twice, as you wanted", holds=posted == 2, found=posted)
        screen.say("Nobody but you could know: that is why KSI asks, and posts nothing by itself.")


async def _send(client: AsyncClient) -> Letter:
    """Have an agent post a letter; accepted is durable."""
    agent = f"postman-{uuid.uuid4().hex[:6]}"
    spawned = await client.request("agent:spawn", {"name": agent, "document": {"text": DOCUMENT}})
    order = {
        "agent": agent,
        "prompt": output.encode_json({"steps": STEPS}),
        "message_id": uuid.uuid4().hex,
    }
    await client.request("agent:send", order)
    return Letter(order, spawned["conversation_id"])


async def _calls(client: AsyncClient, letter: Letter) -> list[dict[str, Any]]:
    """Read the agent's calls in the ledger, the oldest first."""
    listed = await client.request("tool:calls", {"conversation_id": letter.conversation})
    calls: list[dict[str, Any]] = listed["calls"]
    return calls[::-1]


def _statuses(calls: list[dict[str, Any]]) -> dict[str, str]:
    return {call["name"]: call["status"] for call in calls}


async def _kill_and_start(demo: Demo) -> None:
    screen, pid = demo.screen, demo.running.pid
    with screen.waiting(f"kill -9 {pid} …"):
        await demo.daemon.kill(pid)
    screen.claim(f"kill -9 {pid}: the daemon is gone", holds=True)
    began_at = time.monotonic()
    with screen.waiting("starting it again …") as tell:
        demo.running = await demo.daemon.start(tell)
    screen.claim(
        f"it is ready again after {time.monotonic() - began_at:.1f} s: pid {demo.running.pid}",
        holds=demo.running.pid != pid and not demo.running.already_running,
        found=demo.running.pid,
    )


async def _doubt(client: AsyncClient, screen: Screen, doubts: Subscription) -> dict[str, Any]:
    """Wait until the daemon says of the letter that it doesn't know."""
    calls: list[dict[str, Any]] = []
    with screen.waiting("the daemon looks at what was left …"):
        async with asyncio.timeout(WAIT_S):
            while not calls:
                calls = (await client.request("tool:in_doubt"))["calls"]
                if not calls:
                    await anext(doubts)
    call = calls[0]
    screen.claim(
        f"it doesn't post the letter again, but asks: {call.get('why') or 'it is in doubt'}",
        holds=call["name"] == "post_letter" and call["arguments"] == LETTER,
        found=output.encode_json(calls),
    )
    return call


async def _ask_person(demo: Demo, office: PostOffice) -> bool:
    screen = demo.screen
    screen.say(f"You can look; in the box ({output.displayed(demo.place.box)}) is:")
    screen.lines([f"  {letter}" for letter in office.letters])
    verdicts = (("y", "yes, it was posted"), ("n", "no: post it, even if it is once more"))
    return await screen.choose(demo.answers, verdicts) == "y"


async def _see_it_end(client: AsyncClient, screen: Screen, letter: Letter) -> None:
    """Wait for the same message: it was accepted once."""
    with screen.waiting("the agent goes on …"):
        request = {**letter.order, "timeout_s": WAIT_S}
        answered = await client.request("agent:ask", request, timeout_s=2 * WAIT_S)
    said = STEPS[-1]["say"]
    screen.claim(
        f"the agent has gone on where it was: “{said}”",
        holds=answered["status"] == "succeeded" and answered["text"] == said,
        found=output.encode_json(answered),
    )
    question = {"by": ["conversation"], "conversation": letter.conversation}
    calls = (await client.request("model:usage", question))["total"]["calls"]
    screen.claim(
        f"its model was asked {len(STEPS)} times in all, once for each step",
        holds=calls == len(STEPS),
        found=calls,
    )
