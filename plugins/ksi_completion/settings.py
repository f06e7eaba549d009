"""The settings of the conversations and their turns."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds


class CompletionSettings(Struct, frozen=True, kw_only=True):
    """The section ``[completion]``.

    Attributes:
        max_waiting_turns: Turns that wait in one conversation; injected messages likewise.
        max_messages: Messages that one turn may be asked with.
        max_steps: Model calls of one turn.
        max_tool_calls: Tool calls of one turn.
        max_turn_tokens: Tokens that one turn takes, read and written; 0 is no bound.
        max_turn_usd: What one turn may cost, as far as prices are known; 0 is no bound.
        max_turn_s: How long a turn may take from its beginning on, without what it waits for a
            person; a turn's own ``timeout_s`` may be less.
        max_repeats: How often a turn may make the same tool call, or say the same.
        max_depth: How many turns may wait for one another, each asked for within the one before.
        max_parallel_tools: Tool calls without effects that one turn makes at once.
        patience_s: How long a turn goes on trying when no model answers.
        cancel_wait_s: How long who cancels a turn waits for its end; it ends later, too.
        retry_s: How long after a model call that failed the next one is tried.
        sweep_s: How often turns are looked for that nobody has taken on.
        stream_buffer_bytes: How much of a turn's stream is kept in memory for who reads slowly;
            what was before is read from the conversation.
        max_streams: Streams that this daemon serves at once.
        relay_s: How often what a turn says is handed to other daemons where somebody follows it.
    """

    max_waiting_turns: Positive = 100
    max_messages: Positive = 1000
    max_steps: Positive = 50
    max_tool_calls: Positive = 200
    max_turn_tokens: Annotated[int, Meta(ge=0)] = 5_000_000
    max_turn_usd: Annotated[float, Meta(ge=0)] = 0.0
    max_turn_s: Annotated[float, Meta(gt=0)] = 3600.0
    max_repeats: Positive = 10
    max_depth: Annotated[int, Meta(ge=0)] = 5
    max_parallel_tools: Positive = 8
    patience_s: Seconds = 120.0
    cancel_wait_s: Seconds = 2.0
    retry_s: Annotated[float, Meta(gt=0)] = 2.0
    sweep_s: Annotated[float, Meta(gt=0)] = 2.0
    stream_buffer_bytes: Positive = 1024 * 1024
    max_streams: Positive = 2000
    relay_s: Annotated[float, Meta(gt=0)] = 0.05
