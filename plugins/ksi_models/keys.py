"""Holds the keys of providers, and keeps them out of whatever leaves the plugin."""

import logging
import os
import re
from collections.abc import MutableMapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ksi_models.keyrings import ask_keyring
from ksi_models.settings import ModelsSettings, ProviderSettings

log = logging.getLogger(__name__)

MASK: Final = "********"
FOLDER: Final = "keys"
MAX_KEY_BYTES: Final = 16 * 1024
MIN_SECRET: Final = 6  # what is shorter would mask half of any text
NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9]+")

# Where a provider's key is looked for under other names than <NAME>_API_KEY.
VARIABLES: Final = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "claude-cli": ("CLAUDE_CODE_OAUTH_TOKEN",),
    "cohere": ("CO_API_KEY", "COHERE_API_KEY"),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "huggingface": ("HF_TOKEN",),
}


def variables_of(provider: str) -> tuple[str, ...]:
    """Return the environment variables that may hold a provider's key, the first one first."""
    usual = f"{NOT_IN_A_NAME.sub('_', provider).upper()}_API_KEY"
    return VARIABLES.get(provider, (usual,))


class Keys:
    """The keys, by provider: of the settings, a file, the environment or the keyring.

    Making one takes the variables that hold keys out of ``environ``, so that no program that the
    daemon starts inherits them.

    Args:
        settings: Where to look.
        home: ``KSI_HOME``, in whose folder ``keys`` a file may lie for each provider.
        environ: The environment.
    """

    def __init__(
        self,
        settings: ModelsSettings,
        home: Path,
        environ: MutableMapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._home = home
        self._taken: dict[str, str] = {}
        self._of_keyring: dict[str, str | None] = {}
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        globs = (*settings.key_variables, *self._named_variables())
        for name in list(environ):
            if any(fnmatchcase(name, glob) for glob in globs):
                self._taken[name] = environ.pop(name).strip()
                self._remember(self._taken[name])
        environ.pop("KSI_MODELS_PROVIDERS", None)  # it has been read, and may hold keys
        for each in settings.providers.values():
            for secret in (each.key, *each.headers.values()):
                self._remember(secret)

    def _named_variables(self) -> list[str]:
        named = self._settings.providers.items()
        return [name for key, own in named for name in (own.key_variable, *variables_of(key))]

    def _remember(self, secret: str) -> None:
        secret = secret.strip()
        words = {secret, *secret.split()}  # a header's "Bearer …"
        new = {word for word in words if len(word) >= MIN_SECRET} - self._secrets
        if new:
            self._secrets |= new
            longest_first = sorted(self._secrets, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    # -- looking --------------------------------------------------------------------------------

    def variable(self, name: str) -> str | None:
        """Return what an environment variable held that was taken out."""
        return self._taken.get(name) or None

    def set_variables(self) -> tuple[str, ...]:
        """Name the variables that were taken out."""
        return tuple(sorted(self._taken))

    async def find(self, provider: str) -> str | None:
        """Return a provider's key, if there is one.

        The keyring is asked once; a file each time, so that a key can be replaced while the daemon
        runs.
        """
        own = self._settings.providers.get(provider, ProviderSettings())
        found: str | None = (
            own.key.strip() or self._of_file(provider, own) or self._of_variable(provider, own)
        )
        if not found and self._settings.keyring:
            found = await self._from_keyring(provider)
        if found:
            self._remember(found)
        return found or None

    def _of_variable(self, provider: str, own: ProviderSettings) -> str:
        names = (own.key_variable,) if own.key_variable else variables_of(provider)
        return next((self._taken[name] for name in names if self._taken.get(name)), "")

    def _of_file(self, provider: str, own: ProviderSettings) -> str:
        """Read a key's file; the one in the home is there for whoever wants to use it."""
        if own.key_file:
            file = Path(own.key_file).expanduser()
        elif provider and not provider.startswith(".") and "/" not in provider:
            file = self._home / FOLDER / provider
        else:
            return ""
        try:
            with file.open("rb") as stream:
                return stream.read(MAX_KEY_BYTES).decode("ascii").strip()
        except FileNotFoundError:
            if own.key_file:
                log.warning("a key's file is not there", extra={"file": str(file)})
        except (OSError, UnicodeDecodeError) as error:
            why = type(error).__name__  # a decoding error shows what it could not decode
            log.warning("a key's file can't be read", extra={"file": str(file), "why": why})
        return ""

    async def _from_keyring(self, provider: str) -> str | None:
        if provider not in self._of_keyring:
            self._of_keyring[provider] = await self._asked_keyring(provider)
        return self._of_keyring[provider]

    async def _asked_keyring(self, provider: str) -> str | None:
        timeout_s = self._settings.keyring_timeout_s
        try:
            return await ask_keyring(provider, timeout_s)
        except TimeoutError:
            log.warning(
                "the keyring did not answer in time; models.keyring turns it off",
                extra={"setting": "models.keyring_timeout_s", "timeout_s": timeout_s},
            )
            return None

    # -- keeping --------------------------------------------------------------------------------

    def redacted(self, text: str) -> str:
        """Return a text in which no key stands any more."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)
