"""The settings of HTTP."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds

Port = Annotated[int, Meta(ge=0, le=65535)]
Texts = tuple[Annotated[str, Meta(min_length=1, max_length=300)], ...]


class HttpSettings(Struct, frozen=True, kw_only=True):
    """The section ``[http]``.

    Attributes:
        enabled: Whether the daemon runs the HTTP server, in a process of its own.
        host: The address that it listens on; ``0.0.0.0`` is all of this machine's.
        port: The port; 0 is any that is free, which the log tells.
        hosts: What requests may call this server besides the address that they came to: names,
            without a port.
        origins: Web pages of other servers that may use it, such as ``https://chat.example``.
        max_body_bytes: How large the body of a request may be, uploads apart.
        max_upload_bytes: How large a file may be that is uploaded; the memory has a bound, too.
        max_header_bytes: How long a line of the head of a request may be.
        max_headers: How many lines the head may have.
        header_timeout_s: How long the head of a request may take to come.
        body_timeout_s: How long the body may take to come.
        write_timeout_s: How long a client may read nothing of what waits for it.
        keep_alive_s: How long a connection may be idle between requests.
        request_timeout_s: How long an answer may take that is no stream.
        heartbeat_s: After how much silence a stream says that it is alive.
        max_connections: Connections at once.
        max_streams: Streams at once, in all.
        max_streams_per_key: Streams at once of one key.
        requests_per_s: Requests of one key in a second, over a longer time; 0 is no bound.
        request_burst: Requests of one key at a time, before that bound is felt.
        max_keys: Keys of one tenant that are valid.
        known_s: For how long the server trusts what the daemon has said of a key.
        knows_subagents: Whether front ends know AG-UI's sub-agents; otherwise they are told of them
            by the events ``child_content``, ``child_tool_start`` and ``child_tool_result``.
        event_agents: Which agent takes the events of a type, by globs over types, the first that
            matches; of what none matches ``general`` takes.
        raw_days: For how many days what comes with an event is kept as it came.
        resume_s: For how long a stream of events that was cut can be taken up without a gap.
        resume_events: How many events are kept for that, the oldest being lost first.
        min_compressed_bytes: From which size on answers are compressed; 0 is never.
    """

    enabled: bool = False
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Port = 8480
    hosts: Texts = ()
    origins: Texts = ()
    max_body_bytes: Positive = 4_000_000
    max_upload_bytes: Positive = 64 * 1024 * 1024
    max_header_bytes: Annotated[int, Meta(ge=256)] = 8190
    max_headers: Annotated[int, Meta(ge=8)] = 100
    header_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    body_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    write_timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    keep_alive_s: Annotated[float, Meta(gt=0)] = 75.0
    request_timeout_s: Annotated[float, Meta(gt=0)] = 300.0
    heartbeat_s: Annotated[float, Meta(gt=0)] = 15.0
    max_connections: Positive = 4000
    max_streams: Positive = 2000
    max_streams_per_key: Positive = 1000
    requests_per_s: Seconds = 100.0
    request_burst: Positive = 200
    max_keys: Positive = 1000
    known_s: Annotated[float, Meta(ge=0, le=5)] = 5.0
    knows_subagents: bool = True
    event_agents: dict[str, str] = {}
    raw_days: Positive = 30
    resume_s: Seconds = 60.0
    resume_events: Positive = 1000
    min_compressed_bytes: Annotated[int, Meta(ge=0)] = 1024
