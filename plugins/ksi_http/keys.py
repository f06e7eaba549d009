"""What a key looks like, and the one that a home has for its owner."""

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Final

from msgspec import Struct

from ksi_daemon.principals import write_private

PREFIX: Final = "ksi_key_"
MAX_CHARACTERS: Final = 200
HOME_KEY: Final = "http.key"
_KEY: Final = re.compile(rf"{PREFIX}([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")


class Presented(Struct, frozen=True):
    """A key as it is shown: its id, and the hash of the whole."""

    id: str
    digest: str


def make() -> str:
    """Make a key; its secret has 256 random bits, so one round of SHA-256 is enough to keep it."""
    return f"{PREFIX}{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def read(text: str) -> Presented | None:
    """Take a key apart; ``None`` where it is none."""
    found = _KEY.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    return None if found is None else Presented(found[1], hashlib.sha256(text.encode()).hexdigest())


def is_same(digest: str, kept: str | None) -> bool:
    """Compare hashes in a time that does not depend on them; also where none is kept."""
    return hmac.compare_digest(digest, kept or "0" * 64) and kept is not None


def home_key(home: Path) -> str | None:
    """Return the key of a home's owner; ``None`` where there is none yet."""
    try:
        return (home / HOME_KEY).read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def keep_home_key(home: Path, key: str) -> None:
    """Write it, for nobody else to read."""
    write_private(home / HOME_KEY, f"{key}\n".encode())
