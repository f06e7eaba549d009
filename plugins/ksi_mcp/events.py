"""The payloads of ``mcp:*``."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_tools.events import AskedName, CallId, ToolCalled

Kind = Literal["tools", "prompts", "resources"]
Level = Literal["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]


class McpCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Call a tool as ``tool:call`` does, and see how far it is.

    The answer is a stream: what the tool says of its progress, what is logged while it is called
    if ``logs`` is set, and as the last what came of the call. ``capabilities`` are those of the
    program that calls; ``answers`` and ``state`` are for a tool that has asked it something.
    """

    name: AskedName
    arguments: dict[str, Any] = {}
    call_id: CallId | None = None
    logs: bool = False
    capabilities: dict[str, Any] = {}
    answers: dict[str, Any] | None = None
    state: str | None = None


class McpCalling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a tool that is being called, a line of the log, or what came of the call.

    With a message ``done`` and ``total`` say how much of how much is done; with a ``level`` it is
    a line of the log, and ``data`` what it says. With ``asks`` the tool wants these requests
    answered by the program that calls it, and is to be called again with that and the ``state``.
    """

    message: str = ""
    done: float | None = None
    total: float | None = None
    level: Level | None = None
    data: Any = None
    called: ToolCalled | None = None
    asks: dict[str, dict[str, Any]] | None = None
    state: str | None = None


class McpCalled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last that is told of a call, and the lines of the log that came before it."""

    last: McpCalling
    said: tuple[McpCalling, ...] = ()


class McpWhoami(Struct, frozen=True, kw_only=True):
    """Ask as whom the daemon sees a connection, what it may do, and how KSI is to be offered."""


class McpServing(Struct, frozen=True, kw_only=True):
    """How KSI is offered to other programs: settings of ``[mcp]``."""

    lists_events: bool = True
    page_size: int = 250
    max_sessions: int = 1000
    max_sessions_per_key: int = 100
    session_idle_s: float = 1800.0
    ask_timeout_s: float = 600.0


class McpYou(Struct, frozen=True, kw_only=True):
    """Who asks, globs over the scopes that they have, and how KSI is to be offered."""

    principal: str
    tenant: str
    user: str | None
    scopes: tuple[str, ...]
    serving: McpServing


# -- what plugins offer -----------------------------------------------------------------------


class McpOffered(Struct, frozen=True, kw_only=True):
    """Prompts, resources and templates of resources, each as MCP has it in JSON."""

    prompts: tuple[dict[str, Any], ...]
    resources: tuple[dict[str, Any], ...]
    templates: tuple[dict[str, Any], ...]


class McpPrompt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Get a prompt that a plugin offers.

    ``capabilities`` are what the asking program can do, as MCP has them. Where the prompt wanted to
    know something, ``answers`` are what came of that, by its names for it, and ``state`` is what it
    wanted back.
    """

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    arguments: dict[str, str] = {}
    capabilities: dict[str, Any] = {}
    answers: dict[str, Any] | None = None
    state: str | None = None


class McpPrompted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A prompt as MCP has it; or what has to be asked before there is one, and a state to keep."""

    prompt: dict[str, Any] | None = None
    asks: dict[str, dict[str, Any]] | None = None
    state: str | None = None


class McpResource(Struct, frozen=True, kw_only=True):
    """Read a resource that a plugin offers."""

    uri: Annotated[str, Meta(min_length=1, max_length=4000)]


class McpResourceRead(Struct, frozen=True, kw_only=True):
    """What a resource holds, as MCP has it."""

    contents: tuple[dict[str, Any], ...]


class McpComplete(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Complete an argument of a prompt, or a variable of a template of resources.

    ``value`` is what was typed so far, ``arguments`` are those that are known already.
    """

    kind: Literal["prompt", "template"]
    name: Annotated[str, Meta(min_length=1, max_length=2000)]
    argument: Annotated[str, Meta(min_length=1, max_length=200)]
    value: Annotated[str, Meta(max_length=2000)] = ""
    arguments: dict[str, str] = {}


class McpCompleted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first of what it might be, and how many there are."""

    values: tuple[str, ...]
    total: int = 0


class McpChanged(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Published when there are other tools, prompts or resources than before.

    They are a tenant's alone, where that is told.
    """

    kind: Kind
    tenant: str | None = None


class McpUpdated(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Published when a resource, of one tenant or all, holds something else than before."""

    uri: str
    tenant: str | None = None


# -- the servers of others --------------------------------------------------------------------

# As ksi_daemon.settings has it: masked wherever settings are shown.
Hidden = Annotated[str, Meta(extra={"secret": True})]
ServerName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}\Z")]
Glob = Annotated[str, Meta(min_length=1, max_length=200)]
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,100}\Z")]
VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}\Z")]


