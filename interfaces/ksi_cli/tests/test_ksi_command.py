import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ksi_cli.bus_commands import read_payload, schema_lines
from ksi_cli.output import UsageError, clean, duration, table
from ksi_cli.testing import KsiCommand, install_distribution

WAIT_S = 20.0

COUNTER = '''
import asyncio
from ksi_daemon.event_system import event_handler

@event_handler("counter:count")
async def count(data):
    """Count up to a number, as a stream."""
    for number in range(data["to"]):
        yield {"number": number}

@event_handler("counter:wait")
async def wait(data):
    """Wait for ever."""
    await asyncio.Event().wait()
'''

COMMANDS = '''
import typer

def greet(name: str, loud: bool = False) -> None:
    """Greet somebody."""
    typer.echo(f"hello {name}".upper() if loud else f"hello {name}")

def explode() -> None:
    """Fail in a way that nobody has thought of."""
    raise ZeroDivisionError("by nought")
'''


@pytest.fixture(scope="module")
def ksi() -> Iterator[KsiCommand]:
    """A command whose daemon runs, with a plugin and commands of a third party."""
    with tempfile.TemporaryDirectory(prefix="ksi-cli-") as folder:
        site = install_distribution(
            Path(folder) / "site",
            "visitor",
            COUNTER + COMMANDS,
            {
                "ksi": {"counter": "visitor"},
                "ksi.commands": {
                    "greet": "visitor:greet",
                    "explode": "visitor:explode",
                    "stranded": "visitor.nowhere:command",
                    "status": "visitor:explode",
                },
            },
        )
        (Path(folder) / "home").mkdir()
        environ = {"PYTHONPATH": site, "KSI_DAEMON_PLUGINS": "system,counter"}
        command = KsiCommand(Path(folder) / "ksi", Path(folder) / "home", environ)
        started = command("start")
        assert started.code == 0, started.err
        yield command
        command("stop", "--timeout-s", "0")


@pytest.fixture
def lonely(ksi_home: Path, tmp_path: Path) -> KsiCommand:
    """A command without a daemon."""
    return KsiCommand(ksi_home, tmp_path)


def test_without_arguments_it_lists_the_commands_in_eighty_columns(ksi: KsiCommand) -> None:
    told = ksi()

    assert told.code == 0
    assert told.out == ksi("--help").out
    for name in ("start", "send", "listen", "events", "logs", "service", "greet"):
        assert f"\n  {name} " in told.out
    assert max(map(len, told.out.splitlines())) <= 80
    assert "\x1b" not in told.out


def test_the_summaries_of_our_commands_are_short_enough_for_their_list(lonely: KsiCommand) -> None:
    groups = ["service", "token", "model", "tool", "conversation", "turn", "agent"]
    groups += ["key", "orchestration", "pattern"]
    for words in ([], *([group, "--help"] for group in groups)):
        assert "..." not in lonely(*words).out.replace("[ARGS]...", "")


def test_a_command_that_can_not_be_imported_is_shown_so_and_spoils_nothing(ksi: KsiCommand) -> None:
    listed, called = ksi("--help"), ksi("stranded")

    assert "(can't be loaded" in listed.out
    assert called.code == 2
    assert "visitor.nowhere" in called.err


def test_plugins_add_commands_but_can_not_take_ours(ksi: KsiCommand) -> None:
    assert ksi("greet", "world").out == "hello world\n"
    assert ksi("greet", "world", "--loud").out == "HELLO WORLD\n"
    assert ksi("status").code == 0


def test_an_error_nobody_thought_of_is_a_sentence_and_no_traceback(ksi: KsiCommand) -> None:
    told, as_json = ksi("explode"), ksi("explode", "--json")

    assert told.code == 1
    assert told.err.startswith("ksi: ZeroDivisionError: by nought")
    assert told.err.count("\n") == 1
    assert as_json.code == 2  # it has no such option


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stauts"], "did you mean status"),
        (["status", "--jsno"], "--json"),
        (["status", "now"], "unexpected extra argument"),
        (["stop", "--timeout-s", "soon"], "--timeout-s"),
        (["logs", "--lines", "-1"], "--lines"),
        (["logs", "--lines", "x"], "'-n': it should be a valid integer; see: ksi logs --help"),
        (["logs", "--lins", "1"], "there is no option: --lins; did you mean --lines?"),
        (["send"], "EVENT"),
        (["send", "system:hello", "{"], "no JSON"),
        (["send", "system:hello", "word"], "key=value"),
        (["send", "system:hello", "=1"], "key=value"),
        (["listen", "--count", "0"], "--count"),
        (["token"], "missing command"),
        (["token", "crate"], "did you mean create?"),
        (["token", "create", "me"], "--call"),
        (["service", "instal"], "did you mean install or uninstall?"),
        (["service", "show", "--for", "cron"], "'--for': 'cron' is not one of 'systemd'"),
        (["--nonsense"], "there is no option"),
        (["logs", "-n"], "see: ksi logs --help"),
        (["token", "create", "me", "--ttl-s"], "see: ksi token create --help"),
        (["send", "a:b", "--timeout-s", "-1"], "it should be greater than or equal to 0;"),
        (["stop", "--timeout-s", "nan"], "it should be greater"),
    ],
)
def test_a_typing_mistake_is_told_in_one_sentence_with_exit_code_2(
    ksi: KsiCommand, words: list[str], sentence: str
) -> None:
    told, as_json = ksi(*words), ksi(*words, "--json")

    assert told.code == 2
    assert told.err.startswith("ksi: ")
    assert told.err.count("\n") == 1, told.err
    assert sentence.lower() in told.err.lower()
    assert told.out == ""
    if words != ["--nonsense"]:
        assert as_json.json["error"]["code"] == "usage"
    assert as_json.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["send", "system:hello"],
        ["listen"],
        ["events"],
        ["health"],
        ["plugins"],
        ["token", "list"],
        ["token", "create", "a", "--call", "x:y"],
        ["token", "revoke", "a"],
    ],
)
def test_without_a_daemon_the_exit_code_is_3_and_the_next_step_is_named(
    lonely: KsiCommand, words: list[str]
) -> None:
    told, as_json = lonely(*words), lonely(*words, "--json")

    assert (told.code, as_json.code) == (3, 3)
    assert "ksi start" in told.err
    assert told.err.count("\n") == 1
    assert as_json.json["error"]["code"] == "unavailable"
    assert as_json.err == ""


