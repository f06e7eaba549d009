"""The section ``[mcp]``."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds
from ksi_mcp.events import McpServer, ServerName

Above = Annotated[float, Meta(gt=0)]


class McpSettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How KSI is reached by, and reaches, other programs that speak MCP.

    Attributes:
        lists_events: Whether each event that may be reached from outside is a tool of its own for
            other programs; they reach it by ``look`` and ``action`` in any case.
        page_size: How many tools, resources or prompts other programs are told at once.
        max_sessions: Sessions of other programs at once.
        max_sessions_per_key: Sessions of one key at once; one more takes the place of the one that
            has idled longest.
        session_idle_s: After how long without a request a session is ended.
        ask_timeout_s: How long a person may take to answer what a tool asks by another program, or
            another program's tool in the middle of a call.
        servers: Programs whose tools agents can call, by name: ``[mcp.servers.NAME]``.
        max_servers: How many one tenant may add besides.
        accept_new: Whether tools that a server has later may be used at once; what changes is held
            back in any case until it is accepted.
        connect_timeout_s: How long a server may take to start, and to say which tools it has.
        call_timeout_s: How long a call of a server's tool may take.
        idle_s: After how long without a call a server is left, or ended.
        retry_s: How long is waited after a server failed; twice as long each time.
        max_retry_s: How long is waited at most.
        max_connected: Servers that are connected at once; one that idles makes room for another.
        first_at_once: How many servers of which nothing is known are asked at once at the start.
        max_tools: How many tools one server may have.
        max_schema_bytes: How large the schema of one tool may be.
        max_description_chars: How much of a tool's description models are told.
        max_result_bytes: How large a message of a server may be; what is larger is thrown away.
        max_result_values: How many values a message of a server may have, as JSON: each takes time,
            in which nothing else is done.
        max_tools_bytes: How large all that one server says of its tools may be.
        max_messages_per_s: How many notifications of a server are taken in a second; a server that
            sends more is read more slowly.
    """

    lists_events: bool = True
    page_size: Annotated[int, Meta(ge=1, le=1000)] = 250
    max_sessions: Positive = 1000
    max_sessions_per_key: Positive = 100
    session_idle_s: Above = 1800.0
    ask_timeout_s: Above = 600.0
    servers: dict[ServerName, McpServer] = {}
    max_servers: Positive = 100
    accept_new: bool = True
    connect_timeout_s: Above = 30.0
    call_timeout_s: Above = 120.0
    idle_s: Above = 300.0
    retry_s: Seconds = 1.0
    max_retry_s: Seconds = 300.0
    max_connected: Positive = 32
    first_at_once: Positive = 2
    max_tools: Positive = 500
    max_schema_bytes: Positive = 65_536
    max_description_chars: Positive = 4_000
    max_result_bytes: Positive = 4_194_304
    max_result_values: Positive = 100_000
    max_tools_bytes: Positive = 1_048_576
    max_messages_per_s: Positive = 200
