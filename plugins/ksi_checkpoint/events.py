"""The payloads of ``checkpoint:*`` and ``subscription:*``."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_daemon.protocol import ErrorBody
from ksi_journal.events import JournalRecord

CheckpointId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Reason = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00]*\Z")]
SubscriptionName = Annotated[str, Meta(max_length=200, pattern=r"^[A-Za-z0-9_.:-]+\Z")]
Position = Annotated[int, Meta(ge=0, le=2**63 - 1)]


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


# -- durable subscriptions -----------------------------------------------------------------------


class SubscriptionCreate(Struct, frozen=True, kw_only=True):
    """Have events kept for a reader until it acknowledges them.

    A subscription of that name which is there already goes on where it was, if it wants the same.

    Attributes:
        name: Which the reader gives whenever it comes.
        pattern: A glob over events' names, all of which the journal records.
        after: From where on: ``now``, ``start`` (as far back as the journal is whole), or a
            position of the journal.
    """

    name: SubscriptionName
    pattern: str
    after: Literal["now", "start"] | Position = "now"


class SubscriptionCreated(Struct, frozen=True, kw_only=True):
    """The subscription, and the position that it comes after."""

    name: str
    pattern: str
    position: int


class SubscriptionDelete(Struct, frozen=True, kw_only=True):
    """End a subscription."""

    name: SubscriptionName


class SubscriptionDeleted(Struct, frozen=True, kw_only=True):
    """The subscription that is no more."""

    name: str


class SubscriptionList(Struct, frozen=True, kw_only=True):
    """List the tenant's durable subscriptions that the sender may read."""


class SubscriptionGap(Struct, frozen=True, kw_only=True):
    """Positions whose events may be missing, since the journal's retention has dropped some.

    It is told until something after it was acknowledged. The positions are those of all tenants:
    how many of the events were wanted is not known any more.
    """

    after: int
    through: int


class SubscriptionSummary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A subscription.

    Attributes:
        name: Of it.
        pattern: Which events it wants.
        position: What comes up to there was acknowledged, or was not wanted.
        behind: How many positions the journal has after that, wanted or not.
        created_at: When.
        acknowledged_at: When something was acknowledged last.
        user: Whose events it is limited to, as are the next three.
        agent: Of which agent.
        conversation: Of which conversation.
        run: Of which run.
        gap: What the journal may have dropped before it was acknowledged.
    """

    name: str
    pattern: str
    position: int
    behind: int
    created_at: datetime
    acknowledged_at: datetime | None = None
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    gap: SubscriptionGap | None = None


class SubscriptionListed(Struct, frozen=True, kw_only=True):
    """The subscriptions, by name."""

    subscriptions: tuple[SubscriptionSummary, ...]


class SubscriptionRead(Struct, frozen=True, kw_only=True):
    """Read what comes next and was not acknowledged, again and again the same until it is.

    Attributes:
        name: The subscription's.
        limit: How many events at most; fewer come where they are large.
        wait_s: How long to wait for the first one.
    """

    name: SubscriptionName
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 0.0


class SubscriptionEvents(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events in the order of the journal; none where none came in time.

    Acknowledge ``position`` when all of them are done with, or an event's own when those up to it
    are. With a ``gap`` some before them may be missing.
    """

    events: tuple[JournalRecord, ...]
    position: int
    gap: SubscriptionGap | None = None


class SubscriptionAck(Struct, frozen=True, kw_only=True):
    """Say that all up to a position is done with, and need not come again."""

    name: SubscriptionName
    position: Position


class SubscriptionAcked(Struct, frozen=True, kw_only=True):
    """Where the subscription stands now; an acknowledgement never takes it back."""

    name: str
    position: int
