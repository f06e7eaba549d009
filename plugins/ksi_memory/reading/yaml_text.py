"""Reads YAML that may be hostile, and tells people why it can't be read."""

from typing import Any

from ksi_daemon import yaml_text
from ksi_memory.reading.document import Unreadable

__all__ = ["read_yaml"]


def read_yaml(text: str) -> list[Any]:
    """Return the documents of a YAML text, as plain values.

    Raises:
        Unreadable: It is no YAML, is nested too deeply, or comes to too much.
    """
    try:
        return yaml_text.read_yaml(text)
    except yaml_text.BadYaml as error:
        raise Unreadable(str(error)) from error
