"""Tests of ``ksi ask``, ``ksi chat`` and the commands around them, with a real daemon."""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_cli.terminal import ESCAPES, Terminal, terminal
from ksi_cli.testing import Finished, KsiCommand, install_distribution
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

WAIT_S = 30.0
PROMPT = ">"  # the blank after it is a movement of the cursor
ROOT = Path(__file__).parents[1]


def script(*steps: dict[str, Any]) -> str:
    """Return what `test/script` is told, step by step."""
    return msgspec.json.encode({"steps": steps}).decode()


ASKS = script(
    {"calls": [{"name": "ask_user", "arguments": {"question": "Which colour?"}}]},
    {"say": "A fine colour."},
)
LOOKS = script({"say": "Let me look.", "calls": [{"name": "current_time"}]}, {"say": "It is late."})


LAMP = """
import asyncio

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_tools.api import Tools, tool


@tool(effects="effectful", timeout_s=600.0)
async def lamp() -> str:
    '''Switch the lamp, which takes for ever.'''
    await asyncio.Event().wait()


@hookimpl
def ksi_plugin():
    return PluginInfo(requires=("tools",))


@hookimpl
async def ksi_lifespan(plugin):
    with plugin.service(Tools).add(lamp, provider=plugin.name):
        yield
"""


class Running:
    """A daemon with models for tests, and a command beside it."""

    def __init__(self, home: Path, user_home: Path, site: str, arguments: list[str]) -> None:
        self.process = DaemonProcess(home, environ={"PYTHONPATH": site})
        self.arguments = arguments
        self.ksi = KsiCommand(home, user_home)

    def start(self) -> None:
        """Start the daemon."""
        self.process.start(*self.arguments)

    def chat(self, *words: str, **environ: str) -> Any:
        """Open ``ksi chat`` in a terminal."""
        return terminal(self.ksi.line("chat", *words), {**self.ksi.environ, **environ})


