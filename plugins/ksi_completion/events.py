"""The payloads of ``completion:*`` and ``conversation:*``."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_daemon.protocol.wire import ErrorBody
from ksi_models.events import Message, ModelSettings, Part, Role, ToolSchema, Usage

ConversationId = Annotated[str, Meta(pattern=r"^[^\s\x00-\x1f]{1,200}\Z")]
RunId = Annotated[str, Meta(min_length=1, max_length=200)]
ConversationKind = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,39}\Z")]
RequestKey = Annotated[str, Meta(min_length=1, max_length=200)]
Prompt = Annotated[str, Meta(min_length=1, max_length=2_000_000)]
Text = Annotated[str, Meta(max_length=2_000_000)]
Globs = tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...]
Wait = Annotated[float, Meta(ge=0, le=3600)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
ClientTools = Annotated[tuple[ToolSchema, ...], Meta(max_length=128)]
TurnStatus = Literal["waiting", "running", "paused", "succeeded", "failed", "cancelled"]


# -- turns --------------------------------------------------------------------------------------


class CompletionAsync(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Have a turn in a conversation; once this is answered, the turn outlives the daemon.

    Give a ``prompt``, or ``messages`` (the last of them the user's). Without a ``conversation_id``
    a conversation is made. Turns of one conversation run one at a time, in the order in which they
    were accepted; ``priority`` counts among those that wait for a model's slot, 1 first. ``tools``
    are globs that narrow what the conversation may call. With a ``request_id`` asking twice is
    asking once. ``client_tools`` are what the program at the other end can do: a call of one waits
    until ``tool:answer`` tells what came of it. ``system``, ``model``, ``agent`` and ``settings``
    hold for this turn, and for the conversation where it is made; ``instructions`` are told after
    the system prompt, whosever that is, in this turn alone. With an ``output_schema``, a JSON
    Schema, the answer is JSON that fits it.
    """

    prompt: Prompt | None = None
    messages: tuple[Message, ...] = ()
    model: str | None = None
    conversation_id: ConversationId | None = None
    agent: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    system: Text | None = None
    instructions: Text | None = None
    tools: Globs | None = None
    settings: ModelSettings | None = None
    output_schema: dict[str, Any] | None = None
    client_tools: ClientTools = ()
    priority: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=604_800)] | None = None
    request_id: RequestKey | None = None


class CompletionAccepted(Struct, frozen=True, kw_only=True):
    """The turn is recorded; ``turn`` is its number in the conversation."""

    request_id: str
    run_id: str
    conversation_id: str
    turn: int
    status: TurnStatus


