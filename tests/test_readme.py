"""The README as a newcomer finds it: its sessions are run, and their output is compared."""

import os
import re
import select
import shlex
import signal
import subprocess
from pathlib import Path
from textwrap import indent

import pytest

from ksi_cli.testing import INSTALL_TIMEOUT_S, Block, Checkout, blocks_of, commands_of
from ksi_daemon.home import Home

README = Path(__file__).resolve().parent.parent / "README.md"
PRINT_TIMEOUT_S = 20.0
# What is another at every start; nothing else may differ. Whether something is waited for depends
# on how fast the machine is, and what the environment is made with, on what there is.
VARYING = (r"\(pid \d+\)", r"done in \d+ s", r"· \d+\.\d s$", r"\((python3?|uv)\) …$")
WAITING = re.compile(
    r"^(waiting for .*|.* the engine is still being launched)\n",
    re.MULTILINE,
)  # what a daemon says that has only just begun


class Newcomer:
    """Somebody with a terminal in a checkout at ``~/ksi``."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.environ = dict(checkout.environ)

    def run(self, command: str, typed: str = "") -> str:
        """Run a command, and return what it shows in the terminal."""
        done = subprocess.run(
            shlex.split(command),
            env=self.environ,
            cwd=self.checkout.root,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        shown = done.stdout.replace(str(self.checkout.root), "~/ksi")
        return shown.replace(str(self.checkout.user_home), "~").strip()

    def follow(self, session: str) -> None:
        """Run the commands of a session, each of which must show what the session shows."""
        for command, expected in commands_of(session):
            shown = self.run(command)
            assert steady(shown) == steady(expected), f"$ {command}\n{shown}"

    def converse(self, session: str) -> None:
        """Type the lines of a session that stand after ``>``, and compare what is shown."""
        command, *lines = session.splitlines()
        typed = "".join(f"{line[2:]}\n" for line in lines if line.startswith("> "))
        expected = "\n".join(line for line in lines if not line.startswith("> "))
        shown = self.run(command.removeprefix("$ "), typed)
        assert steady(shown) == steady(expected), shown

    def begin(self, program: str) -> "subprocess.Popen[str]":
        """Run a program in Python, in which ``await`` may stand anywhere, beside the test."""
        line = [self.checkout.root / ".venv" / "bin" / "python", "-u", "-c"]
        program = f"import asyncio\nasync def main():\n{indent(program, '    ')}\n"
        return subprocess.Popen(
            [*map(str, line), f"{program}asyncio.run(main())"],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )


def steady(text: str) -> str:
    for pattern in VARYING:
        text = re.sub(pattern, "…", text, flags=re.MULTILINE)
    return WAITING.sub("", text)


def blocks_in(language: str) -> list[Block]:
    return [block for block in blocks_of(README) if block.language == language]


@pytest.mark.timeout(600)
def test_a_newcomer_sees_what_the_readme_shows(checkout: Checkout) -> None:
    checkout.copy_tree()
    newcomer = Newcomer(checkout)

    checkout.use_uv()  # which pip fetches otherwise, as for the environment of these tests
    for block in blocks_in("console"):
        newcomer.follow(block.text)
    for block in blocks_in("text"):
        newcomer.converse(block.text)

    home = Home(checkout.home)
    pid = home.running_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    newcomer.run("python3 daemon_control.py start")
    assert home.running_pid() not in (None, pid)

    the_plugin_answers(newcomer)
    the_client_sees_its_events(newcomer)

    the_client_has_turns(newcomer)

    assert newcomer.run(".venv/bin/ksi stop").startswith("KSI has stopped")
    assert checkout.run("status").returncode == 3


def the_plugin_answers(newcomer: Newcomer) -> None:
    """Put the smallest plugin where an installer would, and ask it."""
    plugin, _, _ = blocks_in("python")
    site = newcomer.checkout.user_home / "site"
    metadata = site / "my_plugin-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "my_plugin.py").write_text(plugin.text)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ksi]\nmy = my_plugin\n")
    newcomer.environ["PYTHONPATH"] = str(site)

    newcomer.run(".venv/bin/ksi restart")

    answer = newcomer.run(".venv/bin/ksi send my:custom:event answer=42 --json")
    assert answer == '{"received":{"answer":42}}'


def the_client_sees_its_events(newcomer: Newcomer) -> None:
    """Run the client of the README until it has printed an event of the plugin."""
    _, program, _ = blocks_in("python")
    with newcomer.begin(program.text) as client:
        try:
            for _ in range(200):
                if '"subscriptions":1' in newcomer.run(".venv/bin/ksi send system:stats --json"):
                    break
            newcomer.run(".venv/bin/ksi send my:custom:event answer=42")
            assert client.stdout is not None
            assert select.select([client.stdout], [], [], PRINT_TIMEOUT_S)[0], "it saw nothing"
            assert client.stdout.readline() == "my:custom:event {'answer': 42}\n"
        finally:
            client.kill()


def the_client_has_turns(newcomer: Newcomer) -> None:
    """Run the turns of the README, with a model that is there."""
    program = blocks_in("python")[2].text
    model = "claude-cli/sonnet"
    assert model in program
    with newcomer.begin(program.replace(model, "test/echo")) as client:
        told, _ = client.communicate(timeout=PRINT_TIMEOUT_S)

    assert told == "Explain quantum computing 3 0.0\nAnd shorter?"


def test_what_is_compared_differs_in_nothing_but_what_varies() -> None:
    assert steady("is ready (pid 1)\n  done in 2 s") == steady("is ready (pid 23)\n  done in 45 s")
    assert steady("creating it (python3) …") == steady("creating it (uv) …")
    assert steady("KSI 0.1.0 is ready") != steady("KSI 0.1.1 is ready")
