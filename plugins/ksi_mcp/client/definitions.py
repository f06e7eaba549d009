"""What servers say of their tools: made safe, and held to what they said before."""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_mcp.client.text import cleaned, cleaned_schema
from ksi_mcp.events import McpServer
from ksi_mcp.settings import McpSettings
from ksi_tools.api import ToolSpec
from ksi_tools.events import Effects

MAX_NAME_CHARS: Final = 64  # of a tool, to providers of models
MAX_OWN_NAME_CHARS: Final = 128  # of a tool, to MCP
MAX_DIFF_CHARS: Final = 20_000
GONE_FACTOR: Final = 2  # as many times as many tools are kept in mind as there may be
_OTHER: Final = re.compile(r"[^A-Za-z0-9_-]")
_ORDERED: Final = msgspec.json.Encoder(order="deterministic")


class Definition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a server says of a tool.

    Attributes:
        name: What it calls it.
        description: What it does.
        parameters: The JSON Schema of its arguments.
        output: The JSON Schema of its result, where it has one.
        is_read_only: Whether it is said to change nothing.
        is_idempotent: Whether it is said to do no more when it is called twice.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    output: dict[str, Any] | None = None
    is_read_only: bool = False
    is_idempotent: bool = False

    def effects(self, *, is_trusted: bool) -> Effects:
        """What a repetition would do, as far as that is believed."""
        if is_trusted and self.is_read_only:
            return "read_only"
        return "idempotent" if is_trusted and self.is_idempotent else "effectful"


class KnownTool(Struct, frozen=True, kw_only=True):
    """A tool that a server has or had.

    Attributes:
        name: What the server calls it.
        accepted: What may be used; nothing where it came later and is held back.
        pending: What the server says now, where that is something else.
        is_there: Whether the server had it when it was last asked.
    """

    name: str
    accepted: Definition | None
    pending: Definition | None = None
    is_there: bool = True

    @property
    def usable(self) -> Definition | None:
        """What may be called."""
        return self.accepted if self.is_there and self.pending is None else None


def definition_of(told: Mapping[str, Any], settings: McpSettings) -> Definition:
    """Make safe what a server says of a tool.

    Args:
        told: As MCP has it in JSON.
        settings: The bounds.

    Raises:
        InvalidData: It can't be a tool.
    """
    name = told.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_OWN_NAME_CHARS:
        raise InvalidData(f"a name of {MAX_OWN_NAME_CHARS} characters at most is wanted")
    if cleaned(name) != name or not name.isprintable():
        raise InvalidData(f"{cleaned(name)!r}: the name has characters that can't be seen")
    notes = told.get("annotations") or {}
    return Definition(
        name=name,
        description=cleaned(told.get("description") or "", settings.max_description_chars),
        parameters={"type": "object", **_schema(name, told.get("inputSchema") or {}, settings)},
        output=_schema(name, told["outputSchema"], settings) if told.get("outputSchema") else None,
        is_read_only=notes.get("readOnlyHint") is True,
        is_idempotent=notes.get("idempotentHint") is True,
    )


def _schema(name: str, schema: dict[str, Any], settings: McpSettings) -> dict[str, Any]:
    size = len(msgspec.json.encode(schema))
    if size > settings.max_schema_bytes:
        raise InvalidData(
            f"{name}: its schema has {size} bytes, more than {settings.max_schema_bytes} "
            "(mcp.max_schema_bytes)"
        )
    try:
        made: dict[str, Any] = cleaned_schema(schema)
    except InvalidData as error:
        raise InvalidData(f"{name}: {error.message}") from error
    return made


def compared(
    known: Mapping[str, KnownTool],
    listed: Iterable[Definition],
    *,
    accept_new: bool,
    max_tools: int,
) -> dict[str, KnownTool]:
    """Hold what a server says now to what is known of it.

    What it says for the first time is believed. What has changed since is held back, and so is what
    is new unless ``accept_new``. What is gone is kept in mind, so that it can't come back changed.
    """
    is_first = not known
    now = {each.name: each for each in listed}
    made = {}
    for name, definition in now.items():
        before = known.get(name)
        if before is None:
            is_believed = is_first or accept_new
            made[name] = KnownTool(
                name=name,
                accepted=definition if is_believed else None,
                pending=None if is_believed else definition,
            )
        elif before.accepted == definition:
            made[name] = KnownTool(name=name, accepted=definition)
        else:
            made[name] = KnownTool(name=name, accepted=before.accepted, pending=definition)
    room = max(0, max_tools * GONE_FACTOR - len(made))
    gone = [each for name, each in known.items() if name not in now]
    for each in gone[-room:] if room else []:
        made[each.name] = msgspec.structs.replace(each, is_there=False)
    return made


def accepted(tool: KnownTool) -> KnownTool:
    """Return a tool of which is believed what its server says now."""
    return KnownTool(name=tool.name, accepted=tool.pending or tool.accepted, is_there=tool.is_there)


def is_allowed(server: McpServer, name: str) -> bool:
    """Say whether a server's tool may be used at all."""
    return any(fnmatchcase(name, each) for each in server.allow) and not any(
        fnmatchcase(name, each) for each in server.deny
    )


def spec_of(server_name: str, server: McpServer, tool: Definition) -> ToolSpec:
    """Return a tool as it is offered, under a name that providers of models take."""
    prefix = f"{server_name}_" if server.prefix is None else server.prefix
    said = f"It says of it: {tool.description}" if tool.description else "It says nothing of it."
    return ToolSpec(
        name=name_of(f"{prefix}{tool.name}"),
        description=f"{tool.name} of the MCP server {server_name}. {said}",
        parameters=tool.parameters,
        effects=tool.effects(is_trusted=server.trust_annotations),
    )


def name_of(name: str) -> str:
    """Return a name that providers of models take; where it is not the same, its digest ends it."""
    plain = _OTHER.sub("_", name)
    if plain == name and len(name) <= MAX_NAME_CHARS:
        return name
    end = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{plain[: MAX_NAME_CHARS - len(end)]}{end}"


def digest_of(tools: Iterable[KnownTool]) -> str | None:
    """Return what stands for all that is held back, as it is now."""
    held = [[each.name, each.accepted, each.pending] for each in tools if each.pending]
    return hashlib.sha256(_ORDERED.encode(sorted(held, key=_first))).hexdigest() if held else None


def _first(row: list[Any]) -> str:
    return str(row[0])


def diff_of(tool: KnownTool) -> str | None:
    """Show what has changed of a tool that is held back."""
    if tool.pending is None:
        return None
    lines = difflib.unified_diff(
        _lines(tool.accepted), _lines(tool.pending), "accepted", "now", lineterm="", n=2
    )
    return cleaned("\n".join(lines), MAX_DIFF_CHARS)


def _lines(definition: Definition | None) -> list[str]:
    if definition is None:
        return []
    shown = msgspec.to_builtins(definition)
    text = msgspec.json.format(_ORDERED.encode(shown), indent=2).decode()
    return text.replace("\\n", "\n    ").splitlines()
