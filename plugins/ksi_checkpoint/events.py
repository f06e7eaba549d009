"""The payloads of ``checkpoint:*``."""

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

from ksi_daemon.protocol import ErrorBody

CheckpointId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Reason = Annotated[str, Meta(max_length=200)]


class CheckpointCollect(Struct, frozen=True, kw_only=True):
    """Sent to contributors to ``checkpoint:collect``: say what is to be saved of you.

    The answer has two fields, a ``version`` (a whole number) and a ``state`` (anything that JSON
    can hold); or it is nothing, where there is nothing to save. Make it a Struct of your own, which
    ``checkpoint:apply`` takes, too.
    """


class PluginProblem(Struct, frozen=True, kw_only=True):
    """Why the state of a plugin was not saved, or not given back; the others' was."""

    plugin: str
    error: ErrorBody


class PluginState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a checkpoint holds of a plugin.

    ``from_checkpoint`` is set where an earlier checkpoint's state took the place of one that was
    damaged or had not been saved.
    """

    plugin: str
    version: int
    size_bytes: int
    from_checkpoint: int | None = None


class CheckpointCreate(Struct, frozen=True, kw_only=True):
    """Take a checkpoint now; ``reason`` is for people."""

    reason: Reason = ""


class CheckpointCreated(Struct, frozen=True, kw_only=True):
    """The checkpoint, whose states were saved, and whose were not."""

    id: int
    taken_at: datetime
    reason: str
    plugins: tuple[PluginState, ...]
    problems: tuple[PluginProblem, ...] = ()


class CheckpointList(Struct, frozen=True, kw_only=True):
    """List the checkpoints of this daemon, or of all that use its Postgres; the newest first."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    all_daemons: bool = False


class CheckpointSummary(Struct, frozen=True, kw_only=True):
    """A checkpoint: how many plugins' states it holds, and how many could not be saved."""

    id: int
    daemon: str
    reason: str
    taken_at: datetime
    plugins: int
    problems: int
    size_bytes: int


class CheckpointListed(Struct, frozen=True, kw_only=True):
    """Checkpoints, the newest first; ``daemon`` is this one's id."""

    daemon: str
    checkpoints: tuple[CheckpointSummary, ...]


class CheckpointShow(Struct, frozen=True, kw_only=True):
    """Show what a checkpoint holds, and with ``plugin`` that plugin's state itself."""

    id: CheckpointId
    plugin: str | None = None


class CheckpointShown(Struct, frozen=True, kw_only=True):
    """A checkpoint; ``state`` is that of the plugin that was asked for."""

    id: int
    daemon: str
    reason: str
    taken_at: datetime
    plugins: tuple[PluginState, ...]
    problems: tuple[PluginProblem, ...]
    state: Any = None


class CheckpointRestore(Struct, frozen=True, kw_only=True):
    """Give plugins back what a checkpoint holds of them.

    The newest of this daemon's unless ``id`` names one, and all plugins in it unless ``plugins``
    names some.
    """

    id: CheckpointId | None = None
    plugins: tuple[str, ...] | None = None


class CheckpointRestored(Struct, frozen=True, kw_only=True):
    """Who took their state back, and who did not."""

    id: int
    taken_at: datetime
    plugins: tuple[PluginState, ...]
    problems: tuple[PluginProblem, ...] = ()


class CheckpointDelete(Struct, frozen=True, kw_only=True):
    """Delete a checkpoint."""

    id: CheckpointId


class CheckpointDeleted(Struct, frozen=True, kw_only=True):
    """The checkpoint that is no more."""

    id: int


class CheckpointAcknowledge(Struct, frozen=True, kw_only=True):
    """Say that the problems with checkpoints were seen, so that health is good again."""


class CheckpointAcknowledged(Struct, frozen=True, kw_only=True):
    """The problems that were seen, as sentences."""

    problems: tuple[str, ...]
