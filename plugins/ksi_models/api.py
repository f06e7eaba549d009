"""What a plugin imports that asks a model and has no use for a stream, or runs a command.

from ksi_models.api import answer_of, text_of

call = ModelCall(messages=messages, purpose="weather", timeout_s=settings.model_timeout_s)
response = await answer_of(bus, call, setting="weather.model_timeout_s")
keep(text_of(response.message))

A `GuardedProcess` is a command that can't outlive the daemon. The service `Runtimes` has the
programs behind models that call tools by themselves, which a `ToolServer` gives them.
"""

import asyncio
from contextlib import aclosing

import msgspec

from ksi_daemon.bus import Bus
from ksi_daemon.protocol import Failed, TimedOut
from ksi_models.events import Message, ModelCall, ModelChunk, ModelResponse, TextPart
from ksi_models.keyrings import ask_keyring
from ksi_models.provider import Answered, Provider, ProviderError, Question
from ksi_models.providers.claude_messages import ActedAlone
from ksi_models.providers.guarded import Ended, GuardedProcess, ProcessBounds
from ksi_models.providers.tool_server import Answer, AskedCall, ToolServer

__all__ = [
    "ActedAlone",
    "Answer",
    "Answered",
    "AskedCall",
    "Ended",
    "GuardedProcess",
    "ProcessBounds",
    "Provider",
    "ProviderError",
    "Question",
    "ToolServer",
    "answer_of",
    "ask_keyring",
    "text_of",
]


async def answer_of(bus: Bus, call: ModelCall, *, setting: str) -> ModelResponse:
    """Have a model answer, and return its answer whole.

    Args:
        bus: Makes the call, which is an event like any other.
        call: What is asked; its ``timeout_s`` holds whoever answers it.
        setting: Where that time is set, for the error.

    Raises:
        TimedOut: It was not there in time.
        KsiError: There is none.
    """
    try:
        async with (
            asyncio.timeout(call.timeout_s),
            aclosing(bus.stream("model:call", call)) as chunks,
        ):
            async for chunk in chunks:
                # One that is served from elsewhere comes as plain data.
                whole = msgspec.convert(chunk, ModelChunk) if isinstance(chunk, dict) else chunk
                if isinstance(whole, ModelResponse):
                    return whole
    except TimeoutError as error:
        message = f"the model's answer took longer than {call.timeout_s:g} s ({setting})"
        raise TimedOut(message, details={"setting": setting}) from error
    raise Failed("the model's answer had no end")


def text_of(message: Message) -> str:
    """Return what a message says, without what it thinks, calls or encloses."""
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))
