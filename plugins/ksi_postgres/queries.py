"""Reads the SQL of a plugin's ``queries.sql``."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: ([a-z][a-z0-9_]*)$", re.MULTILINE)


def load_queries(package: str, file: str = "queries.sql") -> Mapping[str, str]:
    """Return a package's queries by name.

    The file is a row of blocks; each begins with a line ``-- name: what_it_is_called``, and a
    comment that says what the query answers.

    Raises:
        ValueError: Two blocks have one name, or there is none.
    """
    parts = _NAME.split((files(package) / file).read_text(encoding="utf-8"))
    names, texts = parts[1::2], [text.strip() for text in parts[2::2]]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{package}/{file}: every query has a name of its own")
    return dict(zip(names, texts, strict=True))
