"""Holds the fields of a document to what a definition may say, and names each that does not fit."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ksi_agents.definition import Definition, Probe, Restart, Wake
from ksi_agents.events import NAME_PATTERN
from ksi_daemon.fields import Fault, Fields, first_line, why_no_schema
from ksi_daemon.protocol import InvalidData
from ksi_daemon.yaml_text import Path
from ksi_workflows.api import next_time

__all__ = ["faults_of"]

MAX_FAULTS: Final = 100

_NAME: Final = (
    "a name is made of small letters, digits, '.', '-' and '_', 63 at most, and begins and ends "
    "with a letter or digit"
)
_FIELDS: Final = Fields(Definition, "definition", {NAME_PATTERN: _NAME})


def faults_of(given: dict[str, Any]) -> list[Fault]:
    """Return what is wrong with the fields of a definition; none where they are sound."""
    faults = _FIELDS.faults(given)
    return (faults or list(_unsound(msgspec.convert(given, Definition))))[:MAX_FAULTS]


def _unsound(definition: Definition) -> Iterator[Fault]:
    """Yield what fits by its type, and makes no sense."""
    if definition.extends == definition.name:
        yield Fault(("extends",), "it can't extend itself")
    for name in ("input", "output"):
        schema: dict[str, Any] | None = getattr(definition, name)
        why = "" if schema is None else why_no_schema(schema)
        if why:
            yield Fault((name,), why)
    yield from _unsound_restart(definition.restart)
    for place, wake in enumerate(definition.schedule):
        yield from _unsound_wake(wake, ("schedule", place))
    for place, probe in enumerate(definition.probes):
        yield from _unsound_probe(probe, ("probes", place))


def _unsound_restart(restart: Restart) -> Iterator[Fault]:
    if restart.max_delay_s < restart.delay_s:
        yield Fault(("restart",), "max_delay_s is shorter than delay_s")


def _unsound_wake(wake: Wake, path: Path) -> Iterator[Fault]:
    if (wake.cron is None) == (wake.event is None):
        yield Fault(path, "it has either a cron or an event")
    elif wake.cron is not None:
        try:
            next_time(wake.cron, wake.timezone, datetime.now(UTC))
        except InvalidData as error:
            is_zone = "time zone" in error.message
            yield Fault((*path, "timezone" if is_zone else "cron"), first_line(error.message))


def _unsound_probe(probe: Probe, path: Path) -> Iterator[Fault]:
    for name in ("prompt", "expect"):
        is_there = getattr(probe, name) is not None
        if probe.kind == "custom" and not is_there:
            yield Fault(path, f"a custom probe needs its own {name}")
        elif probe.kind != "custom" and is_there:
            yield Fault((*path, name), f"a probe of kind {probe.kind} has no {name} of its own")
