"""Makes the JSON Schema of definitions, for editors."""

import inspect
import re
from functools import cache
from typing import Any, Final

import msgspec

from ksi_agents.definition import Definition, Limits, Memory, Probe, Restart, Wake
from ksi_daemon.schemas import with_common_patterns
from ksi_models.events import ModelSettings

__all__ = ["json_schema"]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
STRUCTS: Final = (Definition, Limits, Memory, ModelSettings, Probe, Restart, Wake)

_ATTRIBUTE: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


@cache
def json_schema() -> dict[str, Any]:
    """Return the schema of a definition, as YAML, JSON or front matter.

    What a field is for is told where an editor shows it.
    """
    schema = with_common_patterns(msgspec.json.schema(Definition))
    parts: dict[str, Any] = schema["$defs"]
    for struct in STRUCTS:
        _describe(parts[struct.__name__], inspect.getdoc(struct) or "")
    top = parts.pop("Definition")
    return {"$schema": DIALECT, **top, "title": "An agent of KSI", "$defs": parts}


def _describe(part: dict[str, Any], doc: str) -> None:
    part["additionalProperties"] = False
    part["description"] = " ".join(doc.partition("\n\n")[0].split()).replace("``", "`")
    for name, text in _ATTRIBUTE.findall(doc):
        told = " ".join(text.split()).replace("``", "`")
        part["properties"][name] = {**part["properties"][name], "description": told}
