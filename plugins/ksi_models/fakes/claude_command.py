"""A fake ``claude`` command that speaks its ``stream-json``, with faults on demand.

`ksi_models.testing.install_fake_claude` makes an executable of it. It answers like ``test/script``
and ``test/echo``: a user's message that is a script is followed, anything else is repeated. The
model's name, or ``FAKE_CLAUDE_FAULT``, says what goes wrong: ``hang``, ``stall``, ``polite`` (it
stalls, and cleans up when it is ended), ``crash``, ``garbage``, ``binary``, ``huge-line``,
``endless``, ``child`` (it leaves processes behind that ignore being ended), ``deaf`` (it ignores
being ended), ``eat`` (it takes all memory), ``eat-away`` (a process does that which has left its
group), ``spin`` (it takes CPU time), ``spin-apart`` (its children do), ``leak`` (it opens files),
``quit`` (it ends with a code), ``mutter`` (it complains at length), ``tool`` (it uses one of its
own), ``result`` (it has used one), ``has-tools``, ``login``, ``limit``, ``overloaded``, ``old`` (it
doesn't know its options), ``whole`` (it does not stream).

Its tools are those of `claude_tools`. Sessions and a log of how it was called are in a folder of
its own; where it is only tried, it leaves no log.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Final

from ksi_models.fakes.claude_tools import Block, Tools, ask_model
from ksi_models.providers.scripts import next_step, pieces_of

LOG: Final = "fake-log.jsonl"
SESSIONS: Final = "fake-sessions"
GOODBYE: Final = "said-goodbye"
VERSION: Final = "9.9.9"
TITLE: Final = [{"role": "user", "content": "Give this conversation a title."}]
LOGINS: Final = {
    "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
}
SLEEPER: Final = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "os.setsid() if sys.argv[1] == 'away' else None; print(os.getpid(), flush=True); "
    "time.sleep(600)"
)
# Takes 20 MB every few milliseconds, and touches them.
EATER: Final = """
import time
kept = []
while True:
    kept.append(b"x" * 20_000_000)
    time.sleep(0.02)
