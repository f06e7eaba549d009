"""Answers ``example:*``."""

from collections.abc import AsyncIterator

from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import InvalidData
from ksi_example.events import ExampleShout, ExampleShouted, ExampleSpell
from ksi_example.settings import ExampleSettings


class Example:
    """Shouts and spells as its settings say."""

    def __init__(self, settings: ExampleSettings) -> None:
        self._settings = settings

    @event_handler("example:shout")
    def shout(self, request: ExampleShout) -> ExampleShouted:
        """Say a text in capitals."""
        self._check(request.text)
        return ExampleShouted(text=request.text.upper() + self._settings.mark)

    @event_handler("example:spell")
    async def spell(self, request: ExampleSpell) -> AsyncIterator[str]:
        """Say a text letter by letter."""
        self._check(request.text)
        for letter in request.text:
            yield letter

    def _check(self, text: str) -> None:
        bound = self._settings.max_letters
        if len(text) > bound:
            raise InvalidData(f"a text may have {bound} letters (max_letters)")
