"""What a tool has to do with the program that calls it by MCP."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import Unavailable
from ksi_daemon.protocol.wire import DECODE_ERRORS
from ksi_mcp import blocks
from ksi_tools.api import Output

MAX_LOGGED: Final = 200
MARK: Final = "mcp_asks"
MAX_MARK_CHARS: Final = 100

Level = Literal["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
Log = Callable[[Level, Any], None]


class Content(Output, frozen=True, kw_only=True, omit_defaults=True):
    """What a tool returned, as blocks of MCP; models are told the texts, and what else there is.

    Attributes:
        blocks: Texts, images, sounds and resources, each as MCP has it in JSON.
        structured: The same as an object.
        is_error: Whether it tells that the tool failed.
    """

    blocks: list[dict[str, Any]] = msgspec.field(name="mcp_content")
    structured: dict[str, Any] | None = None
    is_error: bool = False

    def shown(self) -> str:
        """Return what models are told of it."""
        return "\n".join(map(blocks.told_of, self.blocks))


class Asks(Struct, frozen=True):
    """What a tool wants to know before it does anything.

    Attributes:
        requests: By a name of the tool's own, requests as MCP has them: ``method`` and ``params``.
        state: What the tool wants back with the answers; the other program can't read or change it.
    """

    requests: dict[str, dict[str, Any]]
    state: str | None = None


class Exchange:
    """A call by another program, as the tool sees it.

    Args:
        capabilities: What that program can do, as MCP has it.
        answers: What it answered to what the tool asked, by the tool's names for it; ``None``
            where nothing was asked yet.
        state: What the tool wanted back with the answers.
        log: Tells it something.
    """

    def __init__(
        self,
        capabilities: dict[str, Any],
        answers: dict[str, Any] | None = None,
        state: str | None = None,
        log: Log | None = None,
    ) -> None:
        self.capabilities = capabilities
        self.answers = answers
        self.state = state
        self._log = log
        self._logged = 0
        self._asked: dict[str, Asks] = {}

    def log(self, level: Level, data: Any) -> None:
        """Tell the program something while the tool runs; past a bound nothing more is told."""
        self._logged += 1
        if self._log is not None and self._logged <= MAX_LOGGED:
            self._log(level, data)

    def ask(self, asks: Asks) -> dict[str, str]:
        """Return what the tool is to return so that the program is asked."""
        mark = secrets.token_hex(16)
        self._asked[mark] = asks
        return {MARK: mark}

    def asked(self, content: str) -> Asks | None:
        """Return what is asked by a tool that returned this, and ``None`` where nothing is.

        Nobody but the tool can have asked: the mark is of this call alone, and never leaves it.
        """
        if not self._asked or len(content) > MAX_MARK_CHARS:
            return None
        try:
            return self.asked_in(msgspec.json.decode(content))
        except DECODE_ERRORS:
            return None

    def asked_in(self, result: Any) -> Asks | None:
        """Return the same for what was returned before it was made text."""
        mark = result.get(MARK) if isinstance(result, dict) else None
        return self._asked.get(mark) if isinstance(mark, str) else None


_EXCHANGE: Final[ContextVar[Exchange | None]] = ContextVar("ksi_mcp_exchange", default=None)


def current_exchange() -> Exchange | None:
    """Return the call that runs; ``None`` where no other program makes it."""
    return _EXCHANGE.get()


@contextmanager
def exchanging(exchange: Exchange) -> Iterator[Exchange]:
    """Have what is called within see this exchange."""
    token = _EXCHANGE.set(exchange)
    try:
        yield exchange
    finally:
        _EXCHANGE.reset(token)


def asking(state: str | None = None, /, **requests: dict[str, Any]) -> dict[str, str]:
    """Return what a tool returns that wants to know something before it does anything.

    Args:
        state: What the tool wants back with the answers.
        requests: What it asks, each with ``method`` and ``params``.

    Raises:
        Unavailable: No other program calls the tool, so nobody could answer.
    """
    exchange = current_exchange()
    if exchange is None:
        raise Unavailable("this tool asks the program that calls it by MCP, and none does")
    return exchange.ask(Asks(requests, state))
