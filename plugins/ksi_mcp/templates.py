"""The URIs of resources that are named by a template: ``ksi://agents/{name}``."""

import re
from functools import lru_cache
from typing import Final

MAX_URI: Final = 4000  # a key of 1,000 bytes has three characters for each
_VARIABLE: Final = re.compile(r"\{(\w+)\}")


@lru_cache(maxsize=256)
def pattern_of(template: str) -> re.Pattern[str]:
    """Return what matches a template's URIs; each variable is a part between slashes."""
    parts = _VARIABLE.split(template)
    made = (f"(?P<{part}>[^/]+)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
    return re.compile("".join(made))
