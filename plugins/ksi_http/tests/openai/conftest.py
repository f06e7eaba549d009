"""A daemon that has turns and agents, with a model that says what a test wants."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from ksi_completion.tests.doubles import Script
from ksi_daemon.event_system import event_handler
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import NotFound
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_http.testing import HttpServer
from ksi_models.events import ModelDescribe, ModelDescribed, ModelInfo, ModelList, ModelListed

if TYPE_CHECKING:
    import openai

NEEDED = ("postgres", "workflows", "tools", "completion", "agents", "http")
KNOWN = ("test/script", "test/other")


class Listed(Script):
    """A model that is listed."""

    @event_handler("model:list", scope="models:read")
    def list(self, request: ModelList) -> ModelListed:
        """List it."""
        models = tuple(ModelInfo(id=name, provider="test") for name in KNOWN)
        return ModelListed(default=KNOWN[0], models=models, providers=(), aliases={"fast": ()})

    @event_handler("model:describe")
    def describe(self, request: ModelDescribe) -> ModelDescribed:
        """Tell how much it can read."""
        if request.model not in (None, *KNOWN, "fast"):
            raise NotFound(f"there is no model {request.model}")
        return ModelDescribed(
            id=request.model or KNOWN[0],
            fallbacks=(),
            context_tokens=100_000,
            max_output_tokens=4000,
        )


@pytest.fixture
def script() -> Listed:
    """The model."""
    return Listed()


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    """What chats need."""

    @hookimpl
    async def ksi_lifespan(plugin: Any) -> AsyncIterator[None]:
        plugin.add(script)
        yield

    return [*installed_plugins(*NEEDED), module_plugin("models", ksi_lifespan=ksi_lifespan)]


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_settings_of_models() -> list[str]:
    """The double of the models has no settings."""
    return []


@pytest.fixture
async def chat(http: HttpServer) -> AsyncIterator["openai.AsyncOpenAI"]:
    """The official client, with the owner's key."""
    import openai  # noqa: PLC0415  late: it takes a while, and each worker loads this module

    url = http.url + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=http.key, max_retries=0) as client:
        yield client
