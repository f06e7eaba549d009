"""Finds the documents that links in a document mean."""

import posixpath
from itertools import islice
from pathlib import Path
from typing import Final

from ksi_memory.loading.directories import Directory, Found
from ksi_memory.reading.document import FindsLink
from ksi_memory.reading.markdown import beside

__all__ = ["Links"]

MAX_NAMES: Final = 200_000
ENDINGS: Final = ("", ".md", ".markdown")


class Links:
    """Makes keys of links' targets.

    A path is understood as it stands in its document. A bare name, such as those in double
    brackets, is that of a file beside the document, or of one anywhere in the directory.

    Args:
        folder: The directory that is loaded, or that a single file lies in; none for an upload.
        root: What the keys of its files begin with.
        directory: For names that must be looked for.
    """

    def __init__(self, folder: Path | None, root: str, directory: Directory | None = None) -> None:
        self.root = root
        self._folder = folder
        self._directory = directory
        self._names: dict[str, str] | None = None

    def finder(self, document: str) -> FindsLink:
        """Return what finds the links of a document, which has a key."""

        def find(target: str) -> str | None:
            return self._find(document, target)

        return find

    def _find(self, document: str, target: str) -> str | None:
        beside_it = beside(document, target)
        if beside_it.startswith("../") or beside_it in (".", ".."):
            return None if "/" in target else target  # it leads out of what is loaded
        if posixpath.splitext(target)[1] and "/" in target:
            return beside_it
        found = next(
            (beside_it + ending for ending in ENDINGS if self._is_there(beside_it + ending)), None
        )
        if found is not None:
            return found
        if "/" not in target and (named := self._named(target)) is not None:
            return named
        return beside_it if posixpath.splitext(target)[1] in (".md", ".markdown") else target

    def _is_there(self, key: str) -> bool:
        if self._folder is None:
            return False
        relative = key.removeprefix(f"{self.root}/") if self.root else key
        try:
            return (self._folder / relative).is_file()
        except (OSError, ValueError):
            return False

    def _named(self, name: str) -> str | None:
        """Return the key of the first file in the directory that bears a name."""
        if self._directory is None:
            return None
        if self._names is None:
            self._names = {}
            for each in islice(self._directory.walk(), MAX_NAMES):
                if isinstance(each, Found) and each.relative.endswith((".md", ".markdown")):
                    stem = posixpath.splitext(posixpath.basename(each.relative))[0]
                    self._names.setdefault(stem.lower(), each.relative)
        relative = self._names.get(posixpath.splitext(name)[0].lower())
        return f"{self.root}/{relative}" if relative is not None else None
