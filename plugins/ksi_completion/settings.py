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
        output_retries: How often a model is told that its answer does not fit the turn's
            ``output_schema``, and asked again.
        max_depth: How many turns may wait for one another, each asked for within the one before.
        max_parallel_tools: Tool calls without effects that one turn makes at once.
        patience_s: How long a turn goes on trying when no model answers.
        cancel_wait_s: How long who cancels a turn waits for its end; it ends later, too.
        retry_s: How long after a model call that failed the next one is tried.
        sweep_s: How often turns are looked for that nobody has taken on.
        stream_buffer_bytes: How much of a turn's stream is kept in memory for who reads slowly;
            what was before is read from the conversation.
        max_streams: Streams that this daemon serves at once.
        max_context_tokens: Tokens that a model is sent at most, however large its window; 0 is no
            bound of one's own.
        max_added_tokens: Of them what plugins may add to the system prompt.
        context_timeout_s: How long a plugin may take to say what it adds.
        summary_after_tokens: From how many tokens on what falls out of a model's window is summed
            up; 0 is never.
        summary_model: Which model sums up; the conversation's own unless given, and
            ``builtin/extractive`` to ask none.
        summary_tokens: How long a summary may be.
        summary_timeout_s: How long a model may take to sum up.
        max_import_messages: Messages of a conversation that is brought in.
        max_import_bytes: Size of its messages.
        gather_s: For how long text is gathered after each chunk of a stream; 0 is not at all.
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
    output_retries: Annotated[int, Meta(ge=0)] = 2
    max_depth: Annotated[int, Meta(ge=0)] = 5
    max_parallel_tools: Positive = 8
    patience_s: Seconds = 120.0
    cancel_wait_s: Seconds = 2.0
    retry_s: Annotated[float, Meta(gt=0)] = 2.0
    sweep_s: Annotated[float, Meta(gt=0)] = 2.0
    stream_buffer_bytes: Positive = 1024 * 1024
    max_streams: Positive = 2000
    gather_s: Seconds = 0.01
    relay_s: Annotated[float, Meta(gt=0)] = 0.05
    max_context_tokens: Annotated[int, Meta(ge=0)] = 200_000
    max_added_tokens: Annotated[int, Meta(ge=0)] = 4000
    context_timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    summary_after_tokens: Annotated[int, Meta(ge=0)] = 2000
    summary_model: Annotated[str, Meta(max_length=200)] = ""
    summary_tokens: Annotated[int, Meta(ge=100)] = 1000
    summary_timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    max_import_messages: Positive = 100_000
    max_import_bytes: Positive = 64 * 1024 * 1024
