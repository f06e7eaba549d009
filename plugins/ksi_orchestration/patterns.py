"""Knows the patterns: those that are built in, those of plugins, and those in a folder of files."""

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

from msgspec import Struct

from ksi_daemon.protocol import Conflict, InvalidData, NotFound
from ksi_daemon.protocol.names import did_you_mean
from ksi_orchestration.documents import Read, read_made, read_patterns, told
from ksi_orchestration.events import PatternInfo, PatternProblem, PatternsListed
from ksi_orchestration.pattern import Pattern

__all__ = ["Found", "Patterns"]

MAX_BYTES: Final = 1_000_000
MAX_FILES: Final = 1000
MAX_TOLD: Final = 10
SUFFIXES: Final = (".yaml", ".yml")


class Found(Struct, frozen=True):
    """A pattern, what is told of it, and its text."""

    pattern: Pattern
    info: PatternInfo
    text: str


class _File(Struct, frozen=True):
    """What a file held when it was read, and what it looked like then."""

    look: tuple[int, int, int]
    found: list[Read]
    problems: list[PatternProblem]


class Patterns:
    """Finds patterns by name: a file's comes before a plugin's, and that before a built-in one.

    Args:
        folder: Where the files are; they are read anew when they have changed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._files: dict[str, _File] = {}
        self._offered: dict[str, Found] = {}
        self._built_in = {each.pattern.name: _found(each, "built-in") for each in _built_in()}

    # -- found ----------------------------------------------------------------------------------

    async def find(self, name: str) -> Found:
        """Return a pattern.

        Raises:
            NotFound: There is none of that name.
            InvalidData: There is a file of that name, and it is not sound.
        """
        known, problems = await self._all()
        of_file = [each for each in problems if Path(each.path).stem == name]
        if of_file and (name not in known or known[name].info.origin in ("built-in", "plugin")):
            raise _refused(of_file)
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
            raise NotFound(f"there is no pattern {name!r:.100}{hint}")
        return known[name]

    async def listed(self) -> PatternsListed:
        """Return what there is, by name, and what is wrong with files."""
        known, problems = await self._all()
        infos = sorted((each.info for each in known.values()), key=lambda info: info.name)
        return PatternsListed(patterns=tuple(infos), problems=tuple(problems))

    def read(self, text: str, path: str = "pattern.yaml") -> Pattern:
        """Return the pattern of a document.

        Raises:
            InvalidData: There is not one, or it is not sound; the message says what, and where.
        """
        found, problems = read_patterns(text, path)
        if problems:
            raise _refused(problems)
        if len(found) != 1:
            raise InvalidData(f"{path} holds {len(found)} patterns and not one")
        return found[0].pattern

    async def _all(self) -> tuple[dict[str, Found], list[PatternProblem]]:
        self._files, problems = await asyncio.to_thread(_read_folder, self._folder, self._files)
        known = {**self._built_in, **self._offered}
        taken: dict[str, str] = {}
        for path, file in self._files.items():
            problems += file.problems
            for each in file.found:
                name = each.pattern.name
                if name in taken:
                    message = f"{taken[name]} has a pattern {name!r}, too, and that one counts"
                    problems.append(PatternProblem(path=path, message=message, field="name"))
                else:
                    taken[name] = path
                    known[name] = _found(each, path)
        return known, problems

    # -- offered --------------------------------------------------------------------------------

    @contextmanager
    def offered(self, *patterns: Pattern | str, provider: str) -> Iterator[None]:
        """Have more patterns, for as long as a block: made in Python, or as texts.

        Raises:
            InvalidData: One is not sound.
            Conflict: There is one of its name.
        """
        added: list[str] = []
        try:
            for each in patterns:
                for read in _sound(each, f"plugin {provider}"):
                    self._offer(read)
                    added.append(read.pattern.name)
            yield
        finally:
            for name in added:
                del self._offered[name]

    def _offer(self, read: Read) -> None:
        name = read.pattern.name
        if name in self._built_in or name in self._offered:
            raise Conflict(f"there is another pattern {name!r}")
        self._offered[name] = _found(read, "plugin")


def _found(read: Read, origin: str) -> Found:
    pattern = read.pattern
    info = PatternInfo(
        name=pattern.name,
        description=pattern.description,
        origin=origin,
        roles=tuple(pattern.roles),
        stages=tuple(stage.name for stage in pattern.stages),
    )
    return Found(pattern, info, read.text)


def _sound(given: Pattern | str, path: str) -> list[Read]:
    read = read_patterns(given, path) if isinstance(given, str) else read_made(given, path)
    found, problems = read
    if problems:
        raise _refused(problems)
    return found


def _refused(problems: list[PatternProblem]) -> InvalidData:
    lines = [told(problem) for problem in problems[:MAX_TOLD]]
    if len(problems) > MAX_TOLD:
        lines.append(f"and {len(problems) - MAX_TOLD} more")
    return InvalidData("\n".join(lines), details={"path": problems[0].field})


def _built_in() -> Iterator[Read]:
    folder = files(__package__) / "builtin"
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(SUFFIXES):
            found, problems = read_patterns(file.read_text(encoding="utf-8"), file.name)
            if problems:
                raise _refused(problems)
            yield from found


# -- files ----------------------------------------------------------------------------------------


def _read_folder(
    folder: Path | None, known: dict[str, _File]
) -> tuple[dict[str, _File], list[PatternProblem]]:
    """Return what the files hold, those that look as before without reading them again."""
    if folder is None:
        return {}, []
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.name.endswith(SUFFIXES))
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        message = f"the folder can't be read: {error.strerror}"
        return {}, [PatternProblem(path=str(folder), message=message)]
    problems = []
    if len(names) > MAX_FILES:
        message = f"it has {len(names)} files, and {MAX_FILES} are read"
        problems.append(PatternProblem(path=str(folder), message=message))
    found: dict[str, _File] = {}
    for name in names[:MAX_FILES]:
        if name.startswith("."):
            continue
        path = folder / name
        found[str(path)] = _read_file(path, known.get(str(path)))
    return found, problems


def _read_file(path: Path, known: _File | None) -> _File:
    look = (0, 0, 0)
    try:
        there = path.stat()
        look = (there.st_mtime_ns, there.st_size, there.st_ino)
        if known is not None and known.look == look:
            return known
        if not stat.S_ISREG(there.st_mode):
            return _unreadable(look, path, "it is no file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        return _unreadable(look, path, f"it can't be read: {error.strerror}")
    if len(data) > MAX_BYTES:
        return _unreadable(look, path, f"it is larger than {MAX_BYTES:,} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return _unreadable(look, path, "it is no UTF-8 text", line)
    found, problems = read_patterns(text, str(path))
    return _File(look, found, problems)


def _unreadable(
    look: tuple[int, int, int], path: Path, message: str, line: int | None = None
) -> _File:
    return _File(look, [], [PatternProblem(path=str(path), message=message, line=line)])
