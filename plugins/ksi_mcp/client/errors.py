"""What may go wrong between a server and us, by whether the server has got the request."""

import secrets
from typing import Final

# What our transports say in the server's place, by codes that JSON-RPC leaves to applications. A
# server is never told them, and can't guess them: none can say so itself.
_FIRST: Final = -100_000 - secrets.randbelow(2_000_000_000)
NOT_SENT: Final = _FIRST  # it has not got the request
REFUSED: Final = _FIRST - 1  # it did not take it
GONE: Final = _FIRST - 2  # it doesn't know our session any more, and did not take it
LOST: Final = _FIRST - 3  # it may have got it


class NotSentError(Exception):
    """The server has not got the request: nothing was done, and it may be sent again."""


class AnswerError(Exception):
    """The server has got the request, and said that it can't be done."""


class LostError(Exception):
    """Nobody knows what came of the request."""
