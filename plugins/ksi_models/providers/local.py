"""Finds servers of models on this machine, where they answer."""

import asyncio
from typing import Final

from ksi_models.keys import Keys
from ksi_models.provider import ProviderError
from ksi_models.providers.openai_wire import OpenAIWire, Place

LOOK_TIMEOUT_S: Final = 0.5
KNOWN_FOR_S: Final = 10.0


class LocalServer(OpenAIWire):
    """A server that may or may not be there: it is asked for its models to find out."""

    def __init__(self, name: str, place: Place, keys: Keys) -> None:
        super().__init__(name, place, keys)
        self._looking = asyncio.Lock()
        self._known_until = 0.0
        self._why_not: str | None = None

    async def why_not(self) -> str | None:
        """Say that nothing answers there; what was found out holds for some seconds."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            if loop.time() >= self._known_until:
                self._why_not = await self._look()
                self._known_until = loop.time() + KNOWN_FOR_S
        return self._why_not

    async def _look(self) -> str | None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                found = await self.models()
        except (ProviderError, TimeoutError):
            return f"no {self.name} answers at {self.place.base_url}"
        return None if found else f"{self.name} has no models yet"
