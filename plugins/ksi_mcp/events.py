"""The payloads of ``mcp:*``."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_tools.events import AskedName, CallId, ToolCalled

LogLevel = Literal["warning", "error", "critical"]


class McpCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Call a tool as ``tool:call`` does, and see how far it is.

    The answer is a stream: what the tool says of its progress, what is logged while it is called
    if ``logs`` is set, and as the last what came of the call.
    """

    name: AskedName
    arguments: dict[str, Any] = {}
    call_id: CallId | None = None
    logs: bool = False


class McpCalling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a tool that is being called, a line of the log, or what came of the call.

    With a message ``done`` and ``total`` say how much of how much is done; with a ``level`` it is
    a line of the log.
    """

    message: str = ""
    done: float | None = None
    total: float | None = None
    level: LogLevel | None = None
    called: ToolCalled | None = None


class McpWhoami(Struct, frozen=True, kw_only=True):
    """Ask as whom the daemon sees a connection, and what it may do."""


class McpYou(Struct, frozen=True, kw_only=True):
    """Who asks, and globs over the scopes that they have."""

    principal: str
    tenant: str
    user: str | None
    scopes: tuple[str, ...]


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

    uri: Annotated[str, Meta(min_length=1, max_length=2000)]


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


class McpChanged(Struct, frozen=True, kw_only=True):
    """Published when there are other tools, prompts or resources than before."""

    kind: Literal["tools", "prompts", "resources"]


class McpUpdated(Struct, frozen=True, kw_only=True):
    """Published when a resource holds something else than before."""

    uri: str