class McpServer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A program of others that speaks MCP: a ``command`` to run, or the ``url`` of one that runs.

    In ``args``, ``url`` and the values of ``variables`` and ``headers`` ``${env:NAME}``,
    ``${file:PATH}`` and ``${keyring:NAME}`` stand for a secret that is looked up when it is needed.

    Attributes:
        command: What is run, as a name on the `PATH` or as a path.
        args: Its arguments.
        environment: Names of variables of the daemon's that it gets; it gets no others.
        variables: Variables of its own.
        memory_mb: What it may hold of memory, with all that it starts; as much as there is unless
            given.
        url: Where it is reached by HTTP.
        headers: What is sent with each request.
        oauth: Whether one logs in with it (``ksi mcp login``).
        prefix: What its tools' names begin with; its own name and ``_`` unless given.
        allow: Globs of the tools that may be used, by the names that it gives them.
        deny: Globs of those that may not be.
        trust_annotations: Whether it is believed what it says of its tools' effects: what isn't
            trusted has effects.
        accept_new: Whether tools that come later may be used at once; as for all unless given.
        timeout_s: How long a call may take; as for all unless given.
        handshake: ``legacy`` spares one that can't bear it the question for the newest protocol.
        is_on: Whether it is used at all.
        tenant: Whose it is alone, where it stands in the settings; everybody's unless given.
    """

    command: str = ""
    args: tuple[Hidden, ...] = ()
    environment: tuple[VariableName, ...] = ()
    variables: dict[VariableName, Hidden] = {}
    memory_mb: Annotated[int, Meta(ge=16)] | None = None
    url: Hidden = ""
    headers: dict[HeaderName, Hidden] = {}
    oauth: bool = False
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,40}\Z")] | None = None
    allow: tuple[Glob, ...] = ("*",)
    deny: tuple[Glob, ...] = ()
    trust_annotations: bool = False
    accept_new: bool | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    handshake: Literal["auto", "legacy"] = "auto"
    is_on: bool = True
    tenant: str = ""


class McpAdd(Struct, frozen=True, kw_only=True):
    """Have agents call the tools of another program, and ask it for them at once.

    It is kept although it can't be reached now. What looks like a secret is refused: it is to be
    named by where it is, such as ``${env:GITHUB_TOKEN}``.
    """

    name: ServerName
    server: McpServer


class McpRemove(Struct, frozen=True, kw_only=True):
    """Take back a server that was added; deletes its folder, and the login with it.

    What is known of its tools is forgotten.
    """

    name: ServerName


class McpList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """List the servers whose tools agents can call, or one; their tools too with ``tools``."""

    tools: bool = False
    name: ServerName | None = None


class McpCheck(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask servers for their tools now: one, or all that are on."""

    name: ServerName | None = None


class McpAccept(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Accept what a server says now of tools that are held back.

    ``tools`` are by the server's names for them; all whose changes are shown unless given: what is
    gone, not allowed, or too long to be shown, is not accepted. With ``digest`` nothing is accepted
    but what was shown under it.
    """

    name: ServerName
    tools: tuple[str, ...] = ()
    digest: str | None = None


class McpToolReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool of a server: what it is called by it and here, and whether it can be called.

    ``status`` is ``offered``; ``held_back`` until it is accepted, with all that has changed as
    ``diff``, unless that is too long to be shown with the rest; ``not_allowed`` by ``allow`` and
    ``deny``, or by its name; or ``gone``.
    """

    name: str
    status: Literal["offered", "held_back", "not_allowed", "gone"]
    offered_as: str | None = None
    effects: str = "effectful"
    description: str = ""
    diff: str | None = None


class McpServerReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A server, how it is, and how many tools it has.

    Attributes:
        name: Its name.
        source: Whether it stands in the settings or was added.
        tenant: Whose it is alone; everybody's unless told.
        target: Its command or its URL, with no secrets.
        state: ``idle`` until a tool is called, ``connecting``, ``connected``, ``failed``, or
            ``off``.
        why: Why it failed.
        offered: How many of its tools can be called.
        held_back: How many are held back until they are accepted.
        refused: Why tools that it has are left out.
        digest: Stands for what is shown of tools that are held back, where they were asked for.
        tools: Its tools, where they were asked for.
        oauth: Whether one logs in with it.
    """

    name: str
    source: Literal["settings", "added"]
    tenant: str | None = None
    target: str
    state: Literal["idle", "connecting", "connected", "failed", "off"]
    why: str | None = None
    offered: int = 0
    held_back: int = 0
    refused: tuple[str, ...] = ()
    digest: str | None = None
    tools: tuple[McpToolReport, ...] = ()
    oauth: bool = False


class McpServers(Struct, frozen=True, kw_only=True):
    """Servers by name."""

    servers: tuple[McpServerReport, ...]


class McpHeldBack(Struct, frozen=True, kw_only=True):
    """Published when tools of a server are held back, since they are not what they were."""

    name: str
    tools: tuple[str, ...]


# -- runtimes -------------------------------------------------------------------------------------


class McpSessionCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for the result of a call that a program's model has asked for; ``id`` is the model's."""

    id: Annotated[str, Meta(max_length=200)] | None = None
    name: Annotated[str, Meta(max_length=200)]
    arguments: dict[str, Any] = {}


class McpSessionCalled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a call, as the turn has it."""

    content: str
    is_error: bool = False


class McpRuntimes(Struct, frozen=True, kw_only=True):
    """Tell of each runtime that calls tools whether it was shown to do so by the gate alone."""


class McpWay(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way around the gate, and what came of trying it; ``through`` is what must not be."""

    way: str
    result: Literal["held", "through", "unknown", "untried"]
    detail: str = ""


class McpRuntime(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A runtime: ``refused`` where a way was open, ``unproven`` where it could not be tried.

    ``version`` is that of the program that was tried, where it tells; ``advice`` says what to do
    about one that is refused.
    """

    name: str
    version: str = ""
    state: Literal["waiting", "proven", "refused", "unproven", "absent"] = "waiting"
    why: str = ""
    advice: str = ""
    ways: tuple[McpWay, ...] = ()


class McpRuntimesTold(Struct, frozen=True, kw_only=True):
    """The runtimes, and the ways that were tried with each."""

    runtimes: tuple[McpRuntime, ...]
