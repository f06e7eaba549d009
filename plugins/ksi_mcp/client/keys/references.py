"""Looks up the secrets that servers are handed: settings name where they are."""

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ksi_daemon.protocol import Unavailable
from ksi_models.api import ask_keyring

MAX_BYTES: Final = 16 * 1024
KEYRING_TIMEOUT_S: Final = 5.0
MASK: Final = "********"
HOLE: Final = "\0"
MIN_SECRET: Final = 6  # what is shorter would mask half of any text
_REFERENCE: Final = re.compile(r"\$\{(env|file|keyring):([^}\n]{1,500})\}")


def without_references(text: str) -> str:
    """Return a text of the same length, with nothing but holes in the place of references."""
    return _REFERENCE.sub(lambda found: HOLE * len(found[0]), text)


class Secrets:
    """Fills in the secrets of one connection, and knows afterwards which were handed over."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __bool__(self) -> bool:
        """Whether any were."""
        return bool(self._given)

    def note(self, *secrets: str | None) -> None:
        """Mask these as well: they are handed over another way."""
        for secret in secrets:
            lines = (secret or "").splitlines()  # a key may have several
            self._given.update(line.strip() for line in lines if len(line.strip()) >= MIN_SECRET)

    async def filled(self, name: str, text: str, *, in_url: bool = False) -> str:
        """Return a text with the secrets that it names in their place.

        Args:
            name: What the text is, for people.
            text: It.
            in_url: Whether they stand in a URL, and are to be written as it is done there.

        Raises:
            Unavailable: One is not there.
        """
        made, end = "", 0
        for found in _REFERENCE.finditer(text):
            secret = await _secret(found[1], found[2])
            if secret is None:
                where = " in the daemon's environment" if found[1] == "env" else ""
                raise Unavailable(f"{name}: there is nothing at {found[0]}{where}")
            written = quote(secret, safe="") if in_url else secret
            self.note(secret, written)
            made += text[end : found.start()] + written
            end = found.end()
        return made + text[end:]

    async def all_filled(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return values with the secrets that they name in their place.

        Raises:
            Unavailable: One is not there.
        """
        return {name: await self.filled(name, value) for name, value in values.items()}

    def masked(self, text: str) -> str:
        """Return a text in which nothing stands any more that was handed over."""
        for secret in sorted(self._given, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return text

    def masked_all(self, told: Any) -> Any:
        """Return JSON whose texts, names too, are masked."""
        if isinstance(told, str):
            return self.masked(told)
        if isinstance(told, list):
            return [self.masked_all(each) for each in told]
        if isinstance(told, dict):
            return {self.masked(name): self.masked_all(each) for name, each in told.items()}
        return told


async def _secret(kind: str, where: str) -> str | None:
    if kind == "env":
        return os.environ.get(where, "").strip() or None
    if kind == "file":
        return await asyncio.to_thread(_of_file, where)
    return await _of_keyring(where)


def _of_file(path: str) -> str | None:
    try:
        with Path(path).expanduser().open("rb") as stream:
            return stream.read(MAX_BYTES).decode().strip() or None
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None


async def _of_keyring(name: str) -> str | None:
    with contextlib.suppress(TimeoutError):
        return await ask_keyring(name, KEYRING_TIMEOUT_S)
    return None
