import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ksi_cli.testing import KsiCommand, install_distribution
from ksi_daemon import process
from ksi_daemon.home import Home

WAIT_S = 20.0

SETTINGS_PLUGIN = '''
from msgspec import Struct
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.settings import Secret

class WeatherSettings(Struct, frozen=True, kw_only=True):
    """Its settings."""
    place: str = "Oslo"
    key: Secret = ""

@hookimpl
def ksi_plugin():
    return PluginInfo(settings=WeatherSettings)
'''


@pytest.fixture
def ksi(ksi_home: Path, tmp_path: Path) -> Iterator[KsiCommand]:
    environ = {"KSI_DAEMON_PLUGINS": "system,weather,rotten"}
    command = KsiCommand(ksi_home, tmp_path, environ)
    yield command
    process.stop(Home(ksi_home), timeout_s=0)


@pytest.fixture
def log(ksi: KsiCommand) -> Path:
    """A log with a hundred lines; no daemon is needed for it."""
    file = ksi.home / "log" / "daemon.log"
    file.parent.mkdir()
    file.write_text("".join(map(line, range(100))))
    return file


def line(number: int) -> str:
    return f'{{"time":"2026-01-01T00:00:00.000+00:00","level":"info","message":"line {number}"}}\n'


# -- config -------------------------------------------------------------------------------------


def test_config_tells_the_same_with_the_daemon_up_and_down(ksi: KsiCommand, tmp_path: Path) -> None:
    ksi.environ["PYTHONPATH"] = install_distribution(
        tmp_path / "site", "weather", SETTINGS_PLUGIN, {"ksi": {"weather": "weather"}}
    )
    ksi.environ["KSI_WEATHER_KEY"] = "hidden words"
    (ksi.home / "ksi.toml").write_text("[weather]\nplace = 'Bergen'\n")

    down = ksi("config", "--json")
    ksi("start")
    up = ksi("config", "--json")

    assert (down.json["source"], up.json["source"]) == ("files", "daemon")
    assert down.json["settings"] == up.json["settings"]
    assert "hidden words" not in down.out + up.out
    assert '"Bergen"' in ksi("config", "weather").out
    assert "$KSI_WEATHER_KEY" in ksi("config", "weather").out


def test_config_says_when_it_was_only_read_from_files(ksi: KsiCommand) -> None:
    told = ksi("config", "log")

    assert told.code == 0
    assert "not running" in told.err
    assert "log.level" in told.out
    assert "daemon." not in told.out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("[lgo]\n", "did you mean log?"), ("[log]\nlevl = 1\n", "did you mean level?"), ("=", "toml")],
)
def test_config_finds_what_is_wrong_before_a_start_does(
    ksi: KsiCommand, text: str, sentence: str
) -> None:
    (ksi.home / "ksi.toml").write_text(text)

    told = ksi("config")

    assert told.code == 1
    assert sentence in told.err


def test_config_names_the_nearest_section_with_the_daemon_up_and_down(ksi: KsiCommand) -> None:
    down = ksi("config", "lgo")
    ksi("start")
    up = ksi("config", "lgo")

    assert (down.code, down.err) == (up.code, up.err)
    assert down.err == "ksi: there is no section 'lgo'; did you mean log?\n"