@pytest.fixture(scope="module")
def running(
    _postgres_loop: _Loop, postgres_server: TestServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    logins = _postgres_loop.run(fresh_database(postgres_server))
    settings = [*settings_for(logins), "models.find_local=false", "models.keyring=false"]
    with tempfile.TemporaryDirectory(prefix="ksi-talk-") as folder:
        made = Running(
            Path(folder),
            tmp_path_factory.mktemp("user"),
            install_distribution(
                tmp_path_factory.mktemp("site"), "lamps", LAMP, {"ksi": {"lamps": "lamps"}}
            ),
            [word for each in settings for word in ("--set", each)],
        )
        made.start()
        try:
            yield made
        finally:
            made.process.stop()
    _postgres_loop.run(drop_database(postgres_server, logins))


@pytest.fixture
def ksi(running: Running) -> KsiCommand:
    return running.ksi


def asked(ksi: KsiCommand, text: str, *words: str, model: str = "test/echo") -> dict[str, Any]:
    """Ask, and return what a program is told."""
    done = ksi("ask", "--json", "-m", model, *words, text)
    assert done.code == 0, (done.out, done.err)
    found: dict[str, Any] = done.json
    return found


# -- ask -----------------------------------------------------------------------------------------


def test_ask_prints_the_answer_alone_and_what_it_took_beside_it(ksi: KsiCommand) -> None:
    done = ksi("ask", "-m", "test/echo", "hello", "there")

    assert (done.code, done.out) == (0, "hello there\n")
    assert done.err.startswith("test/echo · ")
    assert "tokens in" in done.err
    assert "\x1b" not in done.err


def test_ask_tells_programs_one_object(ksi: KsiCommand) -> None:
    first = asked(ksi, "hello")
    second = asked(ksi, "again", "-c", first["conversation_id"])

    assert (first["status"], first["output"]) == ("succeeded", "hello")
    assert first["run_id"]
    assert first["usage"]["output_tokens"] > 0
    assert second["conversation_id"] == first["conversation_id"]


def test_a_failed_turn_is_told_with_its_kind_and_the_conversation_goes_on(ksi: KsiCommand) -> None:
    told = ksi("ask", "-m", "test/fail-login", "hello")
    as_json = ksi("ask", "--json", "-m", "test/fail-login", "hello")

    assert told.code == as_json.code == 5
    assert told.out == ""
    assert told.err.startswith("ksi: ")
    assert "what was said is kept: --conversation" in told.err
    assert as_json.json["status"] == "failed"
    assert as_json.json["error"]["code"] == "denied"
    assert "output" not in as_json.json


def test_what_comes_through_a_pipe_and_in_files_is_asked_too(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("bring milk\n")

    piped = ksi("ask", "-m", "test/echo", stdin="from a pipe")
    both = ksi("ask", "-m", "test/echo", "-f", str(tmp_path / "notes.txt"), "what?", stdin="more")

    assert piped.out == "from a pipe\n"
    places = [both.out.find(part) for part in ("what?", "notes.txt:\n```\nbring milk\n```", "more")]
    assert -1 not in places
    assert places == sorted(places)


def test_ask_streams_where_it_is_told_to(ksi: KsiCommand) -> None:
    streamed = ksi("ask", "--stream", "-m", "test/script", LOOKS)
    whole = ksi("ask", "-m", "test/script", LOOKS)

    assert streamed.out == "Let me look.\nIt is late.\n"
    assert "calling current_time()" in streamed.err
    assert whole.out == "It is late.\n"
    assert "calling" not in whole.err


def test_on_a_terminal_ask_prints_the_answer_whole_where_it_is_told_to(ksi: KsiCommand) -> None:
    with terminal(ksi.line("ask", "--no-stream", "-m", "test/script", LOOKS), ksi.environ) as asked:
        asked.until("It is late.")
        asked.until("1 tool call")

        assert asked.wait() == 0
        assert "Let me look." not in asked.text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is nothing to ask"),
        (["-"], "there is nothing to ask"),
        (["-f", "/nowhere/x.txt", "hi"], "/nowhere/x.txt can't be read: No such file"),
        (["-f", "/", "hi"], "can't be read: Is a directory"),
        (["-c", "no such id", "hi"], "'no such id' is no conversation's id"),
        (["--modle", "x", "hi"], "or --model?"),
        (["--timeout-s", "soon", "hi"], "--timeout-s"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_sentence(
    ksi: KsiCommand, words: list[str], sentence: str
) -> None:
    done = ksi("ask", *words)

    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-m", "nosuch:model", "hi"], {1, 4}),
        (["-m", "test/nosuch", "hi"], {4}),
    ],
)
def test_what_does_not_exist_is_told_in_a_sentence(
    ksi: KsiCommand, words: list[str], code: set[int]
) -> None:
    done = ksi("ask", *words)

    assert done.code in code
    assert done.err.startswith("ksi: ")


def test_who_does_not_wait_is_told_that_the_turn_goes_on(ksi: KsiCommand) -> None:
    started = ksi("ask", "--json", "--timeout-s", "0", "-m", "test/hang", "hi")
    cancelled = ksi("turn", "cancel", started.json["run_id"])
    waited = ksi("turn", "wait", started.json["run_id"])

    assert (started.code, started.json["status"]) == (7, "running")
    assert cancelled.code == 0
    assert waited.code == 1
    assert ksi("turn", "list", "--open", "--json").json["turns"] == []


def test_ctrl_c_ends_the_turn_and_says_so(ksi: KsiCommand) -> None:
    with terminal(ksi.line("ask", "-m", "test/stall", "hi"), ksi.environ) as opened:
        opened.until("This answer has no")
        opened.type("\x03")
        opened.until("stopped")
        opened.until("--conversation ")
        code = opened.wait()

    assert code == 130
    assert ksi("turn", "list", "--open", "--json").json["turns"] == []
    assert ksi("turn", "list", "-n", "1", "--json").json["turns"][0]["status"] == "cancelled"


def test_an_answer_goes_on_when_the_daemon_was_killed_amid_it(running: Running) -> None:
    with running.ksi.begin("ask", "--stream", "-m", "test/lorem-150-20ms", "go") as asking:
        assert asking.stdout is not None
        begun = asking.stdout.read(5)
        running.process.kill()
        running.start()
        rest, told = asking.communicate(timeout=WAIT_S)

    assert (asking.returncode, begun) == (0, "lorem")
    assert len(rest.splitlines()[-1].split()) == 150
    assert "looking for the daemon" in told
    assert "the answer begins again" in told


def test_a_person_who_is_not_there_can_answer_later(ksi: KsiCommand) -> None:
    asking = ksi("ask", "-m", "test/script", ASKS)
    run = ksi("turn", "list", "--open", "--json").json["turns"][0]["run_id"]

    assert asking.code == 7
    assert "Which colour?" in asking.err
    assert f"ksi turn answer {run}" in asking.err
    assert completed(ksi, "ksi tool answer ") == [f"{run}:1:0"]
    assert ksi("turn", "answer", run, "green").code == 0
    assert ksi("turn", "wait", run).out == "A fine colour.\n"


def test_without_a_daemon_the_next_step_is_told(tmp_path: Path) -> None:
    lonely = KsiCommand(tmp_path / "home", tmp_path)

    for words in (["ask", "hi"], ["chat"], ["model", "list"], ["conversation", "list"]):
        done = lonely(*words)
        assert (done.code, done.err.count("\n")) == (3, 1), words
        assert "ksi start" in done.err


# -- chat ----------------------------------------------------------------------------------------


def test_chat_streams_remembers_and_leaves(running: Running) -> None:
    with running.chat("-m", "test/echo") as chat:
        chat.until("Ctrl-D leaves")
        chat.until(PROMPT)
        chat.type("**hello** there\r")
        chat.until("hello there")
        chat.until(" in, ")
        chat.type("/usage\r")
        chat.until("this session: 1 turn")
        chat.type("\x04")
        chat.until("--resume ")
        code = chat.wait()

    assert code == 0
    history = running.ksi.home / "chat_history"
    assert "**hello** there" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_chat_is_wholly_within_80_columns(running: Running) -> None:
    with running.chat("-m", "test/lorem-60") as chat:
        chat.until(PROMPT)
        chat.type("go\r")
        chat.until(" in, ")
        chat.type("/help\r")
        chat.until("says a slash to the model")
        chat.type("\x04")
        chat.wait()

    lines = re.split(r"[\r\n]+", ESCAPES.sub("", chat.raw.decode()))
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_lines_are_gathered_until_enter_and_what_is_typed_ahead_is_kept(running: Running) -> None:
    with running.chat("-m", "test/echo") as chat:
        chat.until(PROMPT)
        chat.type("one\\\r")
        chat.type("two\x1b\rthree\r")
        chat.until("one two three")  # as Markdown has it, in one paragraph
        chat.until(" in, ")
        chat.type("\x04")
        assert chat.wait() == 0


def test_ctrl_c_stops_the_turn_and_not_the_program(running: Running) -> None:
    with running.chat("-m", "test/stall") as chat:
        chat.until(PROMPT)
        chat.type("go\r")
        chat.until("This answer has no")
        chat.type("\x03")
        chat.until("stopped; what you said is kept")
        chat.until(PROMPT)
        chat.type("\x03")
        chat.until("(Ctrl-D leaves)")
        chat.type("/quit\r")
        assert chat.wait() == 0


def test_a_question_is_answered_in_its_place(running: Running) -> None:
    with running.chat("-m", "test/script") as chat:
        chat.until(PROMPT)
        chat.type(ASKS + "\r")
        chat.until("? Which colour?")
        chat.until("answer> ")
        chat.type("green\r")
        chat.until("A fine colour.")
        chat.until(" in, ")
        chat.type("\x04")
        assert chat.wait() == 0

    assert "green" not in (running.ksi.home / "chat_history").read_text()


def test_a_question_can_be_left_and_taken_up_again(running: Running) -> None:
    with running.chat("-m", "test/script") as chat:
        chat.until(PROMPT)
        chat.type(ASKS + "\r")
        chat.until("answer> ")
        chat.type("\x04")
        chat.until("the turn goes on in the daemon")
        assert chat.wait() == 0
    with running.chat("--continue") as chat:
        chat.until("a turn is under way")
        chat.until("answer> ")
        chat.type("blue\r")
        chat.until("A fine colour.")
        chat.until(" in, ")
        chat.type("\x04")
        assert chat.wait() == 0


def test_tool_calls_are_shown_in_a_line_each(running: Running) -> None:
    with running.chat("-m", "test/script") as chat:
        chat.until(PROMPT)
        chat.type(LOOKS + "\r")
        chat.until("Let me look.")
        chat.until("calling current_time()")
        chat.until("It is late.")
        chat.until("1 tool call")
        chat.type("\x04")
        assert chat.wait() == 0


def test_a_daemon_that_is_killed_in_the_middle_comes_back_and_the_answer_goes_on(
    running: Running,
) -> None:
    with running.chat("-m", "test/lorem-150-20ms") as chat:
        chat.until(PROMPT)
        chat.type("go\r")
        chat.until("ipsum")
        running.process.kill()
        chat.until("the connection was lost")
        running.start()
        chat.until("the daemon is back")
        chat.until("150 out")
        chat.type("\x04")
        assert chat.wait() == 0


def test_a_call_in_doubt_is_put_before_the_person(running: Running) -> None:
    asked(running.ksi, "hello", "-c", "lamps")
    running.ksi("tool", "permit", "conversation:lamps", "--allow", "lamp")
    switches = script({"calls": [{"name": "lamp"}]}, {"say": "Let there be light."})
    with running.chat("--resume", "lamps", "-m", "test/script") as chat:
        chat.until(PROMPT)
        chat.type(switches + "\r")
        chat.until("calling lamp")
        for _ in range(100):  # its intent is written just then
            if running.ksi("tool", "calls", "--status", "running", "--json").json["calls"]:
                break
        running.process.kill()
        running.start()
        chat.until("ksi tool resolve")
        chat.until("done, redo or drop>")
        doubts = running.ksi("tool", "in-doubt").out
        suggested = completed(running.ksi, "ksi tool resolve ")
        chat.type("perhaps\r")
        chat.until("done: it has happened")
        chat.type("done it is on\r")
        chat.until("Let there be light.")
        chat.until(" in, ")
        chat.type("\x04")
        assert chat.wait() == 0

    assert "ksi tool resolve" in doubts
    assert [call for call in suggested if f"ksi tool resolve {call} done" in doubts] == suggested
    assert len(suggested) == 1
    assert "lamp" in doubts
    assert running.ksi("tool", "in-doubt").out == "no call is in doubt\n"


def test_slash_commands_do_what_they_say(running: Running, tmp_path: Path) -> None:
    with running.chat("-m", "test/echo") as chat:
        chat.until(PROMPT)
        chat.type("first\r")
        chat.until(" in, ")
        commands = [
            ("/hlp", "did you mean /help?"),
            ("/model test/lorem-3", "from now on test/lorem-3 answers"),
            ("/model", "builtin/extractive"),
            ("/retry", "lorem ipsum dolor"),
            (f"/export {tmp_path}/a.md", "written: "),
            (f"/export {tmp_path}/a.md", "exists; name another file"),
            ("/history", "lorem ipsum dolor"),
            ("/resume", "go on with one: /resume NUMBER"),
            ("/new", "a new conversation"),
            ("/history", "nothing has been said yet"),
            ("/stop", "no turn is under way"),
            ("/resume nosuch", "there is no conversation"),
        ]
        for line, told in commands:
            chat.type(line + "\r")
            chat.until(told)
        chat.type("\x04")
        assert chat.wait() == 0

    assert "lorem ipsum dolor" in (tmp_path / "a.md").read_text()


def test_what_was_asked_last_is_asked_again_after_a_return(running: Running) -> None:
    made = asked(running.ksi, "the first thing")["conversation_id"]
    asked(running.ksi, "the second thing", "-c", made)
    with running.chat("--resume", made, "-m", "test/echo") as chat:
        chat.until(PROMPT)
        chat.type("/retry\r")
        chat.until("asking again, in a copy")
        chat.until("the second thing")
        chat.until(" in, ")
        chat.type("\x04")
        assert chat.wait() == 0

    copy = running.ksi("conversation", "list", "--json").json["conversations"][0]
    assert (copy["forked_from"], copy["turns"]) == (made, 2)


def test_a_chat_is_its_users_and_its_agents(running: Running) -> None:
    said = "ann's own words\n"
    done = running.ksi("chat", "--user-id", "ann", "--agent", "aide", "-m", "test/echo", stdin=said)
    of_ann = running.ksi("conversation", "list", "--user", "ann", "--json").json["conversations"]
    bob = running.ksi("chat", "--user-id", "bob", "--resume", of_ann[0]["conversation_id"])

    assert done.out == said
    assert [(each["user"], each["agent"]) for each in of_ann] == [("ann", "aide")]
    assert (bob.code, bob.out) == (4, "")
    assert "there is no conversation" in bob.err
    assert running.ksi("chat", "--user-id", "bob", "--continue").code == 1


def test_without_a_terminal_lines_are_read_and_plainly_answered(ksi: KsiCommand) -> None:
    done = ksi("chat", "-m", "test/echo", stdin="hello\ntwo\\\nlines\n/nope\n")

    assert (done.code, done.out) == (0, "hello\ntwo\nlines\n")
    assert "there is no /nope" in done.err
    assert "\x1b" not in done.out + done.err


def test_without_colours_there_are_none(running: Running) -> None:
    with running.chat("-m", "test/echo", NO_COLOR="1") as chat:
        chat.until(PROMPT)
        chat.type("`code` and *more*\r")
        chat.until(" in, ")
        chat.type("\x04")
        chat.wait()

    assert b"\x1b[3" not in chat.raw.partition(b"code and")[2].replace(b"\x1b[3m", b"")


def test_what_a_model_says_does_not_steer_the_terminal(running: Running) -> None:
    evil = script({"say": "\x1b]0;owned\x07 and \x1b[2Jgone"})
    with running.chat("-m", "test/script") as chat:
        chat.until(PROMPT)
        chat.type(evil + "\r")
        chat.until(" in, ")
        chat.type("\x04")
        chat.wait()
    done = running.ksi("ask", "-m", "test/script", evil)

    for raw in (chat.raw, done.out.encode()):
        assert b"\x1b]0;owned" not in raw
        assert b"\\x1b]0;owned" in raw


def test_chat_py_is_the_same(ksi: KsiCommand) -> None:
    line = [sys.executable, str(ROOT / "interfaces" / "chat.py"), "-m", "test/echo"]
    with terminal(line, ksi.environ) as chat:
        chat.until(PROMPT)
        chat.type("hello\r")
        chat.until(" in, ")
        chat.type("\x04")
        assert chat.wait() == 0


# -- the commands around it ----------------------------------------------------------------------


def told(done: Finished) -> str:
    """Return what a person is told, which fits into 80 columns and is no error."""
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines()), default=0) <= 80, done.out
    return done.out