"""


class Fake:
    """One run of the command."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.folder = Path(os.environ["FAKE_CLAUDE_FOLDER"])
        self.model = os.environ.get("FAKE_CLAUDE_FAULT") or self.option("--model") or "default"
        self.session = self.option("--resume") or str(uuid.uuid4())
        self.file = self.folder / SESSIONS / f"{self.session}.json"
        self.history: list[tuple[str, str]] = []
        self.url = os.environ.get("ANTHROPIC_BASE_URL", "")
        self.messages: list[dict[str, Any]] = []
        self.spent: list[dict[str, int]] = []

    def option(self, name: str) -> str | None:
        """Return an option's value."""
        if name not in self.arguments:
            return None
        return self.arguments[self.arguments.index(name) + 1]

    def run(self) -> int:
        """Answer what comes in."""
        if self.model == "old":
            sys.stderr.write("error: unknown option '--tools'\n")
            return 1
        if self.option("--resume") and not self.file.exists():
            sys.stderr.write(f"No conversation found with session ID: {self.session}\n")
            return 1
        if self.file.exists():
            self.history = [tuple(each) for each in json.loads(self.file.read_text())]
        text = self.read()
        self.history.append(("user", text))
        self.messages.append({"role": "user", "content": text})
        self.tools = Tools(self.option("--mcp-config"))
        self.tell(
            "system",
            subtype="init",
            model=f"claude-{self.model}-fake",
            claude_code_version=VERSION,
            **self.abilities(),
        )
        code = self.fail()
        return self.answer() if code is None else code

    def read(self) -> str:
        """Read what the user says, and note how this was called."""
        lines = [json.loads(line) for line in sys.stdin]
        prompt = self.option("--system-prompt-file")
        entry = {
            "pid": os.getpid(),
            "arguments": self.arguments,
            "environ": dict(os.environ),
            "login": [Path(f"/dev/fd/{os.environ[n]}").read_text() for n in LOGINS & {*os.environ}],
            "system": Path(prompt).read_text() if prompt else None,
            "input": lines,
        }
        if not self.url:
            with (self.folder / LOG).open("a") as log:
                log.write(json.dumps(entry) + "\n")
        blocks = [block for line in lines for block in line["message"]["content"]]
        return "\n".join(block.get("text", "") for block in blocks)

    def abilities(self) -> dict[str, Any]:
        """Return what it says that it can do."""
        own = ["Bash"] if self.model == "has-tools" else []
        return {"tools": [*self.tools.names, *own], "mcp_servers": self.tools.servers}

    def tell(self, kind: str, **members: Any) -> None:
        """Write a line."""
        line = {"type": kind, "session_id": self.session, "uuid": str(uuid.uuid4()), **members}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def tell_event(self, kind: str, **members: Any) -> None:
        """Write an event of the stream."""
        self.tell("stream_event", event={"type": kind, **members}, parent_tool_use_id=None)

    def tell_text(self, text: str, kind: str = "text") -> None:
        """Write a piece of text."""
        self.tell_event("content_block_delta", index=0, delta={"type": f"{kind}_delta", kind: text})

    def answer(self) -> int:
        """Answer well, with as many calls of tools as its model wants."""
        while calls := self.say_next():
            for block in calls:
                said, is_error = self.tools.call(block)
                self.tell_tool_result(block, said, is_error=is_error)
                self.history.append(("tool", said))
        if "--no-session-persistence" not in self.arguments:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.history))
        self.tell_result(self.history[-1][1])
        self.tools.close()
        return 0

    def say_next(self) -> list[Block]:
        """Say what comes next; returns the calls in that."""
        step = next_step(self.history)
        if self.url:
            said, thought, calls = self.of_model()
        elif step is not None:
            said, thought = step.say, step.think
            calls = [
                {
                    "type": "tool_use",
                    "id": call.id or f"toolu_{uuid.uuid4().hex}",
                    "name": f"mcp__ksi__{call.name}" if call.name != "Bash" else call.name,
                    "input": json.loads(call.text),
                }
                for call in step.calls
            ]
        else:
            said, thought, calls = self.history[-1][1], "", []
        parent = "toolu_0" if "agents" in self.tools.cheats else None
        if self.model != "whole":
            self.stream(said, thought, calls, step.chunks if step else 3, step)
        text = [{"type": "text", "text": said}] if said else []
        for block in (*text, *calls):  # the real one writes a line for each
            message = {"role": "assistant", "content": [block], "stop_reason": None}
            self.tell("assistant", message=message, parent_tool_use_id=parent)
        self.history.append(("assistant", said))
        self.messages.append({"role": "assistant", "content": [*text, *calls]})
        read, written = len(self.history[-2][1].split()), len(said.split())
        self.spent.append({"input_tokens": read, "output_tokens": written})
        if self.model != "whole":
            reason = "tool_use" if calls else "end_turn"
            usage = {"output_tokens": written}
            self.tell_event("message_delta", delta={"stop_reason": reason}, usage=usage)
            self.tell_event("message_stop")
        return calls

    def stream(self, said: str, thought: str, calls: list[Block], count: int, step: Any) -> None:
        """Write an answer in pieces."""
        usage = {"input_tokens": len(self.history[-1][1].split()), "output_tokens": 1}
        message = {"role": "assistant", "content": [], "usage": usage}
        self.tell_event("message_start", message=message)
        for piece in pieces_of(thought, count):
            self.tell_text(piece, "thinking")
        for piece in pieces_of(said, count):
            self.tell_text(piece)
            time.sleep(step.delay_s if step else 0)
        for place, block in enumerate(calls, 1):
            start = {**block, "input": {}}
            self.tell_event("content_block_start", index=place, content_block=start)
            for piece in pieces_of(json.dumps(block["input"]), 2):
                delta = {"type": "input_json_delta", "partial_json": piece}
                self.tell_event("content_block_delta", index=place, delta=delta)
            self.tell_event("content_block_stop", index=place)

    def of_model(self) -> tuple[str, str, list[Block]]:
        """Ask the model that it was pointed at; like the real one also for what nobody asked."""
        ask_model(self.url, TITLE, [])
        blocks = ask_model(self.url, self.messages, self.tools.names, self.tools.instructions)
        said = "".join(block["text"] for block in blocks if block["type"] == "text")
        return said, "", [block for block in blocks if block["type"] == "tool_use"]

    def tell_tool_result(self, block: Block, said: str, *, is_error: bool) -> None:
        """Write what came of a call."""
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": said}
        content = [{**result, "is_error": True} if is_error else result]
        self.messages.append({"role": "user", "content": content})
        self.tell("user", message=self.messages[-1], parent_tool_use_id=None)

    def tell_result(self, said: str, *, is_error: bool = False) -> None:
        """Write the last line: it tells what all answers took together."""
        usage = {
            "input_tokens": sum(each["input_tokens"] for each in self.spent),
            "cache_read_input_tokens": 3,
            "cache_creation_input_tokens": 2,
            "output_tokens": sum(each["output_tokens"] for each in self.spent),
        }
        self.tell(
            "result",
            subtype="success",
            is_error=is_error,
            result=said,
            usage=usage,
            total_cost_usd=0.01,
        )

    def fail(self) -> int | None:
        """Do what the model's name says; returns the exit code if that was all."""
        name = "fail_" + self.model.replace("-", "_")
        if not hasattr(self, name):
            return None
        getattr(self, name)()
        return 1

    def fail_hang(self) -> None:
        """Never answer."""
        time.sleep(600)

    def fail_stall(self) -> None:
        """Stop in the middle."""
        self.tell_text("half of it")
        time.sleep(600)

    def fail_polite(self) -> None:
        """Stop in the middle, and clean up when it is to end."""
        signal.signal(signal.SIGTERM, self.say_goodbye)
        self.fail_stall()

    def say_goodbye(self, *_: Any) -> None:
        """Clean up."""
        (self.folder / GOODBYE).touch()
        sys.exit()

    def fail_crash(self) -> None:
        """Break, and tell a secret."""
        sys.stderr.write("it broke, with sk-ant-api03-secretsecret in its hand\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def fail_garbage(self) -> None:
        """Write what is no JSON."""
        sys.stdout.write("this is no JSON\n")

    def fail_binary(self) -> None:
        """Write what is no text."""
        sys.stdout.buffer.write(b'{"type": "\xff\xfe"}\n')

    def fail_huge_line(self) -> None:
        """Write a line without end."""
        while True:
            sys.stdout.buffer.write(b"x" * 65_536)

    def fail_endless(self) -> None:
        """Write an answer without end."""
        while True:
            self.tell_text("x" * 65_536)

    def fail_child(self) -> None:
        """Start processes that ignore being ended, one of them in a session of its own."""
        pids = []
        for where in ("here", "away"):
            command = [sys.executable, "-c", SLEEPER, where]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            pids.append(int(child.stdout.readline()))
        self.tell_text(json.dumps({"pids": [os.getpid(), *pids]}))
        time.sleep(600)

    def fail_deaf(self) -> None:
        """Stop in the middle, and ignore being ended."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.fail_stall()

    def fail_eat(self) -> None:
        """Take more and more memory."""
        sys.stderr.write("reading it all\n")
        sys.stderr.flush()
        exec(EATER)  # noqa: S102  the same as its child does

    def fail_eat_away(self) -> None:
        """Have a process in a session of its own take more and more memory."""
        subprocess.Popen([sys.executable, "-c", EATER], start_new_session=True)
        time.sleep(600)

    def fail_spin(self) -> None:
        """Take CPU time and nothing else."""
        while True:
            pass

    def fail_spin_apart(self) -> None:
        """Have one child after another take some CPU time."""
        while True:
            subprocess.run([sys.executable, "-S", "-c", "sum(range(5_000_000))"], check=True)

    def fail_leak(self) -> None:
        """Open files and close none."""
        kept: list[Any] = []
        try:
            while True:
                kept.append(open(os.devnull))  # noqa: PTH123, SIM115  that is the fault
        except OSError as error:
            sys.exit(f"{error.strerror} at {len(kept)}")

    def fail_quit(self) -> None:
        """End with a code of its own."""
        sys.stderr.write("first of all\nthis\nthat\nand sk-ant-api03-secretsecret\n")
        sys.exit(3)

    def fail_mutter(self) -> None:
        """Complain at length, and have a secret in the middle of that."""
        sys.exit(f"sk-ant-api03-{'secret' * 800}\nno more")

    def fail_tool(self) -> None:
        """Use a tool."""
        block = {"type": "tool_use", "id": "1", "name": "Bash", "input": {}}
        self.tell_event("content_block_start", index=0, content_block=block)
        time.sleep(600)

    def fail_result(self) -> None:
        """Show that a tool was used."""
        block = {"type": "tool_result", "tool_use_id": "1", "content": "done"}
        self.tell("user", message={"role": "user", "content": [block]})
        time.sleep(600)

    def fail_login(self) -> None:
        """Want a login."""
        self.tell_result("Not logged in · Please run /login", is_error=True)

    def fail_limit(self) -> None:
        """Have no more to give."""
        self.tell_result("You've hit your limit · resets 3pm", is_error=True)

    def fail_overloaded(self) -> None:
        """Have too much to do."""
        self.tell_result("API Error: 529 Overloaded", is_error=True)


if __name__ == "__main__":
    sys.exit(Fake(sys.argv[1:]).run())
