"""Goes over a directory: what is a file, what is ignored, what is left out and why.

Names that begin with a dot are left alone, and so is what ``.gitignore`` and ``.ksiignore`` name,
as git understands them: a deeper file wins over one above, a ``.ksiignore`` over a ``.gitignore``
beside it, and a folder that is ignored is not looked into. Links are not followed, so that none
leads out, or in circles.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct
from pathspec import GitIgnoreSpec

__all__ = ["Directory", "Found", "Skipped", "why_no_file"]

IGNORE_FILES: Final = (".gitignore", ".ksiignore")  # the last one wins
NEVER: Final = frozenset({".git", ".hg", ".svn", ".jj"})
MAX_IGNORE_BYTES: Final = 64 * 1024
# What an expression takes grows with the power of its stars: with five of them in a name, minutes.
MAX_STARS: Final = 3
MAX_KEPT: Final = 1000  # folders whose ignore files are kept in mind
MAX_DEPTH: Final = 200
KINDS: Final = (
    (stat.S_ISLNK, "it is a link, which is not followed"),
    (stat.S_ISFIFO, "it is a pipe"),
    (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISBLK, "it is a device"),
    (stat.S_ISCHR, "it is a device"),
)


class Found(Struct, frozen=True):
    """A file: where it lies below the directory, with slashes, and its size in bytes."""

    relative: str
    size: int


class Skipped(Struct, frozen=True):
    """Something that is not loaded, and why."""

    relative: str
    why: str


def why_no_file(mode: int) -> str:
    """Say what something is that is no file; empty for a file."""
    if stat.S_ISREG(mode):
        return ""
    return next((why for is_kind, why in KINDS if is_kind(mode)), "it is no file")


class Directory:
    """A directory that is loaded.

    Args:
        root: An absolute path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._specs: OrderedDict[str, tuple[GitIgnoreSpec, ...]] = OrderedDict()
        self._above = self._specs_above()

    def walk(self) -> Iterator[Found | Skipped]:
        """Yield what is there, folder by folder, each in the order of its names.

        Only the names of the folders that it is in just now are kept.
        """
        stack = [self._listed("")]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif not isinstance(entry, str):
                yield entry
            elif len(stack) > MAX_DEPTH:
                yield Skipped(entry, f"it lies more than {MAX_DEPTH} folders deep")
            else:
                stack.append(self._listed(entry))

    def _listed(self, folder: str) -> Iterator[Found | Skipped | str]:
        """Yield the files of a folder, and the paths of the folders in it."""
        try:
            with os.scandir(self.root / folder) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            yield Skipped(folder or ".", f"it can't be read: {error.strerror}")
            return
        for name in names:
            found = self._looked_at(f"{folder}/{name}" if folder else name)
            if found is not None:
                yield found

    def _looked_at(self, relative: str) -> Found | Skipped | str | None:
        """Return what something is; ``None`` for what is ignored."""
        try:
            status = os.lstat(self.root / relative)
        except OSError as error:
            return None if isinstance(error, FileNotFoundError) else _unreadable(relative, error)
        is_folder = stat.S_ISDIR(status.st_mode)
        if self.ignores(relative, is_folder=is_folder):
            return None
        if not relative.isascii() and not _is_text(relative):
            return Skipped(_shown(relative), "its name is not UTF-8")
        if is_folder:
            return relative
        why = why_no_file(status.st_mode)
        return Skipped(relative, why) if why else Found(relative, status.st_size)

    # -- what is ignored ------------------------------------------------------------------------

    def ignores(self, relative: str, *, is_folder: bool = False) -> bool:
        """Say whether something is ignored, if the folders that it lies in are not."""
        folder, _, name = relative.rpartition("/")
        if name in NEVER:
            return True
        verdict = self._verdict(folder, relative, is_folder=is_folder)
        return name.startswith(".") if verdict is None else verdict

    def has_ignored(self, relative: str) -> bool:
        """Say whether something is ignored, or lies in a folder that is."""
        parts = relative.split("/")
        folders = ("/".join(parts[:count]) for count in range(1, len(parts)))
        return any(self.ignores(each, is_folder=True) for each in folders) or self.ignores(relative)

    def _verdict(self, folder: str, relative: str, *, is_folder: bool) -> bool | None:
        """Return what the ignore files say: the deepest that says anything."""
        end = "/" if is_folder else ""
        while True:
            within = relative[len(folder) + 1 :] if folder else relative
            for spec in self._specs_of(folder):
                verdict = spec.check_file(within + end).include
                if verdict is not None:
                    return verdict
            if not folder:
                break
            folder = folder.rpartition("/")[0]
        for prefix, spec in self._above:
            verdict = spec.check_file(f"{prefix}/{relative}{end}").include
            if verdict is not None:
                return verdict
        return None

    def _specs_of(self, folder: str) -> tuple[GitIgnoreSpec, ...]:
        known = self._specs.get(folder)
        if known is None:
            known = _read_specs(self.root / folder)
            self._specs[folder] = known
            if len(self._specs) > MAX_KEPT:
                self._specs.popitem(last=False)
        return known

    def _specs_above(self) -> list[tuple[str, GitIgnoreSpec]]:
        """Return the ignore files between the directory and the top of its repository, if any."""
        found: list[tuple[str, GitIgnoreSpec]] = []
        folder, prefix = self.root, ""
        while not (folder / ".git").exists():
            if folder.parent == folder:
                return []
            prefix = f"{folder.name}/{prefix}".rstrip("/")
            folder = folder.parent
            found += [(prefix, spec) for spec in _read_specs(folder)]
        return found


def _read_specs(folder: Path) -> tuple[GitIgnoreSpec, ...]:
    """Return the ignore files of a folder, the one that wins first."""
    found = []
    for name in reversed(IGNORE_FILES):
        lines = _lines(folder / name)
        if lines:
            found.append(GitIgnoreSpec.from_lines(lines))
    return tuple(found)


def _lines(file: Path) -> list[str]:
    try:
        if not stat.S_ISREG(os.lstat(file).st_mode):
            return []
        with file.open("rb") as opened:
            text = opened.read(MAX_IGNORE_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    return [line for line in text.splitlines() if _is_pattern(line)]


def _is_pattern(line: str) -> bool:
    """Say whether a line is a pattern that is understood; git, too, passes over the others."""
    if line.count("**") >= MAX_STARS or any(
        part != "**" and part.count("*") > MAX_STARS for part in line.split("/")
    ):
        return False
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _unreadable(relative: str, error: OSError) -> Skipped:
    return Skipped(_shown(relative), f"it can't be read: {error.strerror}")