def test_conversations_are_listed_read_found_and_looked_after(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    made = asked(ksi, "the quick brown xylophone")["conversation_id"]

    assert "the quick brown xylophone" in told(ksi("conversation", "list"))
    assert "[1] user" in told(ksi("conversation", "show", made))
    assert "**xylophone**" in told(ksi("conversation", "search", "xylophone"))
    assert "Music" in told(ksi("conversation", "rename", made, "Music"))
    assert "archived" in told(ksi("conversation", "archive", made))
    assert ksi("ask", "-c", made, "-m", "test/echo", "hi").code == 1
    assert "archived" not in told(ksi("conversation", "archive", made, "--undo"))
    assert "Music" in told(ksi("conversation", "fork", made, "--at", "1"))
    assert "no conversation is locked" in told(ksi("conversation", "locks"))
    assert "was not locked" in told(ksi("conversation", "unlock", made))

    file = tmp_path / "music.json"
    assert "bytes" in ksi("conversation", "export", made, str(file)).out
    assert file.stat().st_mode & 0o077 == 0
    again = ksi("conversation", "export", made, str(file))
    assert (again.code, again.err) == (1, f"ksi: {file} exists; replace it with --force\n")
    assert "Music" in told(ksi("conversation", "import", str(file), "--id", "copied"))
    assert "# Music" in ksi("conversation", "export", "copied").out

    assert ksi("conversation", "delete", made).code == 2
    assert "deleted" in told(ksi("conversation", "delete", made, "--yes"))
    assert ksi("conversation", "show", made).code == 4


def test_models_usage_tools_and_turns_are_shown_in_80_columns(ksi: KsiCommand) -> None:
    asked(ksi, "hello")

    assert "builtin/extractive" in told(ksi("model", "list"))
    assert "test/echo" in told(ksi("model", "list", "test"))
    assert "answers" in told(ksi("model", "check", "test/echo"))
    assert "test/echo" in told(ksi("model", "prices"))
    assert "test/echo" in told(ksi("usage"))
    assert "DAY" in told(ksi("usage", "--by", "model,day", "--since", "1d"))
    assert "current_time" in told(ksi("tool", "list"))
    assert "question" in told(ksi("tool", "describe", "ask_user"))
    assert told(ksi("tool", "call", "current_time"))
    assert "current_time" in told(ksi("tool", "calls"))
    assert told(ksi("tool", "in-doubt")) == "no call is in doubt\n"
    assert "test/echo" in told(ksi("turn", "list"))
    assert "fs:*" in told(ksi("tool", "permit", "agent:a", "--allow", "fs:*"))
    assert "fs:*" in told(ksi("tool", "permit", "agent:a"))


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("conversation lst", 2, "did you mean list"),
        ("conversation show nosuch", 4, "ksi conversation list"),
        ("conversation export x --format xml", 2, "json, markdown"),
        ("conversation import /nowhere", 2, "can't be read"),
        ("turn wait nosuch", 4, "no turn"),
        ("turn list --status runing", 2, "did you mean running"),
        ("tool describe nosuch", 4, "no tool"),
        ("tool call current_time {", 2, "no JSON object"),
        ("tool call current_time zone", 2, "key=value"),
        ("tool resolve x dne", 2, "done, redo or drop"),
        ("tool resolve x done", 4, "no call"),
        ("tool permit agnt:a", 2, "agent:NAME"),
        ("tool calls --status dne", 2, "did you mean done"),
        ("model list nosuch", 1, "no provider 'nosuch'"),
        ("model list opneai", 1, "did you mean openai"),
        ("usage --by modle", 2, "did you mean model"),
        ("usage --since yesterday", 2, "7d"),
        ("completion bsh", 2, "did you mean bash"),
    ],
)
def test_each_typo_is_told_with_the_next_step(
    ksi: KsiCommand, words: str, code: int, sentence: str
) -> None:
    done = ksi(*words.split())

    assert done.code == code, done.err
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_model_check_tells_why_and_what_to_do(ksi: KsiCommand) -> None:
    done = ksi("model", "check", "openai:gpt-5")
    as_json = ksi("model", "check", "openai:gpt-5", "--json")

    assert done.code == as_json.code == 5
    assert "OPENAI_API_KEY" in done.out
    assert as_json.json["ok"] is False


