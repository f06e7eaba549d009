"""Settings: defaults < ``ksi.toml`` < ``KSI_*`` < arguments, into frozen Structs."""

import logging
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeGuard,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta, Struct

from ksi_daemon.protocol import InvalidData
from ksi_daemon.protocol.names import did_you_mean

log = logging.getLogger(__name__)

Section = TypeVar("Section", bound=Struct)
MASK: Final = "********"

# What the process is told by its parent, and is no setting.
RESERVED_VARIABLES: Final = frozenset(
    {"KSI_HOME", "KSI_SOCKET", "KSI_READY_FD", "KSI_TOKEN_FD", "KSI_TOKEN_FILE"}
)

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]

Secret = Annotated[str, Meta(extra={"secret": True})]
"""A string that is masked wherever settings are shown."""


def variable(name: str) -> Meta:
    """Give a setting an environment variable of its own, in place of ``KSI_<SECTION>_<KEY>``."""
    return Meta(extra={"variable": name})


class DaemonSettings(Struct, frozen=True, kw_only=True):
    """The section ``[daemon]``.

    Attributes:
        plugins: Globs of the plugins that may be loaded; all that are installed unless set.
        essential: Names of plugins without which the daemon must not run, whatever they say of
            themselves: also one that is not installed, or can't be imported, ends it then.
        request_timeout_s: How long an answer may take unless its handler says so; 0 is for ever.
        contributor_timeout_s: How long one of many contributors may take.
        start_timeout_s: How long a plugin's start may take before it counts as failed.
        shutdown_grace_s: What running requests get to finish at a shutdown.
        stop_timeout_s: How long a plugin's own stop may take.
        stall_warning_s: After how long a blocked loop is reported with its stack; 0 is never.
        max_connections: Connections at once.
        max_subscriptions: Subscriptions, and served events, of one connection.
        max_in_flight: Requests of one connection at once.
        max_frame_bytes: One line in either direction.
        max_buffer_bytes: What may wait for a slow reader before its streams pause.
        stream_window_chunks: Chunks that may wait for a slow reader of one stream.
        reader_timeout_s: How long a connection may read nothing of what waits for it.
        observer_queue_events: Events that may wait for one observer before it misses some.
        host_ping_interval_s: How often a plugin host is asked whether it is alive.
        host_ping_timeout_s: How long it may take to answer before it is killed and restarted.
    """

    plugins: tuple[str, ...] = ("*",)
    essential: tuple[str, ...] = ()
    request_timeout_s: Seconds = 300.0
    contributor_timeout_s: Seconds = 5.0
    start_timeout_s: Seconds = 120.0
    shutdown_grace_s: Seconds = 10.0
    stop_timeout_s: Seconds = 10.0
    stall_warning_s: Seconds = 1.0
    max_connections: Positive = 5000
    max_subscriptions: Positive = 1000
    max_in_flight: Positive = 512
    max_frame_bytes: Annotated[int, Meta(ge=1024)] = 4 * 1024 * 1024
    max_buffer_bytes: Positive = 1024 * 1024
    stream_window_chunks: Positive = 256
    reader_timeout_s: Seconds = 60.0
    observer_queue_events: Positive = 10_000
    host_ping_interval_s: Seconds = 2.0
    host_ping_timeout_s: Seconds = 10.0


LogLevel = Literal["debug", "info", "warning", "error", "critical"]


class LogSettings(Struct, frozen=True, kw_only=True):
    """The section ``[log]``.

    Attributes:
        level: The least severe level that is written.
        format: ``json`` for machines, ``pretty`` for people.
        max_file_bytes: When ``log/daemon.log`` is rotated; 0 is never.
        kept_files: How many rotated files are kept.
        repeat_window_s: Identical warnings and errors are written once in this time; 0 is always.
    """

    level: LogLevel = "info"
    format: Literal["json", "pretty"] = "json"
    max_file_bytes: int = 10 * 1024 * 1024
    kept_files: Annotated[int, Meta(ge=1)] = 5
    repeat_window_s: float = 60.0


