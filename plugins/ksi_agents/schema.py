"""Makes the JSON Schema of definitions, for editors."""

from functools import cache
from typing import Any

from ksi_agents.definition import Definition
from ksi_daemon.document_schema import document_schema

__all__ = ["json_schema"]


@cache
def json_schema() -> dict[str, Any]:
    """Return the schema of a definition, as YAML, JSON or front matter.

    What a field is for is told where an editor shows it.
    """
    return document_schema(Definition, "An agent of KSI")
