"""What may go wrong between a server and us, by whether the server has got the request."""

from typing import Final

# JSON-RPC leaves these to applications. What our transports say in the server's place:
NOT_SENT: Final = -39001  # it has not got the request
REFUSED: Final = -39002  # it did not take it
GONE: Final = -39003  # it doesn't know our session any more, and did not take it
LOST: Final = -39004  # it may have got it


class NotSentError(Exception):
    """The server has not got the request: nothing was done, and it may be sent again."""


class AnswerError(Exception):
    """The server has got the request, and said that it can't be done."""


class LostError(Exception):
    """Nobody knows what came of the request."""
