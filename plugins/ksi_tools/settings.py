"""The settings of the tools."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds
from ksi_tools.events import Effects

Limit = Annotated[float, Meta(gt=0, le=86_400)]


class EventTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event that agents may call as a tool.

    Attributes:
        event: Its name.
        effects: What a repetition would do: ``read_only``, ``idempotent`` or ``effectful``.
        description: What the model is told; the event's own documentation unless given.
        timeout_s: How long a call may take.
    """

    event: str
    effects: Effects = "effectful"
    description: str = ""
    timeout_s: Limit | None = None


class ToolsSettings(Struct, frozen=True, kw_only=True):
    """The section ``[tools]``.

    Attributes:
        timeout_s: How long a call may take, unless its tool says so itself.
        max_running: Calls that this daemon makes at once; what a tool calls itself does not count.
        max_waiting: Calls that wait for their turn; past it they are refused.
        max_arguments_bytes: Size of a call's arguments, as JSON.
        max_content_chars: How much of an output is handed over; the rest is kept by reference.
        max_output_bytes: How much of an output is kept at all.
        max_registered: Tools that connected clients of one tenant may have registered.
        progress_interval_s: How often one call may publish its progress.
        sweep_interval_s: How often is looked for calls that another daemon left when it died.
        keep_days: How long a call that has ended is kept, and its id with it; 0 is for ever. What
            is in doubt, or waits for a person, stays until somebody decides.
        stop_grace_s: How long calls may go on when the daemon stops.
        events: Events that are tools, by the tools' names.
    """

    timeout_s: Limit = 120.0
    max_running: Positive = 64
    max_waiting: Annotated[int, Meta(ge=0)] = 1000
    max_arguments_bytes: Positive = 1024 * 1024
    max_content_chars: Annotated[int, Meta(ge=200)] = 50_000
    max_output_bytes: Positive = 16 * 1024 * 1024
    max_registered: Positive = 1000
    progress_interval_s: Seconds = 0.2
    sweep_interval_s: Annotated[float, Meta(gt=0)] = 5.0
    keep_days: Annotated[float, Meta(ge=0, le=36_500)] = 90.0
    stop_grace_s: Seconds = 4.0
    events: dict[str, EventTool] = {}
