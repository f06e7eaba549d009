import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from ksi_daemon.confinement import Confined
from ksi_models.events import FilePart, Message, TextDelta, TextPart, ToolSchema, Usage
from ksi_models.keys import Keys
from ksi_models.provider import ProviderError
from ksi_models.providers import Providers
from ksi_models.providers.claude_cli import BOUNDS, ClaudeCLI
from ksi_models.providers.guarded import ProcessBounds
from ksi_models.settings import ModelsSettings
from ksi_models.testing import FakeClaude
from ksi_models.tests.questions import ask, assistant, failing, keys, question, said, user

LOGIN = "sk-ant-oat01-abcdefghijklmnop"


@pytest.fixture
async def claude(fake_claude: FakeClaude, tmp_path: Path) -> AsyncIterator[ClaudeCLI]:
    made = make(fake_claude, tmp_path)
    yield made
    await made.close()


def make(fake: FakeClaude, home: Path, bounds: ProcessBounds = BOUNDS, **environ: str) -> ClaudeCLI:
    folder = home / "claude"
    known = keys(None, None, **environ)
    command, config = str(fake.command), str(fake.config_folder)
    return ClaudeCLI(command, config, folder, known, 1_000_000, bounds)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# -- answers --------------------------------------------------------------------------------------


async def test_it_answers_in_pieces(claude: ClaudeCLI) -> None:
    deltas, end = await ask(claude, question("Say something longer", model="sonnet"))

    assert len(deltas) == 3
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "Say something longer"
    assert said(end) == "Say something longer"
    assert end.usage == Usage(
        input_tokens=8, output_tokens=3, cache_read_tokens=3, cache_write_tokens=2
    )
    assert end.served == "claude-sonnet-fake"


async def test_what_is_not_streamed_is_taken_whole(claude: ClaudeCLI) -> None:
    _, end = await ask(claude, question("Hello", model="whole"))

    assert said(end) == "Hello"


async def test_none_of_its_own_is_switched_on(claude: ClaudeCLI, fake_claude: FakeClaude) -> None:
    await ask(claude, question(model="sonnet", system="Be brief."))

    arguments = fake_claude.runs[0]["arguments"]
    assert arguments[arguments.index("--tools") + 1] == ""
    assert arguments[arguments.index("--setting-sources") + 1] == ""
    assert "--strict-mcp-config" in arguments
    assert arguments[arguments.index("--model") + 1] == "sonnet"
    assert fake_claude.runs[0]["system"] == "Be brief."


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the ancestors of a process")
async def test_to_the_daemon_it_is_nobody_though_it_has_no_tools(
    fake_claude: FakeClaude, tmp_path: Path
) -> None:
    added: list[int] = []

    class Noting(Confined):
        def add(self, pid: int) -> None:
            added.append(pid)
            super().add(pid)

    command, config = str(fake_claude.command), str(fake_claude.config_folder)
    settings = ModelsSettings(claude_command=command, claude_config_folder=config, keyring=False)
    providers = Providers(settings, Keys(settings, tmp_path, {}), tmp_path, Noting())
    claude = providers.find("claude-cli")
    assert claude is not None
    await ask(claude, question(model="sonnet"))
    await providers.close()

    assert len(added) == len(fake_claude.runs) == 1


async def test_what_a_person_says_is_on_no_command_line(
    claude: ClaudeCLI, fake_claude: FakeClaude, tmp_path: Path
) -> None:
    await ask(claude, question("my secret", model="sonnet", system="another secret"))

    assert "secret" not in str(fake_claude.runs[0]["arguments"])
    assert [each.name for each in (tmp_path / "claude").iterdir()] == ["config"]