class CompletionStream(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Follow a turn: one that is accepted with ``run_id``, or a new one as ``completion:async``.

    The stream begins at ``offset``, whatever daemon runs the turn and whether it still runs.
    ``attempt`` is that of the last chunk that came before: where something of it is void since, a
    chunk says so first.
    """

    run_id: RunId | None = None
    offset: Annotated[int, Meta(ge=0)] = 0
    attempt: Annotated[int, Meta(ge=1)] = 1
    start: CompletionAsync | None = None


class StreamAccepted(Struct, frozen=True, kw_only=True, tag="accepted", tag_field="kind"):
    """The first chunk: which turn this is."""

    run_id: str
    conversation_id: str
    request_id: str


class StreamText(Struct, frozen=True, kw_only=True, tag="text", tag_field="kind"):
    """More text, from ``offset`` on.

    In offsets text and thinking count their characters, every other chunk that has one counts one.
    """

    attempt: int
    offset: int
    text: str


class StreamThinking(Struct, frozen=True, kw_only=True, tag="thinking", tag_field="kind"):
    """More of what the model thinks."""

    attempt: int
    offset: int
    text: str


class StreamToolCall(Struct, frozen=True, kw_only=True, tag="tool_call", tag_field="kind"):
    """The model calls a tool."""

    attempt: int
    offset: int
    call_id: str
    name: str
    arguments: str


class StreamToolResult(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="tool_result", tag_field="kind"
):
    """What came of a tool call."""

    attempt: int
    offset: int
    call_id: str
    name: str
    content: str
    is_error: bool = False


class StreamStep(Struct, frozen=True, kw_only=True, tag="step", tag_field="kind"):
    """A model call of the turn is over."""

    attempt: int
    offset: int
    model: str
    usage: Usage
    cost_usd: float | None


class StreamRestarted(Struct, frozen=True, kw_only=True, tag="restarted", tag_field="kind"):
    """What came from ``offset`` on is void: the daemon died, or the model call is made again."""

    attempt: int
    offset: int
    why: str


class StreamStatus(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="status", tag_field="kind"
):
    """What the turn waits for just now; no part of its text, and not repeated to who comes later.

    A turn waits for the ``turn`` before it, for a model's ``slot``, or to try again; for the
    ``trial`` of the gate that its tools are called by; for a ``summary`` of what falls out of the
    model's window; for a ``tool`` that runs; for an ``answer`` of a person, or a ``decision`` about
    a call in doubt.
    """

    waits_for: Literal[
        "turn",
        "slot",
        "rate",
        "retry",
        "circuit",
        "fallback",
        "trial",
        "model",
        "summary",
        "tool",
        "answer",
        "decision",
    ]
    message: str
    delay_s: float | None = None
    call_id: str | None = None


class CompletionResult(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="result", tag_field="kind"
):
    """How a turn ended, or how it stands; also published when it has ended.

    ``text`` is the answer, as far as there is one. ``output`` is its value where an
    ``output_schema`` was given. ``cost_usd`` is ``None`` where a price was not known.
    """

    run_id: str
    conversation_id: str
    request_id: str
    turn: int
    status: TurnStatus
    text: str = ""
    output: Any = None
    model: str | None = None
    usage: Usage = Usage()
    cost_usd: float | None = None
    steps: int = 0
    tool_calls: int = 0
    error: ErrorBody | None = None
    accepted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


StreamChunk = (
    StreamAccepted
    | StreamText
    | StreamThinking
    | StreamToolCall
    | StreamToolResult
    | StreamStep
    | StreamRestarted
    | StreamStatus
    | CompletionResult
)


class CompletionStatus(Struct, frozen=True, kw_only=True):
    """Tell how a turn stands."""

    run_id: RunId


class CompletionWait(Struct, frozen=True, kw_only=True):
    """Wait for a turn's end; past ``timeout_s`` the answer says how it stands."""

    run_id: RunId
    timeout_s: Wait = 25.0


class CompletionCancel(Struct, frozen=True, kw_only=True):
    """End a turn; what the user said stays."""

    run_id: RunId
    reason: Annotated[str, Meta(max_length=500)] = "cancelled"


class CompletionCancelled(Struct, frozen=True, kw_only=True):
    """The status that the turn has now; one that had ended keeps it."""

    run_id: str
    status: TurnStatus


class CompletionList(Struct, frozen=True, kw_only=True):
    """List turns, the newest first."""

    conversation_id: ConversationId | None = None
    agent: str | None = None
    status: tuple[TurnStatus, ...] | None = None
    limit: Limit = 50
    cursor: Annotated[str, Meta(max_length=300)] | None = None


class Turn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A turn of a conversation, without its texts; ``waits_for`` says why it does not get on.

    That a model is asked again ``waits_until`` a time, or that its circuit is open, is known to the
    daemon that is at the turn, and told by ``completion:status`` alone.
    """

    run_id: str
    conversation_id: str
    request_id: str
    turn: int
    status: TurnStatus
    model: str | None = None
    agent: str | None = None
    waits_for: str | None = None
    waits_until: datetime | None = None
    error: ErrorBody | None = None
    accepted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class CompletionListed(Struct, frozen=True, kw_only=True):
    """Turns; ``cursor`` is ``None`` on the last page."""

    turns: tuple[Turn, ...]
    cursor: str | None = None


class CompletionChildren(Struct, frozen=True, kw_only=True):
    """List the turns that were asked for within a run, the oldest first.

    With ``known``, as many as the caller has heard of, it waits up to ``wait_s`` until there are
    more.
    """

    run_id: RunId
    known: Annotated[int, Meta(ge=0)] = 0
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 0.0


class CompletionChildrenListed(Struct, frozen=True, kw_only=True):
    """Turns; of an agent that nobody has spawned ``request_id`` is the tool call that asked it."""

    turns: tuple[Turn, ...]


class CompletionInject(Struct, frozen=True, kw_only=True):
    """Say something to a conversation that is at work: the model reads it before its next step.

    Where no turn runs it begins one.
    """

    conversation_id: ConversationId
    prompt: Prompt
    request_id: RequestKey | None = None


class CompletionInjected(Struct, frozen=True, kw_only=True):
    """Whether the running turn ``run_id`` will read it, or it is a turn of its own."""

    conversation_id: str
    run_id: str
    is_own_turn: bool


class CompletionAnswer(Struct, frozen=True, kw_only=True):
    """Answer what a turn has asked a person; without a ``call_id`` the only question there is."""

    run_id: RunId
    content: Prompt
    call_id: str | None = None


class CompletionAnswered(Struct, frozen=True, kw_only=True):
    """The question that is answered."""

    run_id: str
    call_id: str


class CompletionPreview(Struct, frozen=True, kw_only=True):
    """Show exactly what a model would be sent for such a turn, without sending it."""

    turn: CompletionAsync


class CompletionPreviewed(Struct, frozen=True, kw_only=True):
    """What would be sent; tokens are counted, and ``left_out`` messages are summed up or gone."""

    model: str
    system: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...]
    settings: ModelSettings
    tokens: int
    window_tokens: int
    left_out: int
    trimmed: int


class TurnLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one turn may take at most; ``None`` is what the settings say.

    ``depth`` is how many turns may wait for one another below it.
    """

    requests: Annotated[int, Meta(ge=1)] | None = None
    tool_calls: Annotated[int, Meta(ge=0)] | None = None
    tokens: Annotated[int, Meta(ge=1)] | None = None
    cost_usd: Annotated[float, Meta(gt=0)] | None = None
    wall_s: Annotated[float, Meta(gt=0)] | None = None
    depth: Annotated[int, Meta(ge=0)] | None = None


class CompletionAgent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Gathered when a turn of an agent is accepted, and when a daemon takes it up: who is that?

    ``version`` is the one that the turn was accepted with; none is the newest. Once the turn is
    taken up ``run_id`` is its run, and ``parent_run_id`` the one within which it was asked for.
    Within another run a turn is told of that has no declared agent, too: ``agent`` is empty then.
    """

    agent: str
    version: int | None = None
    prompt: str = ""
    run_id: str | None = None
    parent_run_id: str | None = None


class AgentProfile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who an agent is, as far as its turns are concerned; what a turn itself says goes before.

    ``agent`` is whose version it is: the one that was asked for, or one that stands in for it. Of
    ``models`` the first that can answers. What plugins add to a prompt (``completion:context``) is
    left out where it ``is_told`` nothing; of the conversations of one that is not ``is_remembered``
    no plugin keeps anything.
    """

    agent: str
    version: int
    system: str | None = None
    models: tuple[str, ...] = ()
    settings: ModelSettings | None = None
    tools: Globs | None = None
    output_schema: dict[str, Any] | None = None
    limits: TurnLimits = TurnLimits()
    is_told: bool = True
    is_remembered: bool = True


class CompletionContext(Struct, frozen=True, kw_only=True):
    """Asked of contributors before a model is called: what should it know?"""

    conversation_id: str
    run_id: str | None
    agent: str | None
    prompt: str
    max_tokens: int


class ContextAdded(Struct, frozen=True, kw_only=True):
    """A contributor's answer: text for the system prompt, the most important first, and sources."""

    title: str
    text: str
    sources: tuple[str, ...] = ()


# -- conversations ------------------------------------------------------------------------------


class ConversationCreate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Make a conversation; one of that id is left as it is.

    ``kind`` says what it is for, in a word of its maker's.
    """

    conversation_id: ConversationId | None = None
    title: Annotated[str, Meta(max_length=200)] | None = None
    model: str | None = None
    agent: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    system: Text | None = None
    tools: Globs | None = None
    settings: ModelSettings | None = None
    kind: ConversationKind | None = None


class Conversation(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A conversation, without its messages."""

    conversation_id: str
    title: str
    messages: int
    turns: int
    created_at: datetime
    updated_at: datetime
    model: str | None = None
    agent: str | None = None
    user: str | None = None
    tools: Globs | None = None
    running_run_id: str | None = None
    waiting_turns: int = 0
    archived_at: datetime | None = None
    forked_from: str | None = None
    forked_at: int | None = None
    kind: str | None = None


class ConversationGet(Struct, frozen=True, kw_only=True):
    """Tell what is known of a conversation."""

    conversation_id: ConversationId


class ConversationList(Struct, frozen=True, kw_only=True):
    """List conversations, the one that was used last first."""

    agent: str | None = None
    user: str | None = None
    kind: ConversationKind | None = None
    archived: bool = False
    limit: Limit = 50
    cursor: Annotated[str, Meta(max_length=300)] | None = None


class ConversationListed(Struct, frozen=True, kw_only=True):
    """Conversations; ``cursor`` is ``None`` on the last page."""

    conversations: tuple[Conversation, ...]
    cursor: str | None = None


class ConversationHistory(Struct, frozen=True, kw_only=True):
    """Read messages by their numbers: those after ``after``, or the last before ``before``."""

    conversation_id: ConversationId
    after: Annotated[int, Meta(ge=0)] | None = None
    before: Annotated[int, Meta(ge=1)] | None = None
    limit: Limit = 50


class NumberedMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message with its place; ``tokens`` is what it counts for in a model's window."""

    number: int
    turn: int
    role: Role
    parts: tuple[Part, ...]
    created_at: datetime
    tokens: int
    run_id: str | None = None
    model: str | None = None


class ConversationRead(Struct, frozen=True, kw_only=True):
    """Messages in order; ask for ``after`` or ``before`` next, which are ``None`` at the ends."""

    conversation_id: str
    messages: tuple[NumberedMessage, ...]
    after: int | None = None
    before: int | None = None


class ConversationMessages(Struct, frozen=True, kw_only=True):
    """Fetch the messages of a range for a model, in the daemon as objects."""

    conversation_id: ConversationId
    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    sha256: str | None = None


class ConversationFetched(Struct, frozen=True, kw_only=True):
    """The messages, and the hash over them."""

    messages: tuple[Message, ...]
    sha256: str


class ConversationSearch(Struct, frozen=True, kw_only=True):
    """Find messages by their words."""

    text: Annotated[str, Meta(min_length=1, max_length=1000)]
    conversation_id: ConversationId | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 20


class FoundMessage(Struct, frozen=True, kw_only=True):
    """A message that was found; in ``snippet`` what matched stands between ``**``."""

    conversation_id: str
    title: str
    number: int
    role: Role
    snippet: str
    score: float
    created_at: datetime


class ConversationFound(Struct, frozen=True, kw_only=True):
    """Messages, the best match first."""

    found: tuple[FoundMessage, ...]


class ConversationRename(Struct, frozen=True, kw_only=True):
    """Give a conversation another title."""

    conversation_id: ConversationId
    title: Annotated[str, Meta(min_length=1, max_length=200)]


class ConversationArchive(Struct, frozen=True, kw_only=True):
    """Put a conversation away, or take it out again; it takes no turns meanwhile."""

    conversation_id: ConversationId
    archived: bool = True


class ConversationDelete(Struct, frozen=True, kw_only=True):
    """Delete a conversation with its messages and turns; one at work is a conflict."""

    conversation_id: ConversationId


class ConversationDeleted(Struct, frozen=True, kw_only=True):
    """What is gone."""

    conversation_id: str
    messages: int


class ConversationFork(Struct, frozen=True, kw_only=True):
    """Make a copy of a conversation up to the message ``at``, which is included."""

    conversation_id: ConversationId
    at: Annotated[int, Meta(ge=1)] | None = None
    new_id: ConversationId | None = None
    title: Annotated[str, Meta(max_length=200)] | None = None


class ConversationExport(Struct, frozen=True, kw_only=True):
    """Write a conversation down, in pieces; JSON can be read in again."""

    conversation_id: ConversationId
    format: Literal["json", "markdown"] = "json"


class ExportedText(Struct, frozen=True, kw_only=True):
    """The next piece of an export."""

    text: str


class ConversationImport(Struct, frozen=True, kw_only=True):
    """Make a conversation of what ``conversation:export`` wrote as JSON."""

    document: dict[str, Any]
    new_id: ConversationId | None = None


class ConversationLock(Struct, frozen=True, kw_only=True):
    """Keep a conversation's turns from starting, for others who need the same order.

    It waits, at most ``wait_s``, for the turn that runs. The lock is kept in Postgres, by whoever
    knows its ``lock_id``, for ``ttl_s``; locking again with the ``lock_id`` prolongs it.
    """

    conversation_id: ConversationId
    owner: Annotated[str, Meta(min_length=1, max_length=200)]
    ttl_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    wait_s: Wait = 0.0
    lock_id: str | None = None


class ConversationUnlock(Struct, frozen=True, kw_only=True):
    """Give a lock back; with ``force`` somebody else's, which is for people."""

    conversation_id: ConversationId
    lock_id: str | None = None
    force: bool = False


class ConversationLocks(Struct, frozen=True, kw_only=True):
    """List the locks that hold."""

    limit: Limit = 100


class Lock(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lock; only its owner is told the ``lock_id``."""

    conversation_id: str
    owner: str
    locked_at: datetime
    expires_at: datetime
    lock_id: str | None = None


class ConversationUnlocked(Struct, frozen=True, kw_only=True):
    """Whether there was a lock."""

    conversation_id: str
    was_locked: bool


class LocksListed(Struct, frozen=True, kw_only=True):
    """The locks that hold."""

    locks: tuple[Lock, ...]
