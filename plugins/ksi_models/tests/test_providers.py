import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ksi_daemon.protocol import InvalidData
from ksi_models import providers as providers_module
from ksi_models.fakes.openai_server import FakeOpenAI
from ksi_models.providers import Providers, bounds_of
from ksi_models.providers.guarded import ProcessBounds, can_measure
from ksi_models.providers.local import LocalServer
from ksi_models.providers.openai_wire import OpenAIWire, Place
from ksi_models.providers.pydantic import PydanticAI
from ksi_models.settings import ModelsSettings, ProviderSettings
from ksi_models.tests.questions import ask, keys, question, said

Make = Callable[[ModelsSettings], Providers]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda settings: Providers(settings, keys(settings), tmp_path)


def settings(**providers: ProviderSettings) -> ModelsSettings:
    return ModelsSettings(providers=providers, keyring=False)


def test_each_name_has_its_kind(make: Make) -> None:
    own = settings(
        mine=ProviderSettings(base_url="http://x/v1"),
        openai=ProviderSettings(kind="pydantic-ai"),
        groq=ProviderSettings(kind="openai-compatible", base_url="http://x/v1"),
    )

    found = make(own)

    assert isinstance(found.find("mine"), OpenAIWire)
    assert isinstance(found.find("openai"), PydanticAI)
    assert isinstance(found.find("groq"), OpenAIWire)
    assert isinstance(found.find("anthropic"), PydanticAI)
    assert isinstance(make(settings()).find("openai"), OpenAIWire)
    assert found.find("nothing") is None
    assert found.find("mine") is found.find("mine")


def test_those_worth_listing_are_listed_once_each(make: Make) -> None:
    found = make(settings(mine=ProviderSettings(base_url="http://x/v1")))
    names = [provider.name for provider in found.all()]

    assert names[0] == "mine"
    assert {"claude-cli", "anthropic", "openai", "ollama", "builtin", "replay"} < set(names)
    assert "test" not in names  # nobody wants those but who names them
    assert found.find("test") is not None
    assert len(names) == len(set(names))


def test_local_servers_are_not_looked_for_where_a_setting_says_so(make: Make) -> None:
    found = make(ModelsSettings(find_local=False))

    assert found.find("ollama") is None


async def test_a_local_server_is_found_where_it_answers(
    make: Make, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(fake_openai.url.split(":")[2].removesuffix("/v1"))
    monkeypatch.setitem(providers_module.PORTS, "vllm", port)
    found = make(settings())
    vllm = found.find("vllm")
    assert vllm is not None

    assert await vllm.why_not() is None
    assert [model.name for model in await vllm.models()] == ["fake-large", "fake-small"]
    assert said((await ask(vllm, question()))[1]).startswith("lorem")
    assert "Authorization" not in fake_openai.calls[0].headers
    await found.close()


async def test_a_server_that_is_not_there_is_told_at_once(unused_port: int) -> None:
    local = LocalServer("ollama", Place(base_url=f"http://127.0.0.1:{unused_port}/v1"), keys())

    assert "no ollama answers" in str(await local.why_not())
    await local.close()


async def test_a_port_where_something_else_listens_holds_nobody_up(unused_port: int) -> None:
    with socket.create_server(("127.0.0.1", unused_port)):
        local = LocalServer("ollama", Place(base_url=f"http://127.0.0.1:{unused_port}/v1"), keys())

        assert "no ollama answers" in str(await local.why_not())
        await local.close()


async def test_one_without_models_is_of_no_use(fake_openai: FakeOpenAI) -> None:
    fake_openai.models = []
    local = LocalServer("ollama", Place(base_url=fake_openai.url), keys())

    assert await local.why_not() == "ollama has no models yet"
    await local.close()


async def test_it_is_not_asked_again_and_again(fake_openai: FakeOpenAI) -> None:
    local = LocalServer("ollama", Place(base_url=fake_openai.url), keys())

    for _ in range(5):
        await local.why_not()

    assert len(fake_openai.requests) == 1
    await local.close()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_what_is_slow_to_import_is_imported_late() -> None:
    code = "import sys, ksi_models.providers; print({'aiohttp', 'pydantic_ai'} & set(sys.modules))"

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout == "set()\n"


def test_limits_of_processes_are_the_claude_command_s_and_zero_is_none() -> None:
    assert bounds_of(ProviderSettings()).cpu_s == 300
    assert bounds_of(ProviderSettings(cpu_s=5, open_files=0)) == ProcessBounds(
        memory_mb=2048 if can_measure() else None, cpu_s=5
    )


def test_a_limit_that_nobody_can_keep_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidData, match=r"models\.providers\.openai\.cpu_s bounds nothing"):
        make(settings(openai=ProviderSettings(cpu_s=5)))

    monkeypatch.setattr(providers_module, "can_measure", lambda: False)
    with pytest.raises(InvalidData, match="memory_mb can't be kept on this system"):
        make(settings(**{"claude-cli": ProviderSettings(memory_mb=5)}))
    make(settings(**{"claude-cli": ProviderSettings(cpu_s=5)}))