async def test_its_environment_is_scrubbed(
    fake_claude: FakeClaude, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_SOMETHING", "x")
    monkeypatch.setenv("NODE_OPTIONS", "--require evil")
    monkeypatch.setenv("LC_TIME", "C")
    claude = make(fake_claude, tmp_path, OPENAI_API_KEY="sk-another", CLAUDE_CODE_OAUTH_TOKEN=LOGIN)

    await ask(claude, question(model="sonnet"))

    environ = fake_claude.runs[0]["environ"]
    assert {"KSI_SOMETHING", "NODE_OPTIONS", "OPENAI_API_KEY"}.isdisjoint(environ)
    assert fake_claude.runs[0]["login"] == [LOGIN]
    assert LOGIN not in str(environ)
    assert {"PATH", "LC_TIME"} <= environ.keys()
    await claude.close()


# -- sessions -------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_in_its_session(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    _, first = await ask(claude, question("one", model="sonnet", conversation="c"))
    messages = (user("one"), first.message, user("two"))
    _, second = await ask(claude, question(*messages, model="sonnet", conversation="c"))

    assert said(second) == "two"
    assert "--resume" not in fake_claude.runs[0]["arguments"]
    assert "--resume" in fake_claude.runs[1]["arguments"]
    assert fake_claude.runs[1]["input"][0]["message"]["content"] == [
        {"type": "text", "text": "two"}
    ]


async def test_a_conversation_that_was_changed_is_told_anew(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    await ask(claude, question("one", model="sonnet", conversation="c"))
    messages = (user("one"), assistant("something else"), user("two"))
    await ask(claude, question(*messages, model="sonnet", conversation="c"))

    content = fake_claude.runs[1]["input"][0]["message"]["content"]
    assert "--resume" not in fake_claude.runs[1]["arguments"]
    assert '{"role":"assistant","text":"something else"}' in content[0]["text"]
    assert content[1] == {"type": "text", "text": "two"}


async def test_another_system_prompt_is_told_anew(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    first = question("one", model="sonnet", conversation="c", system="Be brief.")
    _, end = await ask(claude, first)
    messages = (user("one"), end.message, user("two"))
    await ask(claude, question(*messages, model="sonnet", conversation="c", system="Be long."))

    assert "--resume" not in fake_claude.runs[1]["arguments"]
    assert fake_claude.runs[1]["system"] == "Be long."


async def test_a_session_that_is_gone_is_begun_anew(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    _, first = await ask(claude, question("one", model="sonnet", conversation="c"))
    for file in (fake_claude.config_folder / "fake-sessions").iterdir():
        file.unlink()

    messages = (user("one"), first.message, user("two"))
    _, second = await ask(claude, question(*messages, model="sonnet", conversation="c"))

    assert said(second).endswith("two")


async def test_tenants_share_no_session(claude: ClaudeCLI, fake_claude: FakeClaude) -> None:
    _, first = await ask(claude, question("one", model="sonnet", conversation="c"))
    messages = (user("one"), first.message, user("two"))
    await ask(claude, question(*messages, model="sonnet", conversation="c", tenant="other"))

    assert "--resume" not in fake_claude.runs[1]["arguments"]


async def test_without_a_conversation_nothing_is_kept(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    await ask(claude, question("one", model="sonnet"))

    assert "--no-session-persistence" in fake_claude.runs[0]["arguments"]
    assert not (fake_claude.config_folder / "fake-sessions").exists()


async def test_images_are_handed_on(claude: ClaudeCLI, fake_claude: FakeClaude) -> None:
    picture = Message("user", (TextPart("See"), FilePart("image/png", b"\x89P")))

    await ask(claude, question(picture, model="sonnet"))

    content = fake_claude.runs[0]["input"][0]["message"]["content"]
    assert content[1]["source"] == {"type": "base64", "media_type": "image/png", "data": "iVA="}


# -- refusals -------------------------------------------------------------------------------------


async def test_tools_are_refused(claude: ClaudeCLI, fake_claude: FakeClaude) -> None:
    error = await failing(claude, question(model="sonnet", tools=(ToolSchema("f", "", {}),)))

    assert error.kind == "refused"
    assert "MCP" in error.message
    assert fake_claude.runs == []


@pytest.mark.parametrize("model", ["--dangerously-skip-permissions", "-p", "", "a b", "x\ny"])
async def test_a_model_is_no_option(claude: ClaudeCLI, fake_claude: FakeClaude, model: str) -> None:
    assert (await failing(claude, question(model=model))).kind == "not_found"
    assert fake_claude.runs == []


@pytest.mark.parametrize("model", ["tool", "result", "has-tools"])
async def test_one_that_acts_by_itself_is_ended(
    claude: ClaudeCLI, fake_claude: FakeClaude, model: str
) -> None:
    error = await failing(claude, question(model=model))

    assert error.kind == "refused"
    assert not is_alive(fake_claude.runs[0]["pid"])


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind", "told"),
    [
        ("crash", "cut_off", "SIGKILL, and not by us: perhaps by the kernel"),
        ("crash", "cut_off", "without an answer; it said: it broke"),
        ("quit", "cut_off", "with the exit code 3 without an answer; it said: this / that / and"),
        ("mutter", "cut_off", "without an answer; it said: no more"),
        ("garbage", "malformed", "can't be read"),
        ("binary", "malformed", "can't be read"),
        ("huge-line", "malformed", "longer than"),
        ("endless", "answer_too_long", "max_answer_bytes"),
        ("login", "login", "log in"),
        ("limit", "rate_limited", "resets 3pm"),
        ("overloaded", "overloaded", "Overloaded"),
        ("old", "refused", "update it"),
    ],
)
async def test_each_fault_has_its_kind(claude: ClaudeCLI, model: str, kind: str, told: str) -> None:
    error = await failing(claude, question(model=model))

    assert error.kind == kind
    assert told in error.message
    assert "secretsecret" not in error.message


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is taken")


@on_linux
@pytest.mark.parametrize(
    ("model", "bounds", "told"),
    [
        ("eat", {"memory_mb": 150}, "of memory and may hold 150; it said: reading it all"),
        ("eat-away", {"memory_mb": 150}, "of memory and may hold 150"),
        ("spin", {"cpu_s": 1}, "s of CPU time and may take 1"),
        ("spin-apart", {"cpu_s": 1}, "s of CPU time and may take 1"),
        (
            "leak",
            {"open_files": 64},
            "64 files open and wanted more; it said: Too many open files",
        ),
    ],
)
async def test_what_takes_too_much_is_ended_and_says_of_what(
    fake_claude: FakeClaude, tmp_path: Path, model: str, bounds: dict[str, int], told: str
) -> None:
    claude = make(fake_claude, tmp_path, ProcessBounds(**bounds))

    error = await failing(claude, question(model=model))

    assert error.kind == "over_limit"
    assert all(int(many) < 64 for many in re.findall(r"open files at (\d+)", error.message))
    assert told in error.message
    assert f"models.providers.claude-cli.{next(iter(bounds))}" in error.message
    assert started_by(fake_claude) == []


@on_linux
@pytest.mark.parametrize("model", ["sonnet", "child"])
async def test_what_stays_in_its_bounds_is_left_alone(
    fake_claude: FakeClaude, tmp_path: Path, model: str
) -> None:
    bounds = ProcessBounds(memory_mb=500, cpu_s=60, open_files=64)
    claude = make(fake_claude, tmp_path, bounds)

    async with aclosing(claude.stream(question("Hello", model=model))) as answer:
        assert isinstance(await anext(answer), TextDelta)
        assert started_by(fake_claude) != []
    await claude.close()

    assert started_by(fake_claude) == []


@on_linux
async def test_one_that_ignores_being_ended_is_killed(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    async with aclosing(claude.stream(question(model="deaf"))) as answer:
        await anext(answer)

    assert started_by(fake_claude) == []


def started_by(fake: FakeClaude) -> list[int]:
    """Return the processes that still run of what a command started: they have its environment."""
    mark = f"FAKE_CLAUDE_FOLDER={fake.config_folder}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if is_alive(pid)]


async def test_without_the_command_it_says_what_to_do(tmp_path: Path) -> None:
    claude = ClaudeCLI("no-such-claude", "", tmp_path, keys())

    assert "install" in str(await claude.why_not())
    assert (await failing(claude, question(model="sonnet"))).kind == "login"


async def test_without_a_login_it_says_what_to_do(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    assert await claude.why_not() is None

    (fake_claude.config_folder / ".credentials.json").unlink()

    assert "log in" in str(await claude.why_not())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes there are")
@pytest.mark.parametrize("how", ["closed", "cancelled", "shut down"])
async def test_nothing_of_it_is_left(claude: ClaudeCLI, how: str) -> None:
    async with aclosing(claude.stream(question(model="child"))) as answer:
        first = await anext(answer)
        assert isinstance(first, TextDelta)
        pids = json.loads(first.text)["pids"]
        assert all(map(is_alive, pids))
        if how == "cancelled":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(answer)
        elif how == "shut down":
            await claude.close()

    assert [pid for pid in pids if is_alive(pid)] == []
    assert claude._running == set()


@pytest.mark.parametrize("model", ["hang", "stall"])
async def test_one_that_hangs_is_ended_with_its_call(
    claude: ClaudeCLI, fake_claude: FakeClaude, model: str
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await ask(claude, question(model=model))

    assert [run for run in fake_claude.runs if is_alive(run["pid"])] == []


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files are open")
async def test_no_file_stays_open(fake_claude: FakeClaude, tmp_path: Path) -> None:
    claude = make(fake_claude, tmp_path, CLAUDE_CODE_OAUTH_TOKEN=LOGIN)
    before = open_files()

    for model in ("sonnet", "crash", "tool", "garbage"):
        with contextlib.suppress(ProviderError):
            await ask(claude, question(model=model))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ask(claude, question(model="hang"))
    await claude.close()

    assert open_files() == before


async def test_it_is_asked_to_end_before_it_is_killed(
    claude: ClaudeCLI, fake_claude: FakeClaude
) -> None:
    async with aclosing(claude.stream(question(model="polite"))) as answer:
        await anext(answer)

    assert (fake_claude.config_folder / "said-goodbye").exists()


PARENT = """
import asyncio, sys
from pathlib import Path
from ksi_models.providers.guarded import GuardedProcess

async def main():
    command, config = sys.argv[1:]
    process = await GuardedProcess.start(
        [command, "--model", "child"],
        environ={"HOME": config, "CLAUDE_CONFIG_DIR": config, "PATH": "/usr/bin:/bin"},
        folder=Path(config), max_line_bytes=10_000_000)
    process.write_and_close(b'{"message": {"content": [{"type": "text", "text": "a"}]}}\\n')
    await process.read_line()
    sys.stdout.buffer.write(await process.read_line())
    sys.stdout.flush()
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes there are")
def test_nothing_outlives_a_daemon_that_is_killed(fake_claude: FakeClaude) -> None:
    command = [sys.executable, "-c", PARENT, str(fake_claude.command)]
    parent = subprocess.Popen(
        [*command, str(fake_claude.config_folder)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    line = json.loads(parent.stdout.readline())
    pids = json.loads(line["event"]["delta"]["text"])["pids"]

    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        os.sched_yield()
    assert [pid for pid in pids if is_alive(pid)] == []
