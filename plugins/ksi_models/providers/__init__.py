"""The providers of models: each reaches models of one kind in one way."""

from pathlib import Path
from typing import Final

from msgspec import structs

from ksi_daemon.confinement import Confined
from ksi_daemon.protocol import InvalidData
from ksi_models.keys import Keys, variables_of
from ksi_models.provider import WITHOUT_TOOLS, Provider
from ksi_models.providers import pydantic, replay
from ksi_models.providers.claude_cli import CPU_S, MEMORY_MB, OPEN_FILES, ClaudeCLI
from ksi_models.providers.extractive import Extractive
from ksi_models.providers.guarded import ProcessBounds, can_measure
from ksi_models.providers.scripted import ScriptedProvider
from ksi_models.providers.tool_server import ToolServer
from ksi_models.settings import ModelsSettings, ProviderSettings

OPENAI_URL: Final = "https://api.openai.com/v1"
# Where servers on this machine listen by themselves.
PORTS: Final = {"ollama": 11434, "vllm": 8000, "llama-cpp": 8080, "lm-studio": 1234}
BUILTIN: Final = ("builtin", "replay")
BOUNDS: Final = ("memory_mb", "cpu_s", "open_files")


class Providers:
    """Finds a provider by its name; one that nobody asks for costs nothing.

    Args:
        settings: Which there are, and how they are reached.
        keys: Their keys.
        home: ``KSI_HOME``.
        confined: The processes that are nobody to the daemon but by a token.

    Attributes:
        tools: What gives tools to programs that call them by themselves.
        claude: The claude command, once it was asked for.

    Raises:
        InvalidData: ``models.cassette`` is no name of a file, or there is a limit that nobody can
            keep.
    """

    def __init__(
        self, settings: ModelsSettings, keys: Keys, home: Path, confined: Confined | None = None
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._home = home
        self.confined = confined
        self._cassettes = home / "cassettes"
        self._made: dict[str, Provider] = {}
        self.tools: ToolServer | None = None
        self.claude: ClaudeCLI | None = None
        if settings.cassette and not replay.NAME.fullmatch(settings.cassette):
            raise InvalidData(
                "models.cassette is a name of letters, digits, dots, dashes and underscores"
            )
        check_bounds(settings)

    def find(self, name: str) -> Provider | None:
        """Return the provider of that name, if there is one."""
        if name not in self._made:
            provider = self._make(name)
            if provider is None:
                return None
            self._made[name] = self._recorded(provider)
        return self._made[name]

    def all(self) -> list[Provider]:
        """Return those that are there or could easily be, those of the settings first.

        Those for tests are there as well, and found by who names them.
        """
        known = self._keys.set_variables()
        with_keys = (n for n in pydantic.NAMES if any(v in known for v in variables_of(n)))
        ours = ("claude-cli", "anthropic", "openai", *with_keys, *PORTS, *BUILTIN)
        found = [self.find(name) for name in dict.fromkeys([*self._settings.providers, *ours])]
        return [provider for provider in found if provider is not None]

    def calls_tools(self, name: str) -> bool:
        """Say whether a provider's models can call tools here."""
        return name not in WITHOUT_TOOLS and (name != "claude-cli" or self.tools is not None)

    async def close(self) -> None:
        """End what they have opened."""
        made, self._made = list(self._made.values()), {}
        for provider in made:
            await provider.close()

    def _make(self, name: str) -> Provider | None:
        own = self._settings.providers.get(name, ProviderSettings())
        if own.kind == "pydantic-ai" or (name in pydantic.NAMES and own.kind == ""):
            limit = self._settings.max_answer_bytes
            return pydantic.PydanticAI(name, self._keys, own.base_url, limit)
        if own.base_url or name == "openai":
            return self._wire(name, own)
        if name in PORTS:
            return self._local(name)
        return self._own(name)

    def _own(self, name: str) -> Provider | None:
        match name:
            case "claude-cli":
                return self._claude()
            case "builtin":
                return Extractive()
            case "replay":
                return replay.Replay(self._cassettes)
            case "test":
                return ScriptedProvider()
        return None

    def _local(self, name: str) -> Provider | None:
        if not self._settings.find_local:
            return None
        from ksi_models.providers import local, openai_wire  # noqa: PLC0415  aiohttp is slow to import

        place = openai_wire.Place(
            base_url=f"http://127.0.0.1:{PORTS[name]}/v1",
            max_answer_bytes=self._settings.max_answer_bytes,
        )
        return local.LocalServer(name, place, self._keys)

    def _recorded(self, provider: Provider) -> Provider:
        cassette = self._settings.cassette
        if not cassette or provider.name == "replay":
            return provider
        file = replay.cassette_file(self._cassettes, cassette)
        return replay.Recorder(provider, file, self._keys.redacted)

    def _claude(self) -> Provider:
        self.claude = ClaudeCLI(
            self._settings.claude_command,
            self._settings.claude_config_folder,
            self._home / "claude",
            self._keys,
            self._settings.max_answer_bytes,
            bounds_of(self._settings.providers.get("claude-cli", ProviderSettings())),
            tools=lambda: self.tools,
            parked_s=self._settings.claude_parked_s,
            confined=self.confined,
        )
        return self.claude

    def _wire(self, name: str, own: ProviderSettings) -> Provider:
        from ksi_models.providers import openai_wire  # noqa: PLC0415  aiohttp is slow to import

        place = openai_wire.Place(
            base_url=own.base_url or OPENAI_URL,
            headers=dict(own.headers),
            key_of=name,
            needs_key=not own.base_url,
            max_answer_bytes=self._settings.max_answer_bytes,
            context_tokens=own.context_tokens,
            max_output_tokens=own.max_output_tokens,
        )
        return openai_wire.OpenAIWire(name, place, self._keys)


def bounds_of(own: ProviderSettings) -> ProcessBounds:
    """Return what a process of the claude command may take."""
    bounds = ProcessBounds(
        memory_mb=MEMORY_MB if own.memory_mb is None else own.memory_mb or None,
        cpu_s=CPU_S if own.cpu_s is None else own.cpu_s or None,
        open_files=OPEN_FILES if own.open_files is None else own.open_files or None,
    )
    return bounds if can_measure() else structs.replace(bounds, memory_mb=None)


def check_bounds(settings: ModelsSettings) -> None:
    """Refuse limits that nobody would keep.

    Raises:
        InvalidData: They are of a provider without processes, or memory can't be measured here.
    """
    for name, own in settings.providers.items():
        given = [bound for bound in BOUNDS if getattr(own, bound) is not None]
        if given and name != "claude-cli":
            raise InvalidData(
                f"models.providers.{name}.{given[0]} bounds nothing: its calls are no processes of "
                "ours, only those of claude-cli are"
            )
        if own.memory_mb and not can_measure():
            raise InvalidData(
                f"models.providers.{name}.memory_mb can't be kept on this system, which doesn't "
                "tell what processes hold: take it away"
            )
