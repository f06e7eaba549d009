"""Where somebody has logged in with a server: a file each, for nobody else to read."""

import os
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

MAX_BYTES: Final = 256 * 1024
EARLY_S: Final = 30.0


class Login(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was agreed upon with a server.

    Attributes:
        url: The server's: nobody else gets the token.
        access_token: What is sent with each request.
        refresh_token: What a new one is had for.
        expires_at: Until when the token is valid, in seconds since 1970; 0 is not known.
        token_endpoint: Where a new one is had.
        client_id: As whom we are known there.
        client_secret: What shows that it's us.
        client_method: How that is shown: ``none``, ``client_secret_post`` or
            ``client_secret_basic``.
    """

    url: str
    access_token: str
    refresh_token: str | None = None
    expires_at: float = 0.0
    token_endpoint: str | None = None
    client_id: str = ""
    client_secret: str | None = None
    client_method: str = "none"

    @property
    def is_expiring(self) -> bool:
        """Whether a new token is to be had before the next request."""
        return bool(self.expires_at) and time.time() > self.expires_at - EARLY_S

    @property
    def can_be_renewed(self) -> bool:
        """Whether a new token can be had without a person."""
        return self.refresh_token is not None and self.token_endpoint is not None


def read(file: Path, url: str) -> Login | None:
    """Return the login with a server, if there is one."""
    try:
        with file.open("rb") as stream:
            found = msgspec.json.decode(stream.read(MAX_BYTES), type=Login)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.url == url else None


def write(file: Path, login: Login) -> None:
    """Keep a login; whoever reads at the same time sees the old one or the new one whole."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}.")  # it is made 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(msgspec.json.encode(login))
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
