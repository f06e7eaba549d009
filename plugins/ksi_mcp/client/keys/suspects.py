"""Tells what looks like a secret in what is said of a server: it is neither kept nor shown."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, TypeAlias

from ksi_daemon.protocol import InvalidData
from ksi_mcp.client.keys.references import HOLE, MASK, without_references
from ksi_mcp.events import McpServer

Span: TypeAlias = tuple[int, int]  # where in a text it begins and ends
Part: TypeAlias = tuple[str, str, str]  # what it is called to people, its name, its text

# Names are looked at word by word, however they are written: X-Auth, tavilyApiKey, DB_PASS.
_BOUNDARY: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_SECRET_NAME: Final = re.compile(
    r"(?:^|_)(?:api|access|private|secret)?key(?:_|$)"
    r"|(?:^|_)(?:auth|authorization|cookie|dsn|jwt|bearer|pass|pat|pwd|pw|sig|signature)(?:_|$)"
    r"|token(?!s|iz)|secret|passw|passphrase|credential"
)
# What ends the name of something else: TOKEN_URL, KEY_FILE.
_OF_SOMETHING_ELSE: Final = re.compile(
    r"_(?:count|dir|directory|file|header|limit|method|mode|name|path|size|type|uri|url|version)$"
)
# Switches, small numbers, and paths of files that have an ending.
_HARMLESS: Final = re.compile(
    r"(?i:true|false|yes|no|none)|\d{0,5}|[~.]{0,2}(?:/[\w.@-]+)+\.\w{1,8}"
)
_BETWEEN: Final = re.compile(r'[\s=:;,"]+')
_SCHEME: Final = re.compile(r"[A-Za-z]{1,16}")  # such as "Bearer"
_NAME: Final = re.compile(r"""(?<![\w./-])([\w.-]+)["']?\s{0,3}[=:]\s{0,3}["']?""")
_SCHEMES: Final = re.compile(r"(?:Bearer|Basic|Token|Bot)\s{1,3}(?=\S)", re.IGNORECASE)
_VALUE: Final = re.compile(r"""(?:(?:Bearer|Basic|Token|Bot)\s{1,3})?[^\s"'&;,}]+""", re.IGNORECASE)
_USER: Final = re.compile(
    r"(?<![A-Za-z])([A-Za-z][A-Za-z0-9+.-]{0,20})://([^\s/?#@:]*):?([^\s/?#]*)@"
)
# As the best known givers of keys make them; and what is long and mixed as no name is.
_TOKEN: Final = re.compile(
    r"\b(?:sk|pk|rk|gh[oprsu]|github_pat|glpat|xox[abeoprs]|hf|npm|pypi|tvly|ntn|lin_api)"
    r"[-_][A-Za-z0-9_-]{6,}"
    r"|\b(?:AKIA|ASIA|AIza|eyJ)[A-Za-z0-9_-]{12,}"
    r"|\b(?:Bearer|Basic)\s{1,3}[^\s\"'\0]+"
    r"|\b(?=[A-Za-z]{0,99}\d)(?=[a-z0-9]{0,99}[A-Z])(?=[A-Z0-9]{0,99}[a-z])[A-Za-z0-9]{24,}"
)


def check_named(server: McpServer) -> None:
    """Refuse secrets themselves, which are to be named: what is kept can be read.

    Raises:
        InvalidData: Something looks like one.
    """
    for what, name, text in (*_variables(server), *_headers(server), *_address(server)):
        if secrets_in(name, text):
            raise InvalidData(
                f"{what} has what looks like a secret, which is not kept: name where it is, as "
                "${env:NAME}, ${file:PATH} or ${keyring:NAME}, with nothing secret beside that"
            )


def secrets_in(name: str, text: str) -> list[str]:
    """Return what looks like a secret in a text that has a name, or none."""
    return [text[start:end] for start, end in _spans(name, without_references(text))]


def literal_secrets(server: McpServer) -> list[str]:
    """Return what looks like a secret in all that is said of a server, and names none."""
    parts = (*_variables(server), *_headers(server), *_address(server))
    return [each for _, name, text in parts for each in secrets_in(name, text)]


def target_of(server: McpServer) -> str:
    """Return a server's command or URL, as anybody may read it."""
    shown = [_masked(name, text) for _, name, text in _address(server)]
    return " ".join((server.command, *shown) if server.command else shown)


def _variables(server: McpServer) -> Iterator[Part]:
    for name, value in server.variables.items():
        yield f"the variable {name}", name, value


def _headers(server: McpServer) -> Iterator[Part]:
    for name, value in server.headers.items():
        yield f"the header {name}", name, value


def _address(server: McpServer) -> Iterator[Part]:
    if server.url:
        yield "the URL", "", server.url
    for before, each in pairwise(("", *server.args)):
        if before.startswith("-") and "=" not in before and not each.startswith("-"):
            yield f"the argument of {before}", before, each
        else:
            yield "an argument", "", each


def _masked(name: str, text: str) -> str:
    for start, end in sorted(_spans(name, without_references(text)), reverse=True):
        text = f"{text[:start]}{MASK}{text[end:]}"
    return text


def _spans(name: str, bare: str) -> list[Span]:
    """Return where secrets are in a text whose references are holes; none within another."""
    if _is_secret_name(name) and not _is_fine(bare):
        return [_without_scheme(bare, 0, len(bare))]
    found: list[Span] = []
    for span in sorted((*_users(bare), *_named(bare), *_tokens(bare))):
        start, end = _without_scheme(bare, *span)
        if not found or start >= found[-1][1]:
            found.append((start, end))
        else:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
    return found


def _without_scheme(bare: str, start: int, end: int) -> Span:
    scheme = _SCHEMES.match(bare, start, end)
    return (scheme.end() if scheme else start), end


def _is_secret_name(name: str) -> bool:
    words = _BOUNDARY.sub("_", name).strip("_").lower()
    return bool(_SECRET_NAME.search(words)) and not _OF_SOMETHING_ELSE.search(words)


def _is_fine(bare: str) -> bool:
    """Say whether a value of a secret's name is none, or has nothing but references and words."""
    if _HARMLESS.fullmatch(bare):
        return True
    pieces = [each for each in _BETWEEN.split(bare) if each]
    words = [each for each in pieces if each.strip(HOLE)]
    return len(words) < len(pieces) and all(map(_SCHEME.fullmatch, words))


def _users(bare: str) -> Iterator[Span]:
    """Yield passwords in URLs; who stands alone before the host of a web page is one as well."""
    for found in _USER.finditer(bare):
        is_web = found[1].lower().endswith(("http", "https"))
        which = 3 if found[3] else 2
        if (which == 3 or is_web) and found[which].strip(HOLE):
            yield found.span(which)


def _named(bare: str) -> Iterator[Span]:
    """Yield what stands behind names of secrets, as in ``--api-key=…`` or ``?key=…``."""
    at = 0
    while found := _NAME.search(bare, at):
        at = found.end()
        value = _VALUE.match(bare, at) if _is_secret_name(found[1]) else None
        if value:
            at = value.end()
            if not _is_fine(value[0]):
                yield value.span()


def _tokens(bare: str) -> Iterator[Span]:
    return (found.span() for found in _TOKEN.finditer(bare))
