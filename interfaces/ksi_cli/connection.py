"""Connects a command to the daemon."""

from ksi_cli.output import NotRunning, UsageError
from ksi_client import Client, Unavailable
from ksi_client.sync import inherited_token


def connect(*, timeout_s: float | None = 300.0) -> Client:
    """Connect to the daemon of ``KSI_HOME``, as whom the file of ``KSI_TOKEN_FILE`` says.

    Raises:
        NotRunning: No daemon listens.
        UsageError: The token's file can't be read.
    """
    try:
        token = inherited_token()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token's file, KSI_TOKEN_FILE, can't be read: {error}") from error
    try:
        return Client(token=token, timeout_s=timeout_s)
    except Unavailable as error:
        if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
            raise NotRunning(error.message, retry_after_s=error.retry_after_s) from error
        raise
