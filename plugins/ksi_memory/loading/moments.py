"""Tells of a load in a moment: what was loaded, from where, and when."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from msgspec import Struct

from ksi_memory.events import NewItem, Source
from ksi_memory.items.ids import item_id

__all__ = ["FILES", "TABLE", "Came", "LoadMoment"]

FILES: Final = "files"
TABLE: Final = "moments"
UPLOAD: Final = "upload"
MAX_LOADED: Final = 16  # files that it names as its sources, of those that were loaded
MAX_GONE: Final = 8  # and of those that went away
MAX_NAMES: Final = 8  # of either that its text names
NAME_CHARACTERS: Final = 80
MAX_ROOT_BYTES: Final = 200  # in its key

Came = Literal["new", "changed", "again"]


class LoadMoment(Struct, frozen=True, kw_only=True):
    """What a load has changed so far.

    It is written in the transaction of each change: one that is broken off has told what it did,
    and the next one tells of the rest.

    Attributes:
        root: What is loaded; a directory has a slash behind it.
        owner: Whose it is.
        began_at: When the load began.
        new: How many files were not known before.
        changed: How many were known otherwise.
        again: How many were read again as they were.
        gone: How many went away.
        keys: The first of those that were loaded.
        gone_keys: The first of those that went away.
    """

    root: str
    owner: str
    began_at: datetime
    new: int = 0
    changed: int = 0
    again: int = 0
    gone: int = 0
    keys: tuple[str, ...] = ()
    gone_keys: tuple[str, ...] = ()

    def with_loaded(self, files: Sequence[tuple[str, Came]]) -> "LoadMoment":
        """Return it with more files that were loaded: their keys, and how each came."""
        came = [each for _, each in files]
        return msgspec.structs.replace(
            self,
            new=self.new + came.count("new"),
            changed=self.changed + came.count("changed"),
            again=self.again + came.count("again"),
            keys=(*self.keys, *(key for key, _ in files))[:MAX_LOADED],
        )

    def with_gone(self, keys: Sequence[str]) -> "LoadMoment":
        """Return it with more files that went away."""
        return msgspec.structs.replace(
            self,
            gone=self.gone + len(keys),
            gone_keys=(*self.gone_keys, *keys)[:MAX_GONE],
        )

    def item(self) -> NewItem:
        """Return what is remembered of it; it goes with the files that it names."""
        named = list(dict.fromkeys((*self.keys, *self.gone_keys)))
        head = self._head()
        return NewItem(
            key=self._key(),
            owner=self.owner,
            title=head,
            body=f"{head}{self._rest()}.",
            category=UPLOAD,
            attributes={
                "type": UPLOAD,
                "root": self.root,
                "new": self.new,
                "changed": self.changed,
                "ended": self.gone,
                "files": named,
            },
            session=self.root.removesuffix("/"),
            starts_at=self.began_at,
            ends_at=max(self.began_at, datetime.now(UTC)),
            sources=tuple(
                Source(kind="item", item=str(item_id(FILES, key, self.owner))) for key in named
            ),
        )

    def _key(self) -> str:
        """Return the key of this load alone: another one of the same has begun at another time."""
        root = self.root.encode()[:MAX_ROOT_BYTES].decode(errors="ignore")
        return f"{UPLOAD}:{root}@{self.began_at:%Y-%m-%dT%H:%M:%S.%fZ}"

    def _head(self) -> str:
        loaded = self.new + self.changed + self.again
        if not loaded:
            return f"{_counted(self.gone)} of {_short(self.root)} ended"
        if not self.root.endswith("/"):
            return f"Loaded {_short(self.root)}"
        return f"Loaded {_counted(loaded)} from {_short(self.root)}"

    def _rest(self) -> str:
        loaded = self.new + self.changed + self.again
        if not loaded:
            return f": {self._names(self.gone_keys, self.gone)}"
        if not self.root.endswith("/"):
            return ", which is new" if self.new else ", which has changed" if self.changed else ""
        how = [
            f"{count:,} {word}"
            for count, word in ((self.new, "new"), (self.changed, "changed"))
            if count
        ]
        if self.gone:
            how.append(f"{self.gone:,} ended ({self._names(self.gone_keys, self.gone)})")
        names = f": {self._names(self.keys, loaded)}"
        return names + (f"; {', '.join(how)}" if how else "")

    def _names(self, keys: Sequence[str], count: int) -> str:
        shown = [_short(key.removeprefix(self.root)) for key in keys[:MAX_NAMES]]
        more = count - len(shown)
        return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _counted(files: int) -> str:
    return f"{files:,} file{'' if files == 1 else 's'}"


def _short(name: str) -> str:
    """Return a name in one line, without its beginning where it is long."""
    name = " ".join(name.split())
    return name if len(name) <= NAME_CHARACTERS else f"…{name[1 - NAME_CHARACTERS :]}"
