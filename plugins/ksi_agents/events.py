"""The payloads of ``agent:*``."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_daemon.protocol.wire import ErrorBody

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z"
AgentName = Annotated[str, Meta(pattern=NAME_PATTERN)]
Selector = Annotated[str, Meta(min_length=1, max_length=200)]
Channel = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9._:-]{0,61}[a-z0-9])?\Z")]
Prompt = Annotated[str, Meta(min_length=1, max_length=2_000_000)]
Source = Annotated[str, Meta(min_length=1, max_length=1_000_000)]
Labels = dict[
    Annotated[str, Meta(min_length=1, max_length=63)], Annotated[str, Meta(max_length=200)]
]
Wait = Annotated[float, Meta(ge=0, le=3600)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Cursor = Annotated[str, Meta(max_length=300)]
Format = Literal["markdown", "yaml", "json"]
Desired = Literal["running", "paused", "ended"]
Phase = Literal["Pending", "Starting", "Ready", "Busy", "Completed", "Failed", "Terminated"]
MailStatus = Literal["waiting", "given", "succeeded", "failed", "cancelled"]


# -- definitions --------------------------------------------------------------------------------


class Document(Struct, frozen=True, kw_only=True):
    """The text of a definition, or of several in one YAML stream; ``path`` is for messages."""

    text: Source
    path: Annotated[str, Meta(max_length=1000)] = "definition"
    format: Format | None = None


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wrong in a document, and where; ``line`` counts from 1."""

    path: str
    message: str
    line: int | None = None
    field: str = ""
    is_warning: bool = False


class AgentValidate(Struct, frozen=True, kw_only=True):
    """Check documents without keeping anything of them."""

    documents: Annotated[tuple[Document, ...], Meta(min_length=1, max_length=1000)]


class AgentValidated(Struct, frozen=True, kw_only=True):
    """What is wrong; nothing where ``is_valid``."""

    is_valid: bool
    problems: tuple[Problem, ...]
    agents: tuple[str, ...]


class AgentApply(Struct, frozen=True, kw_only=True):
    """Keep definitions: all of them, or where one is wrong, none.

    What is as it was stays at its version. With ``prune`` definitions go that were applied with
    the same ``set_name`` before and are not among these. With ``dry_run`` nothing is kept.
    """

    documents: Annotated[tuple[Document, ...], Meta(min_length=1, max_length=1000)]
    set_name: Annotated[str, Meta(min_length=1, max_length=200)] = "default"
    prune: bool = False
    dry_run: bool = False


