"""The plugin that the benchmarks call; on ``sys.path`` of the daemon under test only."""

from msgspec import Struct

from ksi_daemon.event_system import event_handler


class Echo(Struct, frozen=True):
    """A short text, there and back."""

    text: str


@event_handler("bench:echo")
def echo(request: Echo) -> Echo:
    """Return what came, at once."""
    return request


@event_handler("bench:echo_async")
async def echo_async(request: Echo) -> Echo:
    """Return what came, from a coroutine."""
    return request


@event_handler("bench:fails")
def fails(request: Echo) -> Echo:
    """Break, as a plugin with a mistake does."""
    raise ValueError(request.text)
