"""Notices settings that are not what they were at the start before."""

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Context, Event, Outcome
from ksi_journal.events import SettingChange, SystemConfigured
from ksi_journal.recorder import Recorder

EVENT: Final = "system:configured"


class Configuration:
    """Compares the settings with those that a file in the home has of the start before.

    Secrets are masked in both: that one was changed is not seen.
    """

    def __init__(self, plugin: Plugin, recorder: Recorder) -> None:
        self._plugin = plugin
        self._recorder = recorder
        self._file = plugin.home / "journal" / "settings.json"

    def record_changes(self) -> None:
        """Record what has changed, first, and then keep what is."""
        values = self._plugin.daemon.settings.values()
        content = msgspec.json.encode({f"{v.section}.{v.key}": v.value for v in values})
        now: dict[str, Any] = msgspec.json.decode(content)  # in the form in which it is kept
        origins = {f"{v.section}.{v.key}": v.origin for v in values}
        before = self._before(now, origins)
        changes = tuple(
            SettingChange(
                setting=name,
                before=before.get(name),
                now=now.get(name),
                origin=origins.get(name, "gone"),
            )
            for name in sorted({*now, *before})
            if now.get(name) != before.get(name)
        )
        if not changes:
            return
        router = self._plugin.daemon.router
        context = Context(router.new_id(), None, "daemon")
        data = SystemConfigured(changes=changes)
        self._recorder.secure(Event(EVENT, data, context, Outcome(0.0)))
        write_private(self._file, content)

    def _before(self, now: dict[str, Any], origins: dict[str, str]) -> dict[str, Any]:
        """Return the settings of the start before; at the first one those that are defaults."""
        try:
            kept: dict[str, Any] = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            return {name: value for name, value in now.items() if origins[name] == "default"}
        except (OSError, msgspec.DecodeError):
            self._plugin.log.exception("the settings of the start before can't be read")
            return {}
        return kept


def write_private(file: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by its owner alone."""
    beside = file.with_suffix(".new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(handle)
    beside.replace(file)