class CommonSettings(Struct, frozen=True, kw_only=True):
    """What the section of every plugin may have besides the plugin's own settings.

    Attributes:
        isolate: Whether the plugin runs in a process of its own.
        environment: Names of variables that its process gets; it gets no secrets otherwise.
    """

    isolate: bool = False
    environment: tuple[str, ...] = ()


class Value(Struct, frozen=True):
    """One setting as it stands, and where it came from; secrets are masked."""

    section: str
    key: str
    value: Any
    origin: str


class Layers(Struct, frozen=True, kw_only=True):
    """What was set for one section and where, as its plugin's host is told."""

    table: dict[str, Any]
    variables: dict[str, str]
    arguments: tuple[str, ...]


class Settings:
    """The layers of raw values, and the sections that were made of them.

    Args:
        home: The directory whose ``ksi.toml`` is read, if there is one.
        arguments: ``section.key=value`` strings, which win over everything.
        environ: The environment.
        tables: What the file holds, where it need not be read again.

    Raises:
        InvalidData: The file is no TOML, or an argument has not that form.
    """

    def __init__(
        self,
        home: Path,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
        tables: dict[str, Any] | None = None,
    ) -> None:
        self.home = home
        self.file = home / "ksi.toml"
        self._environ = {name: text for name, text in environ.items() if name.startswith("KSI_")}
        self._file = _read_toml(self.file) if tables is None else tables
        self._arguments = dict(_split_argument(argument) for argument in arguments)
        self._values: dict[tuple[str, str], Value] = {}
        self._keys: dict[str, set[str]] = {}

    def section(self, name: str, kind: type[Section]) -> Section:
        """Make the Struct of a section.

        Raises:
            InvalidData: A key is unknown (the nearest is named), or a value is of the wrong type.
        """
        hints = get_type_hints(kind, include_extras=True)
        self._keys.setdefault(name, set()).update(hints)
        taken: dict[str, Any] = {}
        for key, hint in hints.items():
            origin, raw = self._look_up(name, key, hint)
            if origin is not None:
                taken[key] = self._convert(raw, hint, f"{origin}: {name}.{key}")
        made = kind(**taken)
        for key, hint in hints.items():
            origin, _ = self._look_up(name, key, hint)
            shown = _masked(getattr(made, key), hint)
            self._values[name, key] = Value(name, key, shown, origin or "default")
        return made

    def check(self, sections: Iterable[str], *, unread: Iterable[str] = ()) -> None:
        """Refuse sections, keys and variables that nobody knows.

        Args:
            sections: Every section that was read.
            unread: Sections of plugins that could not be loaded, whose keys can't be judged.

        Raises:
            InvalidData: One is unknown; the nearest known one is named.
        """
        known, skipped = list(sections), list(unread)
        for name, table in self._file.items():
            if name not in (*known, *skipped):
                hint = did_you_mean(name, known)
                raise InvalidData(f"{self.file}: there is no section [{name}]{hint}")
            if not isinstance(table, dict):
                raise InvalidData(
                    f"{self.file}: {name} is a section: write [{name}] above its keys"
                )
            if name in known:
                for key in table:
                    self._check_key(str(self.file), name, key)
        for name, key in self._arguments:
            if name not in (*known, *skipped):
                raise InvalidData(f"--set: there is no section {name!r}{did_you_mean(name, known)}")
            if name in known:
                self._check_key("--set", name, key)
        self._check_variables(known, skipped)

    def _check_variables(self, known: list[str], skipped: list[str]) -> None:
        own = {value.origin.partition("$")[2] for value in self._values.values()}
        for name in self._environ.keys() - RESERVED_VARIABLES - own:
            lowered = name.removeprefix("KSI_").lower()
            owners = [s for s in (*known, *skipped) if lowered.startswith(f"{s}_")]
            owner = max(owners, key=len, default=None)
            if owner in known and owner is not None:
                self._check_key(f"${name}", owner, lowered.removeprefix(f"{owner}_"))
            elif owner is None:
                log.warning("a variable names no setting", extra={"variable": name})

    def _check_key(self, where: str, section: str, key: str) -> None:
        keys = self._keys.get(section, set())
        if key not in keys:
            hint = did_you_mean(key, keys)
            raise InvalidData(f"{where}: [{section}] has no key {key!r}{hint}")

    def values(self) -> list[Value]:
        """List every setting that was read, with its origin."""
        return sorted(self._values.values(), key=lambda value: (value.section, value.key))

    def take(self, section: str, values: Iterable[Value]) -> None:
        """Take note of a section's values that a plugin's host has made."""
        self._values.update({(section, value.key): value for value in values})

    def layers_of(self, name: str) -> Layers:
        """Return what was set for a section, as it was set."""
        prefix = f"KSI_{name}_".upper()
        return Layers(
            table=self._file.get(name, {}),
            variables={n: text for n, text in self._environ.items() if n.startswith(prefix)},
            arguments=tuple(
                f"{section}.{key}={text}"
                for (section, key), text in self._arguments.items()
                if section == name
            ),
        )

    def _look_up(self, section: str, key: str, hint: Any) -> tuple[str | None, Any]:
        if (section, key) in self._arguments:
            return "--set", self._arguments[section, key]
        name = _extra(hint, "variable") or f"KSI_{section}_{key}".upper()
        if name in self._environ:
            return f"${name}", self._environ[name]
        table = self._file.get(section, {})
        if isinstance(table, dict) and key in table:
            return str(self.file), table[key]
        return None, None

    def _convert(self, raw: Any, hint: Any, where: str) -> Any:
        try:
            if isinstance(raw, str):
                raw = _parse_text(raw, hint)
            return msgspec.convert(raw, hint, strict=False)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            shown = "" if _holds_secrets(hint) else f" (it is {raw!r})"
            if get_origin(hint) is Literal:
                shown += f"; take one of {', '.join(map(repr, get_args(hint)))}"
            raise InvalidData(f"{where}: {error}{shown}") from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"{file} can't be read: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidData(f"{file}: {error}") from error


