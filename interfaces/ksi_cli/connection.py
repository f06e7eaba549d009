"""Connects a command to the daemon."""

import os
from pathlib import Path

from ksi_cli.output import NotRunning, UsageError
from ksi_client import Client, Unavailable


def connect(*, timeout_s: float | None = 300.0) -> Client:
    """Connect to the daemon of ``KSI_HOME``, as whom the file of ``KSI_TOKEN_FILE`` says.

    Raises:
        NotRunning: No daemon listens.
        UsageError: The token's file can't be read.
    """
    token = inherited_token()
    try:
        return Client(token=token, timeout_s=timeout_s)
    except Unavailable as error:
        if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
            raise NotRunning(error.message, retry_after_s=error.retry_after_s) from error
        raise


def inherited_token() -> str | None:
    """Return the token in the file that ``KSI_TOKEN_FILE`` names, if it names one."""
    path = os.environ.get("KSI_TOKEN_FILE")
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"KSI_TOKEN_FILE can't be read: {error}") from error
