"""Reads what a person means who says where a server is: a URL, or the words of a command."""

import contextlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ksi_cli.output import UsageError

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WEB: Final = re.compile(r"https?://")
_FOLDERS: Final = (".", "..")


def read_target(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return a URL, or nothing, and the words of a command with the files in them found from here.

    Raises:
        UsageError: It can be neither.
    """
    first = words[0]
    if _WEB.match(first):
        if len(words) > 1:
            raise UsageError("a URL has no arguments")
        return first, []
    if _SCHEME.match(first):
        raise UsageError(f"{first} is no address of a server: one begins with https:// or http://")
    if len(words) == 1 and not shutil.which(first) and not _is_there(first):
        _refuse_what_is_no_command(first)
    return "", [_whole(first) if "/" in first else first, *map(_whole, words[1:])]


def _refuse_what_is_no_command(word: str) -> None:
    if re.search(r"\s", word):
        raise UsageError(
            "a command and its arguments are words of their own, without quotation marks around "
            "them all: ksi mcp add NAME -- python server.py"
        )
    if "/" in word or ":" in word:
        raise UsageError(f"there is no {word} here; a URL begins with https:// or http://")


def _whole(word: str) -> str:
    """Return a word with the whole path where it names what is here: it is run elsewhere."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    is_path = value in _FOLDERS or ("/" in value and _is_there(value)) or _is_file(value)
    if not is_path or value.startswith("/"):
        return word
    return f"{option}{equals}{Path(value).absolute()}"


def _is_there(word: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # what is too long is no path
        return Path(word).exists()
    return False


def _is_file(word: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return Path(word).is_file()
    return False
