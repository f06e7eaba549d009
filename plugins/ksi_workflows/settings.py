"""The settings of the durable engine."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive


class WorkflowsSettings(Struct, frozen=True, kw_only=True):
    """The section ``[workflows]``.

    Attributes:
        takeover_after_s: How long after a daemon's death another has taken over its runs at most.
        max_recovery_attempts: How often a run is begun again after its worker died, without having
            got any further, before it is set aside.
        max_running: Runs that this daemon executes at once; what is started past it is queued.
        max_args_bytes: Size of a run's arguments; they are ids, hashes and small facts.
        max_output_bytes: Size of what a step or a run returns, or a signal carries.
        max_waiting_signals: Signals that wait for one run.
        queue_poll_s: How often a queue is looked at, unless it says so itself.
        engine_connections: Connections to Postgres that the engine has besides the pool.
        engine_threads: Threads in which the engine talks to Postgres.
        step_threads: Threads in which steps run that are plain functions.
        keep_ended_days: How long a run that has finished, failed or was cancelled is kept with its
            steps; 0 is for ever. What was set aside stays until somebody decides.
        stop_grace_s: How long steps may go on when the daemon stops, and no longer than four
            fifths of `daemon.contributor_timeout_s`; later steps wait for its next start.
    """

    takeover_after_s: Annotated[float, Meta(ge=1)] = 30.0
    max_recovery_attempts: Annotated[int, Meta(ge=0)] = 3
    max_running: Positive = 200
    max_args_bytes: Positive = 65_536
    max_output_bytes: Positive = 65_536
    max_waiting_signals: Positive = 1000
    queue_poll_s: Annotated[float, Meta(gt=0)] = 1.0
    engine_connections: Annotated[int, Meta(ge=4)] = 8
    engine_threads: Annotated[int, Meta(ge=4)] = 16
    step_threads: Positive = 16
    keep_ended_days: Annotated[float, Meta(ge=0)] = 30.0
    stop_grace_s: Annotated[float, Meta(ge=0)] = 4.0
