"""What the plugin offers to the one that gives tools to programs which call them by themselves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ksi_models.keys import Keys
from ksi_models.provider import Provider
from ksi_models.providers import Providers
from ksi_models.providers.claude_cli import ClaudeCLI
from ksi_models.providers.tool_server import ToolServer
from ksi_models.settings import ModelsSettings, ProviderSettings

CLAUDE: Final = "claude-cli"
TRIAL_KEY: Final = "sk-ant-api03-of-a-trial-which-is-no-key"  # nobody but a local fake is shown it


class Runtimes:
    """The programs behind providers that call tools by themselves.

    Args:
        settings: The plugin's.
        providers: Those that are asked.
    """

    def __init__(self, settings: ModelsSettings, providers: Providers) -> None:
        self._settings = settings
        self._providers = providers

    def serve_tools(self, server: ToolServer | None) -> None:
        """Have the programs get their tools from a server; without one they get none."""
        self._providers.tools = server

    def passes_on(self, member: str) -> bool:
        """Say whether a call may put this into its provider's request."""
        return member in self._settings.extra

    def end_run(self, run: str) -> None:
        """End what still waits for the results of a run's calls."""
        claude = self._providers.claude
        if claude is not None:
            claude.end_run(run)

    def installed(self) -> tuple[str, int, int] | None:
        """Return what tells the ``claude`` command that there is now from another one."""
        found = ClaudeCLI.found(self._settings.claude_command)
        if found is None:
            return None
        file = Path(found).resolve()
        try:
            known = file.stat()
        except OSError:  # it was removed a moment ago
            return None
        return str(file), known.st_mtime_ns, known.st_size

    def try_claude(
        self, folder: Path, tools: ToolServer, environ: Mapping[str, str], more: Mapping[str, str]
    ) -> Provider:
        """Return the installed command as it is asked, with nothing of its user's.

        Args:
            folder: What it runs in, and keeps its configuration in.
            tools: Gives it tools.
            environ: What its environment is taken from.
            more: What else is in it.
        """
        own = ProviderSettings(key=TRIAL_KEY)
        settings = ModelsSettings(providers={CLAUDE: own}, keyring=False, key_variables=())
        return ClaudeCLI(
            self._settings.claude_command,
            str(folder / "nobody"),
            folder,
            Keys(settings, folder, {}),
            tools=lambda: tools,
            confined=self._providers.confined,
            environ=environ,
            more=more,
        )
