"""Three agents work on a question, with whatever model is there."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any, Final

from ksi_cli.demo.quotes import Quote, first_quote
from ksi_cli.demo.screen import Row, Screen, excerpt
from ksi_cli.demo.stages import Demo
from ksi_client import AsyncClient, Completion, KsiError, Subscription

EXTRACTIVE: Final = "builtin/extractive"
ANSWER_TIMEOUT_S: Final = 180.0
SHOWN_LINES: Final = 8  # of 80 words
QUESTION: Final = "What becomes of work when the daemon is killed?"
# Each agent extends the built-in one of its name, and has a part of the question.
PARTS: Final = {
    "researcher": "What happens to work that was accepted when the daemon is killed?",
    "critic": "What does KSI not guarantee about effects after a crash?",
    "summarizer": "When is a person asked about an effect?",
}
DOCUMENT: Final = """---
name: demo-{name}
extends: {name}
model: [{models}]
memory: {{ read: true, write: false }}
limits: {{ requests: 8, wall_s: 120 }}
---
{{{{ base }}}}

You are asked about KSI, whose documentation is remembered. Answer in at most 80 words.
"""


async def work(demo: Demo) -> None:
    """Have them work at the same time, and show what they answer.

    Raises:
        Broken: One has not answered, or quotes what is not in the documentation.
    """
    screen = demo.screen
    screen.stage(f"Three agents work on it: {QUESTION}")
    models = await _models(demo)
    if models == [EXTRACTIVE]:
        screen.say(
            f"There is no language model here; {EXTRACTIVE} stands in, which quotes what it finds.",
            "dim",
        )
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        ended = await _have_them_work(demo, models)
    quotes = {name: await _show(demo, name, each) for name, each in ended.items()}
    silent = sorted(name for name, completion in ended.items() if not completion.text.strip())
    screen.claim("all three have answered", holds=not silent, found=", ".join(silent))
    if any(each.model == EXTRACTIVE for each in ended.values()):
        found = [each for each in quotes.values() if each is not None]
        screen.claim(
            "each quote stands in the part of the documentation that is named below it",
            holds=bool(found) and all(each.source for each in found),
            found=found,
        )
    _tell_cost(screen, ended)


async def _models(demo: Demo) -> list[str]:
    """Return the model that is there; where it fails, what is always there stands in."""
    default = (await demo.client.request("model:list"))["default"]
    return list(dict.fromkeys((demo.model or default, EXTRACTIVE)))


async def _have_them_work(demo: Demo, models: list[str]) -> dict[str, Completion]:
    """Spawn the agents, ask each its part, and show them until all have answered."""
    client = demo.client
    rows = {called(name): Row(name) for name in PARTS}
    for name in PARTS:
        text = DOCUMENT.format(name=name, models=", ".join(f'"{each}"' for each in models))
        await client.request("agent:spawn", {"name": called(name), "document": {"text": text}})
    changes = await client.subscribe("agent:changed")
    with demo.screen.working(list(rows.values())):
        async with changes, asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(client, changes, rows, group), name="watching")
            asked = {
                name: group.create_task(_ask(client, called(name), prompt), name=name)
                for name, prompt in PARTS.items()
            }
            ended = {name: await each for name, each in asked.items()}
            watching.cancel()
    return ended


def called(definition: str) -> str:
    """Return the name of the agent, which can't be that of a definition."""
    return f"{definition}-1"


async def _ask(client: AsyncClient, agent: str, prompt: str) -> Completion:
    request = {"agent": agent, "prompt": prompt, "timeout_s": ANSWER_TIMEOUT_S}
    answered = await client.request("agent:ask", request, timeout_s=ANSWER_TIMEOUT_S + 10.0)
    if answered["status"] != "succeeded":
        why = (answered.get("error") or {}).get("message", "nobody says why")
        raise KsiError(f"the {agent} did not answer ({answered['status']}): {why}")
    return await client.wait_completion(answered["run_id"])


async def _watch(
    client: AsyncClient, changes: Subscription, rows: dict[str, Row], group: asyncio.TaskGroup
) -> None:
    """Note what the agents are at, and follow the turn of each that begins one."""
    async for event in changes:
        data: dict[str, Any] = event.data
        row = rows.get(data["name"])
        if row is not None:
            row.phase = data["phase"]
            if data.get("run_id"):
                group.create_task(_follow(client, data["run_id"], row), name=f"{row.name}'s turn")


async def _follow(client: AsyncClient, run_id: str, row: Row) -> None:
    with suppress(KsiError):  # a turn that fails is told to who asked
        async with aclosing(client.follow_completion(run_id)) as chunks:
            async for chunk in chunks:
                row.take(chunk)


async def _show(demo: Demo, name: str, completion: Completion) -> Quote | None:
    """Show the beginning of an answer; of quotes, the first."""
    screen = demo.screen
    screen.say(f"{name} · {completion.model}", "bold")
    is_quoting = completion.model == EXTRACTIVE
    quote = await first_quote(demo.client, completion.text) if is_quoting else None
    text = f"“{quote.text}”" if quote else completion.text
    screen.lines(excerpt(text, screen.width, SHOWN_LINES))
    screen.lines([f"— {quote.source}"] if quote else [], "dim")
    return quote


def _tell_cost(screen: Screen, ended: dict[str, Completion]) -> None:
    costs = [completion.cost_usd for completion in ended.values()]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        screen.say("what that cost is not known: the model has no price", "dim")
    elif any(known):
        screen.say(f"that cost ${sum(known):.4f}", "dim")
