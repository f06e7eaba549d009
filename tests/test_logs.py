"""The log: lines that bear their event, no more of them than anybody can read."""

import json
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_client import AsyncClient, LocalTransport
from ksi_daemon.event_system import acting_as, event_handler
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.logs import MAX_REMEMBERED, DaemonLogHandler, RepeatFilter, configured
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Context
from ksi_daemon.settings import LogSettings
from ksi_daemon.testing import module_plugin, read_log, running_daemon

Log = Callable[..., AbstractContextManager[logging.Handler]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "daemon.log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """Log to a file with some settings; what pytest had set up is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    path.parent.mkdir()

    def begin(**settings: Any) -> AbstractContextManager[logging.Handler]:
        return configured(LogSettings(**settings), path)

    yield begin
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_bears_the_plugin_whose_module_logs(log: Log, path: Path) -> None:
    with log(), configured(LogSettings(), path, packages=lambda: {"my_weather": "weather"}):
        logging.getLogger("my_weather.handlers.deep").info("it rains")
        logging.getLogger("my_weatherman").info("it rains")

    assert [line.get("plugin") for line in lines(path)] == ["weather", None]


async def test_a_daemon_knows_the_plugins_by_their_packages(ksi_home: Path) -> None:
    async with running_daemon(ksi_home):
        logging.getLogger("ksi_system.handlers").info("all is well")

    (line,) = [each for each in read_log(ksi_home) if each["message"] == "all is well"]
    assert line["plugin"] == "system"


def test_a_line_is_a_json_object_with_its_fields(log: Log, path: Path) -> None:
    with log():
        logging.getLogger("ksi.plugin.weather").warning("it rains", extra={"place": "Oslo"})

    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "ksi.plugin.weather",
        "message": "it rains",
        "place": "Oslo",
        "plugin": "weather",
    }


def test_a_line_bears_the_ids_of_the_event_that_is_handled(log: Log, path: Path) -> None:
    with log(), acting_as(Context("e1", conversation="c1", run="r1")):
        logging.getLogger("any").info("working")

    (line,) = lines(path)
    assert (line["event_id"], line["conversation"], line["run"]) == ("e1", "c1", "r1")


def test_pretty_lines_are_for_people(log: Log, path: Path) -> None:
    with log(format="pretty"):
        try:
            raise ValueError("a broken pipe")
        except ValueError:
            logging.getLogger("ksi.plugin.weather").exception("no report", extra={"place": "Oslo"})

    first, second, *_, last = path.read_text(encoding="utf-8").splitlines()
    assert first.endswith("ERROR    no report  place=Oslo plugin=weather")
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: a broken pipe"


def test_a_traceback_stays_within_its_line(log: Log, path: Path) -> None:
    with log():
        try:
            raise ValueError("x" * 200_000)
        except ValueError:
            logging.getLogger("any").exception("too much")

    (text,) = path.read_text(encoding="utf-8").splitlines()
    assert len(text) < 100_000
    assert json.loads(text)["message"] == "too much"


def test_a_long_message_is_cut_and_the_line_is_still_json(log: Log, path: Path) -> None:
    with log():
        logging.getLogger("any").info("y" * 200_000, extra={"more": "z" * 200_000})

    (text,) = path.read_text(encoding="utf-8").splitlines()
    assert len(text) < 100_000
    assert json.loads(text)["message"].startswith("yyy")


def test_a_field_that_has_no_json_form_is_shown_all_the_same(log: Log, path: Path) -> None:
    with log():
        logging.getLogger("any").info("odd", extra={"what": {1, 2}, "who": object, "how": b"\xff"})

    (line,) = lines(path)
    assert line["message"] == "odd"
    assert "object" in line["who"]


def test_an_unpaired_surrogate_does_not_cost_the_line(log: Log, path: Path) -> None:
    with log() as handler:
        logging.getLogger("any").info("odd \udcff", extra={"path": "\ud800"})
        logging.getLogger("any").info("next")

    assert isinstance(handler, DaemonLogHandler)
    assert handler.lost_lines == 0
    assert [line["message"].split()[0] for line in lines(path)] == ["odd", "next"]


def test_identical_errors_are_written_once_in_their_window(log: Log, path: Path) -> None:
    with log(repeat_window_s=600.0):
        for _ in range(100):
            logging.getLogger("any").error("the database is gone", extra={"plugin": "postgres"})

    assert [line["message"] for line in lines(path)] == ["the database is gone"]