def _split_argument(argument: str) -> tuple[tuple[str, str], str]:
    path, equals, text = argument.partition("=")
    section, dot, key = path.partition(".")
    if not (equals and dot and section and key):
        raise InvalidData(f"--set takes section.key=value, not {argument!r}")
    return (section, key), text


def _parse_text(text: str, hint: Any) -> Any:
    """Read a value that came as text: JSON for tables and lists, or a list with commas."""
    bare = _bare(hint)
    if get_origin(bare) in (list, tuple, set, frozenset, dict) or bare in (list, tuple, dict):
        if text.lstrip().startswith(("[", "{")):
            return msgspec.json.decode(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_struct(kind: Any) -> TypeGuard[type[Struct]]:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _masked(value: Any, hint: Any) -> Any:
    """Return a value as plain data in which secrets are masked, those within tables too."""
    kind = _bare(hint)
    if _extra(hint, "secret"):
        return MASK if value else value
    if _is_struct(kind):
        hints = get_type_hints(kind, include_extras=True)
        return {key: _masked(getattr(value, key), within) for key, within in hints.items()}
    if get_origin(kind) is dict:
        return {key: _masked(each, get_args(kind)[1]) for key, each in value.items()}
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
        return [_masked(each, get_args(kind)[0]) for each in value]
    return msgspec.to_builtins(value)


def _holds_secrets(hint: Any) -> bool:
    kind = _bare(hint)
    if _is_struct(kind):
        return any(map(_holds_secrets, get_type_hints(kind, include_extras=True).values()))
    return bool(_extra(hint, "secret")) or any(map(_holds_secrets, get_args(kind)))


def _extra(hint: Any, key: str) -> Any:
    for meta in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        if isinstance(meta, Meta) and meta.extra and key in meta.extra:
            return meta.extra[key]
    return None
