"""Logs: JSON or pretty lines that bear the event they belong to; bounded in size and repetition."""

import json
import logging
import logging.handlers
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from ksi_daemon.event_system import current_context
from ksi_daemon.settings import LogSettings

MAX_REMEMBERED: Final = 1000
PLUGIN_LOGGERS: Final = "ksi.plugin."
MAX_LINE_CHARACTERS: Final = 32_000
MAX_FIELD_REPR: Final = 1000  # of a field that is kept in a line which is too long
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "repeated",
    "taskName",
}


class ContextFilter(logging.Filter):
    """Adds the ids of the event that is being handled, and the plugin that logs, to every line.

    Args:
        packages: Gives the plugins by their top-level packages, so that a line of a logger that is
            named after its module bears its plugin's name.
    """

    def __init__(self, packages: Callable[[], dict[str, str]] = dict) -> None:
        super().__init__()
        self._packages = packages

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them; the line always passes."""
        context = current_context()
        if context is not None:
            for name, value in (
                ("event_id", context.id),
                ("conversation", context.conversation),
                ("run", context.run),
            ):
                if value is not None and not hasattr(record, name):
                    setattr(record, name, value)
        if not hasattr(record, "plugin"):
            plugin = self._plugin_of(record.name)
            if plugin is not None:
                record.plugin = plugin
        return True

    def _plugin_of(self, logger: str) -> str | None:
        if logger.startswith(PLUGIN_LOGGERS):
            return logger.removeprefix(PLUGIN_LOGGERS)
        return self._packages().get(logger.partition(".")[0])


class RepeatFilter(logging.Filter):
    """Lets an identical warning or error through once in a while, with a count of the rest."""

    def __init__(self, window_s: float) -> None:
        super().__init__()
        self.clock = time.monotonic
        self._window_s = window_s
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    @property
    def remembered(self) -> int:
        """How many different lines it knows."""
        return len(self._seen)

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the line is new."""
        if record.levelno < logging.WARNING or not self._window_s:
            return True
        fields = (getattr(record, name, None) for name in ("plugin", "event", "task", "why"))
        error = record.exc_info[0] if record.exc_info else None
        key = (record.name, record.levelno, record.getMessage(), error, *map(str, fields))
        now = self.clock()
        since, held_back = self._seen.get(key, (now - self._window_s, 0))
        if now - since < self._window_s:
            self._seen[key] = (since, held_back + 1)
            return False
        if held_back:
            record.repeated = held_back
        if len(self._seen) >= MAX_REMEMBERED:
            self._seen.clear()
        self._seen[key] = (now, 0)
        return True


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a line was given by ``extra``, and what the filters added."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if hasattr(record, "repeated"):
            line["repeated"] = record.repeated
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MAX_LINE_CHARACTERS:]
        text = _encode(line)
        if len(text) > 2 * MAX_LINE_CHARACTERS:
            kept = {name: line[name] for name in line if len(repr(line[name])) <= MAX_FIELD_REPR}
            message = line["message"][:MAX_LINE_CHARACTERS]
            text = _encode({**kept, "message": message, "cut_characters": len(text)})
        return text


def _encode(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=repr).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        # Half a surrogate pair from a file's name, a huge number, a key that is no string.
        texts = {n: v if isinstance(v, str) else repr(v) for n, v in line.items()}
        return json.dumps(texts)


class PrettyFormatter(logging.Formatter):
    """A line for people: time, level, message, fields, and a traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        line = f"{at} {record.levelname:<8} {record.getMessage()}  {fields}".rstrip()
        if hasattr(record, "repeated"):
            line += f"  (and {record.repeated} more like it)"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class DaemonLogHandler(logging.handlers.RotatingFileHandler):
    """Writes the daemon's log; a full disk costs lines, which are counted, and nothing else."""

    def __init__(self, path: Path, settings: LogSettings) -> None:
        super().__init__(
            path,
            maxBytes=settings.max_file_bytes,
            backupCount=settings.kept_files,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self.lost_lines = 0
        self.last_error: str | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        """Count a line that could not be written; the next one opens the file anew."""
        self.lost_lines += 1
        self.last_error = str(sys.exc_info()[1])
        self._let_go()

    def close(self) -> None:
        """Close the file, whether or not it can still be written."""
        self._let_go()
        super().close()

    def _let_go(self) -> None:
        stream: TextIO | None = self.stream
        self.stream = None
        if stream is not None:
            with suppress(OSError):
                stream.close()


@contextmanager
def configured(
    settings: LogSettings,
    path: Path | None,
    *,
    echo: bool = False,
    packages: Callable[[], dict[str, str]] = dict,
) -> Iterator[logging.Handler]:
    """Send all logging to a file for a while, then flush and close it.

    Args:
        settings: The section ``[log]``.
        path: The file; standard error where there is none.
        echo: Whether it goes to standard error as well, for whoever runs the daemon in the
            foreground: pretty on a terminal, else in the file's format.
        packages: Gives the plugins by their top-level packages.
    """
    handlers = [make_handler(settings, path)]
    if echo and path is not None:
        shown = "pretty" if sys.stderr.isatty() else settings.format
        handlers.append(make_handler(msgspec.structs.replace(settings, format=shown), None))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.setLevel(settings.level.upper())
    logging.captureWarnings(capture=True)
    for handler in handlers:
        handler.addFilter(ContextFilter(packages))
        handler.addFilter(RepeatFilter(settings.repeat_window_s))
        root.addHandler(handler)
    try:
        yield handlers[0]
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def make_handler(settings: LogSettings, path: Path | None) -> logging.Handler:
    """Make what writes lines to a file, or to standard error where there is no path."""
    handler: logging.Handler
    handler = logging.StreamHandler() if path is None else DaemonLogHandler(path, settings)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else PrettyFormatter())
    return handler