def test_after_the_window_the_line_says_how_many_were_held_back(log: Log, path: Path) -> None:
    clock = iter([0.0, 1.0, 2.0, 61.0])

    with log(repeat_window_s=60.0) as handler:
        (repeats,) = [each for each in handler.filters if isinstance(each, RepeatFilter)]
        repeats.clock = lambda: next(clock)
        for _ in range(4):
            logging.getLogger("any").error("the database is gone")

    assert [line.get("repeated") for line in lines(path)] == [None, 2]


def test_errors_that_differ_are_all_written(log: Log, path: Path) -> None:
    with log(repeat_window_s=600.0):
        for plugin in ("a", "b"):
            logging.getLogger("any").error("it failed", extra={"plugin": plugin})
        for name in ("c", "d"):
            logging.getLogger("any").error("%s failed", name)

    assert len(lines(path)) == 4


def test_what_is_no_problem_may_repeat(log: Log, path: Path) -> None:
    with log(repeat_window_s=600.0):
        for _ in range(3):
            logging.getLogger("any").info("again")

    assert len(lines(path)) == 3


def test_the_filter_remembers_only_so_much(log: Log, path: Path) -> None:
    with log(repeat_window_s=600.0) as handler:
        for number in range(5000):
            logging.getLogger("any").error("it failed", extra={"why": str(number)})
        (repeats,) = [each for each in handler.filters if isinstance(each, RepeatFilter)]

    assert repeats.remembered <= MAX_REMEMBERED


def test_a_full_file_is_rotated_and_only_so_many_are_kept(log: Log, path: Path) -> None:
    with log(max_file_bytes=2000, kept_files=2):
        for number in range(100):
            logging.getLogger("any").info("line %d", number)

    assert {file.name for file in path.parent.iterdir()} == {
        "daemon.log",
        "daemon.log.1",
        "daemon.log.2",
    }
    assert all(file.stat().st_size <= 2000 for file in path.parent.iterdir())
    assert lines(path)[-1]["message"] == "line 99"


def test_python_s_warnings_go_to_the_log_each_of_them(log: Log, path: Path) -> None:
    with log(repeat_window_s=600.0), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
        warnings.warn("this is odd", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)

    assert ["old" in line["message"] for line in lines(path)] == [True, False]


needs_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="the system has no /dev/full"
)


@needs_full
def test_a_full_disk_costs_lines_that_are_counted_and_nothing_else(log: Log, path: Path) -> None:
    path.symlink_to("/dev/full")

    with log() as handler:
        logging.getLogger("any").info("lost")
        logging.getLogger("any").info("lost as well")

    assert isinstance(handler, DaemonLogHandler)
    assert handler.lost_lines == 2
    assert "No space left" in str(handler.last_error)


@needs_full
async def test_a_daemon_with_a_full_disk_answers_and_says_so_and_stops(ksi_home: Path) -> None:
    (ksi_home / "log").mkdir()
    (ksi_home / "log" / "daemon.log").symlink_to("/dev/full")

    async with running_daemon(ksi_home) as daemon, AsyncClient(LocalTransport(daemon)) as client:
        report = await client.request("system:health")
        stats = await client.request("system:stats")

    assert report["health"] == "degraded"
    assert any("log lines could not be written" in problem for problem in report["problems"])
    assert stats["lost_log_lines"] > 0


@event_handler("weather:get")
async def get_weather(data: Any) -> None:
    """Fail, as a test needs it."""
    raise ValueError("no report")


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    plugin.log.warning("it will rain")
    yield


async def test_a_failed_event_s_line_names_plugin_event_run_and_conversation(
    ksi_home: Path,
) -> None:
    plugin = module_plugin("weather", get=get_weather, ksi_lifespan=ksi_lifespan)
    async with (
        running_daemon(ksi_home, plugin) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        with pytest.raises(Exception, match="weather:get"):
            await client.request("weather:get", context={"run": "r1", "conversation": "c1"})

    line = next(line for line in read_log(ksi_home) if "traceback" in line)
    assert (line["plugin"], line["event"]) == ("weather", "weather:get")
    assert (line["run"], line["conversation"]) == ("r1", "c1")
    assert line["event_id"]
    assert "no report" in line["traceback"]
    own = next(line for line in read_log(ksi_home) if line["message"] == "it will rain")
    assert own["plugin"] == "weather"


def test_log_settings_have_bounds() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kept_files": 0}, LogSettings)
