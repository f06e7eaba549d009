"""The sessions of the older protocol: whose they are, and which of their requests have no answer.

The SDK leaves to its users what must hold between requests: that no two of one session have the
same id at a time, also where the client of the first has gone, and how many sessions a key has.
"""

import math
from typing import Any, Final

from mcp.server.auth.middleware.bearer_auth import (
    AuthenticatedUser,
    AuthorizationContext,
    authorization_context,
)
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import GET_STREAM_KEY, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from msgspec import Struct

from ksi_daemon.protocol import Busy
from ksi_mcp.events import McpServing
from ksi_mcp.server.replay import Replay
from ksi_mcp.server.under_way import UnderWay

BUSY_S: Final = 60.0
RETRY_MS: Final = 1000  # after which time a client is to take up a stream that was cut


class Session(Struct, frozen=True):
    """A session: how the SDK serves it, whose it is, and what of it is not answered."""

    transport: StreamableHTTPServerTransport
    owner: AuthorizationContext | None
    under_way: UnderWay

    def idle_until(self) -> float:
        """Return when it would be ended; never while it is used."""
        scope = self.transport.idle_scope
        return math.inf if scope is None else scope.deadline

    def end(self) -> None:
        """End it, as if it had idled for too long."""
        if self.transport.idle_scope is not None:
            self.transport.idle_scope.cancel()


class Sessions(StreamableHTTPSessionManager):
    """The SDK's sessions, bounded for each key.

    Args:
        server: What serves them.
        settings: How KSI is offered.
        max_body_bytes: How large a message may be.
    """

    def __init__(self, server: Server[Any], settings: McpServing, max_body_bytes: int) -> None:
        super().__init__(
            server,
            session_idle_timeout=settings.session_idle_s,
            max_request_body_size=max_body_bytes,
            max_sessions=settings.max_sessions,
            retry_interval=RETRY_MS,
        )
        self._settings = settings
        self._sessions: dict[str, Session] = {}

    def under_way(self, session_id: str, user: AuthenticatedUser) -> UnderWay | None:
        """Return the requests of a session; ``None`` where a user has no such session."""
        session = self._sessions.get(session_id)
        if session is None or session.owner != authorization_context(user):
            return None  # which the SDK tells
        return session.under_way

    def _admit_session(
        self, requestor: AuthorizationContext | None
    ) -> StreamableHTTPServerTransport | None:
        """Open a session, with a memory of its own of what it is told.

        Raises:
            Busy: There are too many.
        """
        self._make_room(requestor)
        under_way = UnderWay()
        under_way.begin(GET_STREAM_KEY)  # by which the SDK knows what is told without being asked
        self.event_store = Replay(under_way.answered)  # nobody else opens one meanwhile
        transport = super()._admit_session(requestor)
        if transport is not None and transport.mcp_session_id is not None:
            session = Session(transport, requestor, under_way)
            self._sessions[transport.mcp_session_id] = session
        return transport

    def _make_room(self, owner: AuthorizationContext | None) -> None:
        settings = self._settings
        own = {name: each for name, each in self._sessions.items() if each.owner == owner}
        if len(own) >= settings.max_sessions_per_key:
            name, idlest = min(own.items(), key=lambda each: each[1].idle_until())
            if idlest.idle_until() == math.inf:
                bound = f"a key may have {settings.max_sessions_per_key} sessions"
                raise Busy(f"{bound} (mcp.max_sessions_per_key)", retry_after_s=BUSY_S)
            self._forget(name)
            idlest.end()
        if len(self._sessions) >= settings.max_sessions:
            bound = f"{settings.max_sessions} sessions are open (mcp.max_sessions)"
            raise Busy(bound, retry_after_s=BUSY_S)

    async def _discard_session(
        self, session_id: str, transport: StreamableHTTPServerTransport
    ) -> None:
        """Forget a session, however it ended."""
        self._forget(session_id)
        await super()._discard_session(session_id, transport)

    def _forget(self, session_id: str) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.under_way.end()