def test_send_takes_json_pairs_and_stdin(ksi: KsiCommand) -> None:
    event = "system:discover"
    answers = [
        ksi("send", event, '{"pattern": "counter:*"}', "--json"),
        ksi("send", event, "pattern=counter:*", "--json"),
        ksi("send", event, "-", "--json", stdin='{"pattern": "counter:*"}'),
    ]

    names = [[each["event"] for each in answer.json["events"]] for answer in answers]
    assert names == [["counter:count", "counter:wait"]] * 3


def test_send_prints_an_answer_for_people_unless_it_is_asked_for_json(ksi: KsiCommand) -> None:
    told = ksi("send", "system:hello").out

    assert msgspec.json.decode(told)["principal"] == "owner"
    assert told.count("\n") > 1


def test_send_prints_a_stream_line_by_line(ksi: KsiCommand) -> None:
    told = ksi("send", "counter:count", "to=3")

    assert (told.code, told.out) == (0, '{"number":0}\n{"number":1}\n{"number":2}\n')


def test_send_tells_the_daemons_error_with_the_nearest_name(ksi: KsiCommand) -> None:
    told, as_json = ksi("send", "system:helo"), ksi("send", "system:helo", "--json")

    assert told.code == as_json.code == 4
    assert "did you mean system:hello" in told.err
    assert as_json.json["error"]["code"] == "not_found"
    assert ksi("send", "no name").code == 4


def test_send_gives_up_after_its_time(ksi: KsiCommand) -> None:
    told = ksi("send", "counter:wait", "--timeout-s", "0.1", "--json")

    assert told.code == 7
    assert told.json["error"]["code"] == "timeout"


def listening(ksi: KsiCommand, *words: str) -> "subprocess.Popen[str]":
    """Begin to listen, and return once the daemon knows."""
    before = ksi("send", "system:stats", "--json").json["subscriptions"]
    listener = ksi.begin("listen", *words)
    for _ in range(200):
        if ksi("send", "system:stats", "--json").json["subscriptions"] > before:
            return listener
    raise AssertionError("it never listened")


def test_emit_is_seen_by_a_listener_and_wants_no_answer(ksi: KsiCommand) -> None:
    listener = listening(ksi, "counter:*", "--count", "1", "--json")

    emitted = ksi("send", "--emit", "counter:wait", "a=\x1b[31m")
    out, err = listener.communicate(timeout=WAIT_S)

    assert (emitted.code, emitted.out) == (0, "")
    assert (listener.returncode, err) == (0, "")
    event = msgspec.json.decode(out)
    assert (event["name"], event["data"]) == ("counter:wait", {"a": "\x1b[31m"})
    assert ksi("send", "--emit", "nothing:here").code == 4


def test_listen_shows_how_events_went(ksi: KsiCommand) -> None:
    listener = listening(ksi, "system:describe", "--outcomes", "--count", "1")

    ksi("send", "system:describe", "event=nothing:here")
    out, _ = listener.communicate(timeout=WAIT_S)

    assert "not_found: nothing answers 'nothing:here'" in out
    assert "(owner)" in out


def test_ctrl_c_ends_quietly_with_130(ksi: KsiCommand) -> None:
    listener = listening(ksi, "*")
    listener.send_signal(signal.SIGINT)

    assert listener.communicate(timeout=WAIT_S)[1] == ""
    assert listener.returncode == 130


