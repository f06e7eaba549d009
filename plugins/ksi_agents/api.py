"""What a plugin imports that brings agents of its own.

    from ksi_agents.api import Definition, Definitions

    FORECASTER = Definition(
        name="forecaster",
        description="Tells the weather.",
        prompt="You tell the weather, and nothing else.",
        tools=("weather_*",),
    )

In the plugin's lifespan, with ``requires=("agents",)``:

    with plugin.service(Definitions).offered(FORECASTER, provider=plugin.name):
        yield
"""

from ksi_agents.definition import Definition, Limits, Memory, Probe, Restart, Wake
from ksi_agents.definitions import Definitions, Found
from ksi_models.events import ModelSettings

__all__ = [
    "Definition",
    "Definitions",
    "Found",
    "Limits",
    "Memory",
    "ModelSettings",
    "Probe",
    "Restart",
    "Wake",
]