class Applied(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a definition, with a diff of its text."""

    name: str
    action: Literal["created", "changed", "unchanged", "pruned"]
    version: int
    diff: str = ""


class AgentApplied(Struct, frozen=True, kw_only=True):
    """What became of the definitions; where there are ``problems`` nothing was kept."""

    applied: tuple[Applied, ...]
    problems: tuple[Problem, ...] = ()


class AgentDefinitions(Struct, frozen=True, kw_only=True):
    """List definitions by name."""

    pattern: str = "*"
    limit: Limit = 200
    cursor: Cursor | None = None


class DefinitionInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A definition without its text; ``origin`` is ``built-in``, ``applied`` or ``plugin``."""

    name: str
    version: int
    description: str
    origin: str
    model: tuple[str, ...] = ()
    labels: Labels = {}
    extends: str | None = None
    changed_at: datetime | None = None


class DefinitionsListed(Struct, frozen=True, kw_only=True):
    """Definitions; ``cursor`` is ``None`` on the last page."""

    definitions: tuple[DefinitionInfo, ...]
    cursor: str | None = None


class AgentDefinition(Struct, frozen=True, kw_only=True):
    """Show a definition: its text as it was given, and all that it comes to."""

    name: AgentName
    version: Annotated[int, Meta(ge=1)] | None = None


class DefinitionShown(Struct, frozen=True, kw_only=True):
    """A definition; ``resolved`` has what it extends, and every default."""

    info: DefinitionInfo
    text: str
    format: Format
    resolved: dict[str, Any]


class AgentHistory(Struct, frozen=True, kw_only=True):
    """List the versions of a definition, the newest first."""

    name: AgentName
    limit: Limit = 50


class VersionInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version: when it was applied, by whom, and how it differs from the one before."""

    version: int
    applied_at: datetime
    by: str
    diff: str
    is_current: bool = False


class HistoryListed(Struct, frozen=True, kw_only=True):
    """The versions of a definition."""

    name: str
    versions: tuple[VersionInfo, ...]


class AgentRollback(Struct, frozen=True, kw_only=True):
    """Make an earlier version the newest; without ``version`` the one before."""

    name: AgentName
    version: Annotated[int, Meta(ge=1)] | None = None


class AgentRemove(Struct, frozen=True, kw_only=True):
    """Delete definitions; agents that run by one keep its version until they end."""

    names: Annotated[tuple[AgentName, ...], Meta(min_length=1, max_length=1000)]


class AgentRemoved(Struct, frozen=True, kw_only=True):
    """Which definitions there were."""

    names: tuple[str, ...]


class AgentSchema(Struct, frozen=True, kw_only=True):
    """Give the JSON Schema of definitions, for editors."""


class SchemaGiven(Struct, frozen=True, kw_only=True):
    """The JSON Schema of a definition, as YAML, JSON or front matter."""

    json_schema: dict[str, Any]


# -- life ---------------------------------------------------------------------------------------


class AgentSpawn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Have an agent run: by a definition's name, or by a ``document`` of its own.

    Without a ``name`` it gets one from its definition. An agent that is spawned by another may do
    no more than that one. With a ``request_id`` asking twice is asking once.
    """

    definition: AgentName | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    document: Document | None = None
    name: AgentName | None = None
    labels: Labels = {}
    conversation_id: Annotated[str, Meta(pattern=r"^[^\s\x00-\x1f]{1,200}\Z")] | None = None
    prompt: Prompt | None = None
    wait_s: Wait = 0.0
    request_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class Condition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that is so, is not, or is not known, since when and why, as Kubernetes has them."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    since: datetime | None = None


class Agent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent: what is wanted of it (``desired``), and what is so (``phase``, ``conditions``)."""

    name: str
    definition: str
    version: int
    desired: Desired
    phase: Phase
    reason: str = ""
    conversation_id: str = ""
    parent: str | None = None
    parent_run: str | None = None
    labels: Labels = {}
    waiting: int = 0
    run_id: str | None = None
    restarts: int = 0
    next_start_at: datetime | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None


class AgentList(Struct, frozen=True, kw_only=True):
    """List agents by name; those that have ended only with ``ended``."""

    pattern: str = "*"
    definition: AgentName | None = None
    phase: tuple[Phase, ...] = ()
    labels: Labels = {}
    parent: AgentName | None = None
    ended: bool = False
    limit: Limit = 200
    cursor: Cursor | None = None


class AgentListed(Struct, frozen=True, kw_only=True):
    """Agents; ``cursor`` is ``None`` on the last page."""

    agents: tuple[Agent, ...]
    cursor: str | None = None


Section = Literal["conditions", "definition", "mailbox", "usage", "children", "channels", "tools"]


class AgentGet(Struct, frozen=True, kw_only=True):
    """Tell of an agent, with the sections that are asked for."""

    name: AgentName
    sections: tuple[Section, ...] = ("conditions",)


class Mail(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message in an agent's mailbox; its number is its place in the order of acceptance."""

    message_id: str
    number: int
    status: MailStatus
    prompt: str
    sender: str | None = None
    channel: str | None = None
    run_id: str | None = None
    error: ErrorBody | None = None
    accepted_at: datetime | None = None
    ended_at: datetime | None = None


class Spent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent, or a run, has taken, what is reserved, and what of its ``limits`` is set."""

    requests: int
    tool_calls: int
    tokens: int
    cost_usd: float
    reserved_usd: float
    limits: dict[str, Any] = {}


class AgentShown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent, and the sections that were asked for."""

    agent: Agent
    conditions: tuple[Condition, ...] | None = None
    definition: dict[str, Any] | None = None
    mailbox: tuple[Mail, ...] | None = None
    usage: Spent | None = None
    children: tuple[Agent, ...] | None = None
    channels: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None


class AgentSend(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Put a message into an agent's mailbox; accepted, it is worked off once, and in its order."""

    agent: AgentName
    prompt: Prompt
    message_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class AgentSent(Struct, frozen=True, kw_only=True):
    """The message is kept; ``waiting`` are in the mailbox before it."""

    agent: str
    message_id: str
    number: int
    waiting: int


class AgentAsk(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Send a message and wait for what comes of it; past ``timeout_s`` the answer says how it is.

    Asked again with the same ``message_id`` it waits for the same message.
    """

    agent: AgentName
    prompt: Prompt
    timeout_s: Wait = 300.0
    message_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class AgentAnswered(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a message: the agent's answer, or why there is none."""

    agent: str
    message_id: str
    status: MailStatus
    text: str = ""
    output: Any = None
    run_id: str | None = None
    conversation_id: str | None = None
    cost_usd: float | None = None
    error: ErrorBody | None = None


class AgentLogs(Struct, frozen=True, kw_only=True):
    """Tell what happened to an agent, the newest first: its changes, its messages, its failures."""

    name: AgentName
    limit: Limit = 100
    before: Annotated[int, Meta(ge=1)] | None = None


class LogEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened to an agent."""

    number: int
    at: datetime
    kind: str
    message: str
    run_id: str | None = None


class LogsListed(Struct, frozen=True, kw_only=True):
    """What happened to an agent."""

    entries: tuple[LogEntry, ...]


class AgentSelect(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which agents: by names or globs, labels, or those not used for ``idle_s``."""

    names: Annotated[tuple[Selector, ...], Meta(max_length=1000)] = ()
    labels: Labels = {}
    idle_s: Annotated[float, Meta(ge=0)] | None = None


class AgentPause(Struct, frozen=True, kw_only=True):
    """Have agents take no more messages from their mailboxes; what runs is finished."""

    which: AgentSelect


class AgentResume(Struct, frozen=True, kw_only=True):
    """Have paused agents go on."""

    which: AgentSelect


class AgentRestart(Struct, frozen=True, kw_only=True):
    """Start agents anew, by the newest version of their definitions; mailboxes stay."""

    which: AgentSelect
    keep_version: bool = False


class AgentTerminate(Struct, frozen=True, kw_only=True):
    """End agents for good: what runs is cancelled, what waits in their mailboxes too.

    With ``dry_run`` it is only said which. Their conversations stay.
    """

    which: AgentSelect
    children: bool = True
    reason: Annotated[str, Meta(max_length=500)] = ""
    dry_run: bool = False


class AgentsChanged(Struct, frozen=True, kw_only=True):
    """The agents that it was about, as they are now."""

    agents: tuple[Agent, ...]
    is_dry_run: bool = False


class AgentChanged(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Published when an agent's phase changes."""

    name: str
    phase: Phase
    was: Phase | None = None
    reason: str = ""
    run_id: str | None = None


# -- limits of runs -----------------------------------------------------------------------------

RunId = Annotated[str, Meta(min_length=1, max_length=300)]


class RunLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run may take at most, with all that is asked for within it; ``None`` is no bound."""

    requests: Annotated[int, Meta(ge=0)] | None = None
    tool_calls: Annotated[int, Meta(ge=0)] | None = None
    tokens: Annotated[int, Meta(ge=0)] | None = None
    cost_usd: Annotated[float, Meta(ge=0)] | None = None


class AgentLimit(Struct, frozen=True, kw_only=True):
    """Bound what a workflow's run takes, its own calls and those of all turns within it.

    Said again, the newest holds, and what was taken stays. What the run takes counts in the one
    above it, too: in ``parent_run_id``, or in the run that started it. Without ``limits`` it is
    counted and not bounded. Turns have the limits of their agents.
    """

    run_id: RunId
    limits: RunLimits = RunLimits()
    parent_run_id: RunId | None = None


class AgentSpent(Struct, frozen=True, kw_only=True):
    """Tell what a run has taken, with all turns within it; what nobody bounds is not counted."""

    run_id: RunId


# -- channels -----------------------------------------------------------------------------------


class AgentSubscribe(Struct, frozen=True, kw_only=True):
    """Have an agent get what is published on a channel, as messages in its mailbox."""

    agent: AgentName
    channel: Channel


class AgentUnsubscribe(Struct, frozen=True, kw_only=True):
    """Have an agent get no more of a channel."""

    agent: AgentName
    channel: Channel


class AgentSubscribed(Struct, frozen=True, kw_only=True):
    """The channels that the agent is subscribed to."""

    agent: str
    channels: tuple[str, ...]


class AgentPublish(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say something on a channel: each subscriber finds it in its mailbox, asleep or not."""

    channel: Channel
    text: Prompt
    message_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class AgentPublished(Struct, frozen=True, kw_only=True):
    """Who gets it; ``refused`` have full mailboxes."""

    channel: str
    message_id: str
    agents: tuple[str, ...]
    refused: tuple[str, ...] = ()