@pytest.mark.parametrize("words", [["events"], ["send", "counter:count", "to=100000"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(ksi: KsiCommand, words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = ksi.begin(*words, stdout=write)
    os.close(write)

    assert command.communicate(timeout=WAIT_S)[1] == ""
    assert command.returncode != 0


def test_events_lists_a_namespace_or_describes_one(ksi: KsiCommand) -> None:
    listed, described = ksi("events", "counter"), ksi("events", "system:discover")

    assert "counter:count" in listed.out
    assert "(a stream)" in listed.out
    assert "system:" not in listed.out
    assert "pattern" in described.out
    assert 'default "*"' in described.out
    assert ksi("events", "system:discover", "--json").json["event"] == "system:discover"
    assert ksi("events", "sytem:discover").code == 4
    assert "no event matches" in ksi("events", "nothing:*").out


def test_a_command_acts_as_the_token_that_it_was_given(ksi: KsiCommand, tmp_path: Path) -> None:
    made = ksi("token", "create", "worker", "--call", "counter:*")
    (tmp_path / "token").write_text(made.out)
    environ = {"KSI_TOKEN_FILE": str(tmp_path / "token")}

    assert ksi("send", "system:hello", "--json", **environ).json["principal"] == "token:worker"
    assert ksi("send", "system:stats", "--json", **environ).json["error"]["code"] == "denied"
    missing = ksi("events", KSI_TOKEN_FILE="/dev/null/none")
    assert missing.code == 2
    assert missing.err.endswith(
        "the token's file, KSI_TOKEN_FILE, can't be read: Not a directory\n"
    )


def test_a_group_has_no_options_for_completion_which_would_be_that_of_ksi(ksi: KsiCommand) -> None:
    for group in ("service", "token"):
        assert "completion" not in ksi(group, "--help").out


def test_every_command_takes_json_and_says_so(ksi: KsiCommand) -> None:
    names = ["start", "stop", "restart", "status", "health", "logs", "plugins", "config"]
    names += ["send", "listen", "events"]
    groups = {"service": ["install", "uninstall", "show"], "token": ["create", "list", "revoke"]}
    commands = [[name] for name in names]
    commands += [[group, name] for group, members in groups.items() for name in members]

    for command in commands:
        assert "--json" in ksi(*command, "--help").out, command


def test_a_simple_command_imports_neither_asyncio_nor_pydantic(ksi: KsiCommand) -> None:
    script = (
        "import sys; sys.argv = ['ksi', 'status']\n"
        "from ksi_cli.main import main\n"
        "assert main(['status']) == 0\n"
        "slow = {'asyncio', 'pydantic', 'rich', 'ssl', 'ksi_daemon.daemon'} & set(sys.modules)\n"
        "sys.exit(f'imported: {slow}' if slow else 0)"
    )
    line = [ksi.line()[0], "-P", "-c", script]

    done = subprocess.run(line, env=ksi.environ, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_where_a_terminal_can_not_show_a_character_it_is_escaped(ksi: KsiCommand) -> None:
    told = ksi("send", "system:describe", "event=…", PYTHONIOENCODING="ascii")

    assert told.code == 4
    assert "\\u2026" in told.err


def test_the_version_is_told(ksi: KsiCommand) -> None:
    assert ksi("--version").out.startswith("ksi ")


def test_payloads_are_read_as_people_write_them() -> None:
    assert read_payload([]) == {}
    assert read_payload(["a=1", "b=word", "c=[1]", 'd="2"', "e=x=y", "f="]) == {
        "a": 1,
        "b": "word",
        "c": [1],
        "d": "2",
        "e": "x=y",
        "f": "",
    }
    with pytest.raises(UsageError, match="key=value"):
        read_payload(["{}", "a=1"])


def test_text_can_not_steer_a_terminal() -> None:
    assert clean("a\x1b[2Jb\rc\td\n") == "a\\x1b[2Jb\\x0dc\td\n"


def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    lines = table(("A", "B"), [("first", "word " * 20), ("second", "")]).splitlines()

    assert max(map(len, lines)) <= 40
    assert lines[0] == "A       B"
    assert lines[2].startswith("        word")
    assert lines[-1] == "second"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (90000, "1 d 1 h")],
)
def test_durations_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_schemas_are_laid_out_by_field() -> None:
    schema = {
        "$ref": "#/$defs/A",
        "$defs": {
            "A": {
                "title": "A",
                "type": "object",
                "properties": {
                    "kind": {"enum": ["x", "y"]},
                    "many": {"type": "array", "items": {"$ref": "#/$defs/B"}, "default": []},
                    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                },
                "required": ["kind"],
            },
            "B": {"title": "B", "type": "object"},
        },
    }

    assert schema_lines("payload", schema) == [
        "payload:",
        '  kind   "x" or "y"      required',
        "  many   array of B      default []",
        "  maybe  string or null",
        "",
    ]
    assert schema_lines("answer", None) == ["answer: plain data", ""]


def test_a_full_disk_under_the_answer_is_told(ksi: KsiCommand) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = ksi.begin("events", stdout=full)
        _, err = command.communicate(timeout=WAIT_S)

    assert command.returncode == 1
    assert "No space left" in err
