"""The payloads of ``tool:*``."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ksi_daemon.protocol.wire import ErrorBody

# What a repetition of a call would do: nothing at all, the same again, or a second effect.
Effects = Literal["read_only", "idempotent", "effectful"]
CallStatus = Literal["done", "failed", "waiting", "in_doubt", "dropped"]
# What every provider of models takes; asked for may be what is none: a model may make up a name.
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
AskedName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}\Z")]
Globs = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:*?-]{1,200}\Z")], ...], Meta(max_length=1000)
]
CLIENT_TOOL: Final = "client_tool"  # stands for every tool of a client
Subject = Annotated[str, Meta(pattern=r"^(agent|conversation):.{1,200}\Z")]
CallId = Annotated[str, Meta(min_length=1, max_length=300)]


class ToolList(Struct, frozen=True, kw_only=True):
    """List the tools that the caller may call; with ``all_tools`` the others too.

    With ``schemas`` the answer has the JSON Schemas of their arguments.
    """

    pattern: str = "*"
    all_tools: bool = False
    schemas: bool = False


class ToolInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool: what it does, whether it has effects, and whose it is."""

    name: str
    description: str
    effects: Effects
    provider: str
    is_allowed: bool = True
    timeout_s: float | None = None
    is_interactive: bool = False


class ToolListed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tools by name, and the schema of each where they were asked for."""

    tools: tuple[ToolInfo, ...]
    schemas: tuple[dict[str, Any], ...] = ()


class ToolDescribe(Struct, frozen=True, kw_only=True):
    """Tell all of some tools: their schemas too."""

    names: Annotated[tuple[AskedName, ...], Meta(min_length=1, max_length=500)]


class ToolDescription(Struct, frozen=True, kw_only=True):
    """A tool and the JSON Schema of its arguments."""

    info: ToolInfo
    parameters: dict[str, Any]


class ToolDescribed(Struct, frozen=True, kw_only=True):
    """Tools with their schemas, in the order in which they were asked for."""

    tools: tuple[ToolDescription, ...]


class ToolCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Call a tool, in the name of the event's agent and conversation.

    A call with a ``call_id`` is made once: asked again it answers with what came of it, repeats
    what has no effect or the same, or says that it is in doubt. ``arguments`` are an object, or the
    JSON text of one as a model wrote it.
    """

    name: AskedName
    arguments: dict[str, Any] | str = {}
    call_id: CallId | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None


class ToolCalled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a call.

    ``content`` is text for the model: the result, or what went wrong where the status is
    ``failed``. Past the cap it is the beginning alone, and the whole is kept as ``output_ref``
    (see ``tool:output``). ``waiting`` means that a person is to answer with ``tool:answer``: an
    interactive tool's question, or what another wants to know before it goes on; that one is to be
    called again then, with the same ``call_id``. ``in_doubt`` means that nobody
    knows whether the effect came about: a person is to say with ``tool:resolve``.
    """

    call_id: str
    name: str
    status: CallStatus
    content: str = ""
    error: ErrorBody | None = None
    output_ref: str | None = None
    size_bytes: int = 0
    duration_ms: float = 0.0
    is_repeated: bool = False


class ToolProgressed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Published while a tool runs, when it has something to say."""

    call_id: str
    name: str
    message: str
    done: float | None = None
    total: float | None = None


class ToolOutput(Struct, frozen=True, kw_only=True):
    """Read more of an output that was too large to be handed over whole."""

    output_ref: str
    offset: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000


class ToolOutputPart(Struct, frozen=True, kw_only=True):
    """A part of an output, in characters; ``next_offset`` is ``None`` at its end."""

    content: str
    total: int
    next_offset: int | None = None


class ToolCalls(Struct, frozen=True, kw_only=True):
    """List calls, the newest first: the ledger of effects."""

    status: CallStatus | Literal["running"] | None = None
    run_id: str | None = None
    conversation_id: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class CallRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call as the ledger has it."""

    call_id: str
    name: str
    effects: Effects
    status: CallStatus | Literal["running"]
    arguments: Any
    begun_at: datetime
    ended_at: datetime | None = None
    run_id: str | None = None
    conversation_id: str | None = None
    agent: str | None = None
    content: str | None = None
    why: str | None = None


class ToolCallsListed(Struct, frozen=True, kw_only=True):
    """Calls of the ledger."""

    calls: tuple[CallRecord, ...]


class ToolInDoubt(Struct, frozen=True, kw_only=True):
    """List the calls of which nobody knows whether their effect came about."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ToolResolve(Struct, frozen=True, kw_only=True):
    """Say what became of a call in doubt, after a look at the world.

    ``done``: the effect came about, with ``content`` as its result. ``redo``: it did not; call it
    again. ``drop``: leave it; the model is told that the call was dropped. A question that waits
    can be dropped, too.
    """

    call_id: CallId
    verdict: Literal["done", "redo", "drop"]
    content: str = ""


class ToolAnswer(Struct, frozen=True, kw_only=True):
    """Answer a call that waits for a person.

    The answer is the result of an interactive tool. Another goes on with it, once it is called
    again with the same ``call_id``: it is ``running`` until then.
    """

    call_id: CallId
    content: str


class ToolResolved(Struct, frozen=True, kw_only=True):
    """The call's status now; ``running`` where it is to be made again."""

    call_id: str
    status: CallStatus | Literal["running"]


class ToolSettled(Struct, frozen=True, kw_only=True):
    """Published when a call that waited for a person, or was in doubt, does so no more."""

    call_id: str
    name: str
    status: CallStatus | Literal["running"]
    run_id: str | None = None


class ToolDoubted(Struct, frozen=True, kw_only=True):
    """Published when a call has come to be in doubt, or waits for a person."""

    call_id: str
    name: str
    status: CallStatus
    why: str
    run_id: str | None = None
    conversation_id: str | None = None


class ToolPermit(Struct, frozen=True, kw_only=True):
    """Say what an agent, or a conversation, may call; globs of tools' names.

    What is read-only may be called unless ``allow`` is set; whatever else needs to be allowed. A
    ``parent`` bounds its child: nothing that the parent may not. ``deny`` wins over ``allow``.
    With ``forget`` nothing is said of it any more; its children may call what is read-only.
    """

    subject: Subject
    allow: Globs | None = None
    deny: Globs = ()
    parent: Subject | None = None
    forget: bool = False


class ToolPermissions(Struct, frozen=True, kw_only=True):
    """Tell what an agent or a conversation may call."""

    subject: Subject


class ToolPermitted(Struct, frozen=True, kw_only=True):
    """What a subject may call: its own words, and the tools that come of them now."""

    subject: str
    allow: Globs | None
    deny: Globs
    parent: str | None
    tools: tuple[str, ...]


class ToolRegister(Struct, frozen=True, kw_only=True):
    """Make an event a tool: one that this connection serves, or one that a plugin answers.

    A connection's tools go with it.
    """

    name: ToolName
    event: str
    description: Annotated[str, Meta(min_length=1, max_length=8000)]
    parameters: dict[str, Any]
    effects: Effects = "effectful"
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None


class ToolUnregister(Struct, frozen=True, kw_only=True):
    """Take back a tool that was registered."""

    name: AskedName


class ToolRegistered(Struct, frozen=True, kw_only=True):
    """The tool that is, or was, registered."""

    name: str
