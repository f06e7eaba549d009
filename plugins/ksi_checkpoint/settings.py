"""The settings of the checkpoints."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds


class CheckpointSettings(Struct, frozen=True, kw_only=True):
    """The section ``[checkpoint]``.

    Attributes:
        interval_s: How often a checkpoint is taken while the daemon runs, if anything has changed;
            0 is never.
        restore_at_start: Whether the newest checkpoint is applied when the daemon starts.
        daemon: Whose checkpoints they are, for a daemon whose home does not last, such as one in a
            pod; the id in ``<home>/checkpoint-id`` unless given.
        collect_timeout_s: How long a plugin may take to say what is to be saved.
        apply_timeout_s: How long a plugin may take to take its state back.
        save_timeout_s: How long Postgres may take to save a checkpoint.
        max_state_bytes: Size of one plugin's state, as JSON.
        max_checkpoint_bytes: Size of all states of a checkpoint.
        keep_count: How many checkpoints of a daemon are kept.
        keep_days: How long a checkpoint is kept; the newest of a daemon is kept for good.
        max_subscriptions: Durable subscriptions of one tenant.
    """

    interval_s: Seconds = 300.0
    restore_at_start: bool = True
    daemon: Annotated[str, Meta(max_length=200)] = ""
    collect_timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    apply_timeout_s: Annotated[float, Meta(gt=0)] = 5.0
    save_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    max_state_bytes: Positive = 1024 * 1024
    max_checkpoint_bytes: Positive = 16 * 1024 * 1024
    keep_count: Positive = 20
    keep_days: Annotated[float, Meta(gt=0, le=36500)] = 30.0
    max_subscriptions: Positive = 1000
