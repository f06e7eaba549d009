"""Looks up the secrets that servers are handed: settings name where they are."""

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ksi_daemon.protocol import InvalidData, Unavailable

SERVICE: Final = "ksi"
MAX_BYTES: Final = 16 * 1024
KEYRING_TIMEOUT_S: Final = 5.0
MASK: Final = "********"
MIN_SECRET: Final = 6  # what is shorter would mask half of any text
_REFERENCE: Final = re.compile(r"\$\{(env|file|keyring):([^}\n]{1,500})\}")
_SECRET_NAME: Final = re.compile(
    r"authorization|cookie|token|secret|passw|credential|api[-_]?key|private[-_]?key|^key$",
    re.IGNORECASE,
)


def check_named(values: Mapping[str, str], what: str) -> None:
    """Refuse secrets themselves, which are to be named: what is kept can be read.

    Raises:
        InvalidData: A value looks like one.
    """
    for name, value in values.items():
        if _SECRET_NAME.search(name) and not _REFERENCE.search(value):
            raise InvalidData(
                f"{what} {name} looks like a secret, which is not kept: name where it is, as "
                "${env:NAME}, ${file:PATH} or ${keyring:NAME}"
            )


async def looked_up(values: Mapping[str, str]) -> dict[str, str]:
    """Return values with the secrets that they name in their place.

    Raises:
        Unavailable: One is not there.
    """
    return {name: await _filled(name, value) for name, value in values.items()}


async def _filled(name: str, value: str) -> str:
    made, end = "", 0
    for found in _REFERENCE.finditer(value):
        secret = await _secret(found[1], found[2])
        if secret is None:
            raise Unavailable(f"{name}: there is nothing at {found[0]}")
        made += value[end : found.start()] + secret
        end = found.end()
    return made + value[end:]


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
    """Ask in a thread of its own, which is left behind where a person is waited for."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str | None] = loop.create_future()

    def answered(found: str | None) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        found = None
        with contextlib.suppress(Exception):  # each of its many back ends raises what it likes
            import keyring  # noqa: PLC0415  late: it takes a while, and often nobody needs it

            found = keyring.get_password(SERVICE, name)
        with contextlib.suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(answered, found)

    threading.Thread(target=ask, name="keyring", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KEYRING_TIMEOUT_S):
            return await answer
    return None


def masked(text: str, given: Iterable[str]) -> str:
    """Return a text in which no value stands any more that was handed over."""
    for value in sorted(given, key=len, reverse=True):
        for word in (value, *value.split()):  # a header's "Bearer …"
            if len(word) >= MIN_SECRET:
                text = text.replace(word, MASK)
    return text