def test_config_shows_the_rest_when_a_plugin_can_not_be_imported(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    path = install_distribution(tmp_path / "site", "rotten", "1 / 0", {"ksi": {"rotten": "rotten"}})

    told = ksi("config", PYTHONPATH=path)

    assert told.code == 0
    assert "rotten are unknown: ZeroDivisionError" in told.err
    assert "log.level" in told.out


# -- logs ---------------------------------------------------------------------------------------


def test_logs_shows_the_last_lines_with_the_daemon_down(ksi: KsiCommand, log: Path) -> None:
    assert ksi("logs").out.count("\n") == 50
    assert ksi("logs", "-n", "2").out.splitlines()[-1].endswith("INFO     line 99")
    assert ksi("logs", "--lines", "0").out == ""
    told = ksi("logs", "--lines", "1", "--json")
    assert told.json["message"] == "line 99"


def test_logs_says_when_there_are_none_yet(ksi: KsiCommand) -> None:
    told = ksi("logs")

    assert (told.code, told.out) == (0, "")
    assert "nothing has been logged yet" in told.err


def test_logs_shows_what_is_no_json_and_no_utf8_as_it_stands(ksi: KsiCommand, log: Path) -> None:
    log.write_bytes(b'12:00 plain \xff \x1b[31mred\n{"message": 1, "traceback": "a\\nb"}\n')

    assert ksi("logs").out.splitlines()[0] == "12:00 plain \ufffd \\x1b[31mred"
    lines = [msgspec.json.decode(each) for each in ksi("logs", "--json").out.splitlines()]
    assert lines[0] == {"message": "12:00 plain \ufffd \x1b[31mred"}
    assert lines[1]["traceback"] == "a\nb"


def test_logs_follows_a_file_that_is_written_rotated_and_made_anew(
    ksi: KsiCommand, log: Path
) -> None:
    follower = ksi.begin("logs", "-f", "-n", "1")
    assert follower.stdout is not None
    try:
        assert "line 99" in follower.stdout.readline()
        with log.open("a") as stream:
            stream.write(line(100)[:20])
            stream.flush()
            stream.write(line(100)[20:])
        assert "line 100" in follower.stdout.readline()
        with log.open("a") as stream:
            stream.write("a line that is never ended")
        log.rename(log.with_suffix(".log.1"))
        log.write_text(line(101))
        assert follower.stdout.readline().endswith("INFO     line 101\n")
        log.write_text("{}\n")
        assert follower.stdout.readline()
    finally:
        follower.terminate()
        follower.communicate(timeout=WAIT_S)


def test_logs_waits_for_a_log_that_is_not_there_yet(ksi: KsiCommand) -> None:
    follower = ksi.begin("logs", "-f")
    assert follower.stdout is not None
    try:
        ksi("start")
        assert any("ready" in line for line in follower.stdout)
    finally:
        follower.terminate()
        follower.communicate(timeout=WAIT_S)


# -- tokens -------------------------------------------------------------------------------------


def test_a_token_is_shown_once_listed_without_its_secret_and_ends_when_revoked(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    ksi("start")
    made = ksi("token", "create", "worker", "--call", "system:*", "--call", "a:b", "--ttl-s", "60")
    (tmp_path / "token").write_text(made.out)
    environ = {"KSI_TOKEN_FILE": str(tmp_path / "token")}

    assert made.code == 0, made.err
    assert made.out.count("\n") == 1
    assert ksi("events", **environ).code == 0
    listed = ksi("token", "list")
    assert "call system:* a:b" in listed.out
    assert made.out.strip().rpartition("_")[2] not in listed.out
    (token,) = ksi("token", "list", "--json").json["tokens"]
    assert ksi("token", "revoke", token["id"]).code == 0
    assert ksi("events", **environ).code == 5
    assert ksi("token", "revoke", token["id"]).code == 4
    assert "no token is valid" in ksi("token", "list").out

    server = ksi("token", "create", "server", "--scope", "*:read", "--impersonate")
    assert server.code == 0
    assert "scopes *:read, impersonate" in " ".join(ksi("token", "list").out.split())


# -- health and plugins -------------------------------------------------------------------------


def test_health_and_plugins_list_what_is_installed(ksi: KsiCommand) -> None:
    ksi("start")

    assert ksi("health").out.startswith("ok\n")
    assert ksi("health", "--json").json["health"] == "ok"
    assert "system" in ksi("plugins").out
    (system,) = (p for p in ksi("plugins", "--json").json["plugins"] if p["plugin"] == "system")
    assert system["state"] == "ready"


# -- service ------------------------------------------------------------------------------------


def test_a_unit_for_systemd_is_placed_once_and_removed(ksi: KsiCommand, tmp_path: Path) -> None:
    file = tmp_path / ".config" / "systemd" / "user" / "ksi.service"
    words = ["--for", "systemd"]

    assert ksi("service", "install", "--print", *words).code == 0
    assert not file.exists()
    installed, again = ksi("service", "install", *words), ksi("service", "install", *words)

    assert (installed.code, again.code) == (0, 0)
    assert "systemctl --user enable --now ksi" in installed.out
    assert "loginctl enable-linger" in installed.out
    assert "stands there already" in again.out
    assert file.read_text() == ksi("service", "install", "--print", *words).out
    assert ksi("service", "show", "--json", *words).json["installed"] == "yes"
    removed = ksi("service", "uninstall", "--json", *words).json
    assert (removed["done"], file.exists()) == ("removed", False)
    assert ksi("service", "uninstall", "--json", *words).json["done"] == "absent"


def test_the_unit_says_what_systemd_must_know(ksi: KsiCommand) -> None:
    environ = {"KSI_HOME": str(ksi.home / '50% "mine" \\ $HOME')}

    unit = ksi("service", "install", "--print", "--for", "systemd", **environ).out

    lines = dict(each.split("=", 1) for each in unit.splitlines() if "=" in each)
    assert (lines["Type"], lines["WatchdogSec"], lines["Restart"]) == ("notify", "30", "on-failure")
    assert shlex.split(lines["ExecStart"])[0] == sys.executable
    assert shlex.split(lines["ExecStart"])[-2:] == ["start", "--foreground"]
    # As systemd.syntax(7) has it: C escapes within quotes, and %% for a percent sign.
    assert lines["Environment"].endswith('/50%% \\"mine\\" \\\\ $HOME"')


def test_systemd_itself_finds_nothing_wrong_with_the_unit(ksi: KsiCommand, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed here")
    home = str(ksi.home / '50% "mine" $HOME')
    unit = ksi("service", "install", "--print", "--for", "systemd", KSI_HOME=home)
    (tmp_path / "ksi.service").write_text(unit.out)

    told = subprocess.run(
        [analyze, "--user", "verify", str(tmp_path / "ksi.service")],
        env={**ksi.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (told.returncode, told.stderr) == (0, "")


def test_a_unit_that_was_changed_is_not_replaced_without_force(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    file = tmp_path / "config" / "systemd" / "user" / "ksi.service"
    file.parent.mkdir(parents=True)
    file.write_text("mine\n")
    ksi.environ["XDG_CONFIG_HOME"] = str(tmp_path / "config")

    refused = ksi("service", "install", "--for", "systemd", "--json")
    kept = ksi("service", "uninstall", "--for", "systemd")

    assert (refused.code, refused.json["error"]["code"]) == (1, "conflict")
    assert (kept.code, file.read_text()) == (1, "mine\n")
    assert ksi("service", "install", "--for", "systemd", "--force").code == 0
    assert "Type=notify" in file.read_text()


def test_the_property_list_for_launchd_is_one(ksi: KsiCommand, tmp_path: Path) -> None:
    home = str(ksi.home / "R&D <1>")

    installed = ksi("service", "install", "--for", "launchd", KSI_HOME=home)

    file = tmp_path / "Library" / "LaunchAgents" / "ksi.plist"
    assert "launchctl bootstrap gui/" in installed.out
    content = plistlib.loads(file.read_bytes())
    assert content["EnvironmentVariables"] == {"KSI_HOME": home}
    assert content["ProgramArguments"][0] == sys.executable
    assert content["KeepAlive"] == {"SuccessfulExit": False}


def test_a_unit_that_can_not_be_written_is_told_in_one_sentence(ksi: KsiCommand) -> None:
    told = ksi("service", "install", "--for", "systemd", XDG_CONFIG_HOME="/dev/null")

    assert told.code == 1
    assert told.err.count("\n") == 1


def test_a_home_that_would_break_a_unit_is_refused(ksi: KsiCommand) -> None:
    told = ksi("service", "install", "--for", "systemd", KSI_HOME="/tmp/a\nExecStart=b")

    assert told.code == 1
    assert "unit file" in told.err