# -- completion ----------------------------------------------------------------------------------


def completed(ksi: KsiCommand, words: str) -> list[str]:
    """Return what bash would suggest."""
    environ = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return ksi(_KSI_COMPLETE="complete_bash", **environ).out.split()


def test_a_shell_is_told_commands_options_models_and_conversations(ksi: KsiCommand) -> None:
    made = asked(ksi, "hello")["conversation_id"]

    assert completed(ksi, "ksi conv") == ["conversation"]
    assert {"list", "export"} <= set(completed(ksi, "ksi conversation "))
    assert "--model" in completed(ksi, "ksi ask --mo")
    assert "builtin/extractive" in completed(ksi, "ksi ask --model buil")
    assert made in completed(ksi, "ksi conversation show ")
    assert completed(ksi, "ksi nosuch x") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_is_printed(ksi: KsiCommand, shell: str) -> None:
    done = ksi("completion", shell)

    assert done.code == 0
    assert "_KSI_COMPLETE" in done.out


def test_the_terminal_of_the_tests_notices_what_never_comes(
    ksi: KsiCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_cli.terminal.WAIT_S", 0.1)
    opened: Terminal
    with (
        terminal(ksi.line("chat"), ksi.environ) as opened,
        pytest.raises(AssertionError, match="never came"),
    ):
        opened.until("this is never said")
