"""What a tool is, wherever it comes from."""

import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_tools.events import Effects, ToolInfo

MAX_NAME_CHARS: Final = 64
_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_CHARS}}}")
_OTHER: Final = re.compile(r"[^A-Za-z0-9_-]")

NO_ARGUMENTS: Final[dict[str, Any]] = {"type": "object", "properties": {}}


class ToolContext(Struct, frozen=True):
    """What a tool may know of the call that it is executed for.

    Attributes:
        call_id: The call; the same when it is repeated after a crash, so that it can serve as the
            idempotency key of whatever the tool asks of others.
        tenant: Whose it is.
        run: The run that makes it.
        conversation: Where it is made.
        agent: Who makes it.
        attempt: The how manieth time it is made.
        answer: What a person answered, where the tool has asked a `Question`.
        progress: Tells whoever watches how far the call is: a message and, where there are
            figures, how much of how much is done. What comes too fast is left out.
    """

    call_id: str
    tenant: str
    run: str | None
    conversation: str | None
    agent: str | None
    attempt: int
    progress: "Progress"
    answer: str | None = None


class Question(Exception):
    """What a tool wants to know from a person before it goes on.

    Its call waits then, however long that takes, and is made again with the answer, as
    `ToolContext.answer`, once there is one.
    """


class Progress(Protocol):
    """Says how far a call is."""

    def __call__(self, message: str, done: float | None = None, total: float | None = None) -> None:
        """Publish ``tool:progress``."""


Execute = Callable[[Any, ToolContext], Awaitable[Any]]


class Tool(Struct, frozen=True, kw_only=True):
    """Something that agents can call.

    Attributes:
        name: What models call it.
        description: What they are told of it.
        effects: What a repetition would do.
        provider: The plugin, or the client, that it is of.
        parameters: The JSON Schema of its arguments.
        check: Takes the arguments, and returns what ``execute`` wants; raises `InvalidData`.
        execute: Does it.
        timeout_s: How long it may take.
        is_interactive: Whether a person gives the answer; ``execute`` is not called then.
        question: What an interactive tool asks, made of its arguments.
        tenant: Whose it is alone.
        event: The event that does it.
        is_for_programs: Whether it is for programs and people that come from outside, and for no
            agent; it looks itself at what a key or a token may do.
    """

    name: str
    description: str
    effects: Effects
    provider: str
    parameters: dict[str, Any]
    check: Callable[[dict[str, Any]], Any]
    execute: Execute
    timeout_s: float | None = None
    is_interactive: bool = False
    question: Callable[[Any], str] | None = None
    tenant: str | None = None
    event: str | None = None
    is_for_programs: bool = False

    def info(self, *, is_allowed: bool) -> ToolInfo:
        """Tell of it."""
        return ToolInfo(
            name=self.name,
            description=self.description,
            effects=self.effects,
            provider=self.provider,
            is_allowed=is_allowed,
            timeout_s=self.timeout_s,
            is_interactive=self.is_interactive,
        )


def check_tool_name(name: str) -> str:
    """Return a tool's name unchanged.

    Raises:
        InvalidData: No tool can be called so.
    """
    if not _NAME.fullmatch(name):
        raise InvalidData(
            f"{name[:200]!r} is no tool's name: letters, digits, '_' and '-', in "
            f"{MAX_NAME_CHARS} characters at most, since providers of models refuse others"
        )
    return name


def name_of_event(event: str) -> str:
    """Return the name of the tool that an event is; a long one's end is that of its digest."""
    name = _OTHER.sub("_", event)
    if len(name) <= MAX_NAME_CHARS:
        return name
    digest = sha256(event.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME_CHARS - len(digest) - 1]}_{digest}"


def told_of(error: msgspec.ValidationError, what: str) -> InvalidData:
    """Make the error for arguments; msgspec puts the field's path behind its message."""
    message, _, path = str(error).partition(" - at `")
    path = path.rstrip("`")
    where = f" at {path}" if path else ""
    return InvalidData(
        f"{what}: {message}{where}",
        details={"kind": "arguments", **({"path": path} if path else {})},
    )
