"""Keeps what is known of each provider: who may ask it now, and whether it is there."""

from msgspec import Struct

from ksi_models.circuit import Circuit
from ksi_models.settings import ModelsSettings, ProviderSettings
from ksi_models.slots import Slots

UNTOLD = ProviderSettings()


class Lane(Struct, frozen=True):
    """The way to one provider."""

    slots: Slots
    circuit: Circuit


class Lanes:
    """The ways to all providers, each made when it is first asked for."""

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings
        self._lanes: dict[str, Lane] = {}

    def of(self, provider: str) -> Lane:
        """Return the way to a provider."""
        lane = self._lanes.get(provider)
        if lane is None:
            lane = self._lanes[provider] = self._made(provider)
        return lane

    def _made(self, provider: str) -> Lane:
        common, own = self._settings, self._settings.providers.get(provider, UNTOLD)
        slots = Slots(
            own.max_concurrent or common.max_concurrent,
            own.requests_per_minute or common.requests_per_minute,
            common.max_waiting,
            provider,
        )
        return Lane(slots, Circuit(common.circuit_failures, common.circuit_open_s))

    def all(self) -> list[tuple[str, Lane]]:
        """List the ways that were asked for so far, by provider."""
        return sorted(self._lanes.items())

    def open(self) -> list[str]:
        """Name the providers that are left alone, each with the reason."""
        return [
            f"{name} is left alone, as it failed {lane.circuit.failed} times: {lane.circuit.why}"
            for name, lane in self._lanes.items()
            if lane.circuit.state != "closed"
        ]

    def close(self) -> None:
        """End the timers."""
        for lane in self._lanes.values():
            lane.slots.close()
