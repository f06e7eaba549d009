"""Lends the ``claude`` command its user's login, in a folder of configuration of our own."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

NAME: Final = ".credentials.json"


class Login:
    """The login of the user's own configuration, linked into ours; nothing else of it is there.

    What the command writes anew, as it does when it has its login prolonged, is brought back: else
    one of the two would end with the other.

    Args:
        config_folder: The user's; where the command has it by itself if empty.
        folder: Ours.
    """

    def __init__(self, config_folder: str, folder: Path) -> None:
        chosen = config_folder or os.environ.get("CLAUDE_CONFIG_DIR")
        users = Path(chosen).expanduser() if chosen else Path.home() / ".claude"
        self.folder = folder
        self._theirs = users / NAME
        self._ours = folder / NAME

    def why_not(self) -> str | None:
        """Say that there is no login that can be lent."""
        if self._theirs.is_file() or (self._ours.is_file() and not self._ours.is_symlink()):
            return None
        if sys.platform == "darwin":
            return (
                "on macOS the login of `claude` is in the keychain, where only its own "
                "configuration finds it: run `claude setup-token`, and give KSI that token as "
                "CLAUDE_CODE_OAUTH_TOKEN"
            )
        return "nobody has logged in: run `claude` once and log in"

    async def lend(self, *, has_key: bool) -> None:
        """Make the folder, and have the login in it, unless the command is handed a key."""
        await asyncio.to_thread(self._lend, has_key)

    async def bring_back(self) -> None:
        """Take back a login that the command has written anew."""
        await asyncio.to_thread(self._bring_back)

    def _lend(self, has_key: bool) -> None:
        self._bring_back()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._ours.is_symlink():
            self._ours.unlink(missing_ok=True)
        if not has_key and self._theirs.is_file():
            with contextlib.suppress(FileExistsError):  # another call has just lent it
                self._ours.symlink_to(self._theirs)

    def _bring_back(self) -> None:
        if self._ours.is_symlink() or not self._ours.is_file():
            return
        if self._theirs.exists() and self._theirs.stat().st_mtime > self._ours.stat().st_mtime:
            self._ours.unlink(missing_ok=True)  # the user's own is the newer one
            return
        self._theirs.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self._theirs.parent, prefix=f".{NAME}.")
        os.close(number)
        shutil.copyfile(self._ours, name)
        Path(name).replace(self._theirs)  # of mode 0600, as it was made
        self._ours.unlink(missing_ok=True)
