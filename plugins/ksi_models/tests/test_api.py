"""The whole answer of a model, for who reads no stream."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import msgspec
import pytest

from ksi_daemon.bus import Bus
from ksi_daemon.protocol import Denied, Failed, TimedOut
from ksi_models.api import answer_of, text_of
from ksi_models.events import (
    Message,
    ModelCall,
    ModelResponse,
    TextDelta,
    TextPart,
    ThinkingPart,
    Usage,
)

CALL = ModelCall(messages=(Message("user", (TextPart("hi"),)),), timeout_s=0.05)
RESPONSE = ModelResponse(
    call_id="1",
    model_asked="m",
    model="m",
    message=Message("assistant", (ThinkingPart("Hm."), TextPart("Good "), TextPart("day"))),
    finish="stop",
    usage=Usage(),
)


class OneStream:
    """A bus whose one event is answered with these chunks; an exception is raised, `None` hangs."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks
        self.asked: list[tuple[str, Any]] = []
        self.is_closed = False

    async def stream(self, event: str, data: Any) -> AsyncGenerator[Any]:
        """Answer."""
        self.asked.append((event, data))
        try:
            for chunk in self.chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                if chunk is None:
                    await asyncio.Event().wait()
                yield chunk
        finally:
            self.is_closed = True


async def answered(bus: OneStream) -> ModelResponse:
    return await answer_of(cast(Bus, bus), CALL, setting="weather.model_timeout_s")


async def test_an_answer_is_given_whole() -> None:
    bus = OneStream(TextDelta("Good "), TextDelta("day"), RESPONSE)

    response = await answered(bus)

    assert response == RESPONSE
    assert text_of(response.message) == "Good day"
    assert bus.asked == [("model:call", CALL)]
    assert bus.is_closed


async def test_one_that_is_served_from_elsewhere_is_understood() -> None:
    plain = [msgspec.to_builtins(chunk) for chunk in (TextDelta("Good day"), RESPONSE)]

    assert await answered(OneStream(*plain)) == RESPONSE


async def test_one_that_is_late_is_given_up_and_names_its_setting() -> None:
    bus = OneStream(TextDelta("Good "), None)

    with pytest.raises(TimedOut, match=r"0\.05 s \(weather\.model_timeout_s\)") as caught:
        await answered(bus)

    assert caught.value.details == {"setting": "weather.model_timeout_s"}
    assert bus.is_closed


async def test_what_is_no_answer_is_an_error() -> None:
    with pytest.raises(Failed, match="no end"):
        await answered(OneStream(TextDelta("Good ")))
    with pytest.raises(Denied, match="no key"):
        await answered(OneStream(Denied("no key")))
