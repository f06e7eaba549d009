"""The dialogue of ``ksi query``: an editor with history and completion, or lines of stdin."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from ksi_cli import output
from ksi_client import KsiError
from ksi_daemon.protocol.paths import home_directory
from ksi_memory.querying import rem

if TYPE_CHECKING:
    from ksi_memory.commands.query import Asking

PROMPT: Final = "rem> "
HELP: Final = """\
A plain sentence is a search. Or, with LIMIT n, SINCE t, UNTIL t, AS_OF t and the like:
  LOOKUP key[, key…]          what bears a key
  SEARCH "text" FROM table    what fits, by words and meaning
  FUZZY "name"                what is called so, or nearly so
  TRAVERSE "key" DEPTH 2      what hangs together with it
  TIMELINE key                what happened, in its order
  SQL SELECT …                anything, of the views that \\d lists
  \\d [table]   views, or the columns of one      \\timing  tell how long answers take
  \\q, Ctrl-D   leave                             Ctrl-C   clear the line, break off a question"""
# What may be asked for with \d; the reader sees only what it may read.
VIEWS: Final = (
    "SELECT c.relname AS view, obj_description(c.oid, 'pg_class') AS description "
    "FROM pg_catalog.pg_class c WHERE c.relnamespace = 'ksi_read'::regnamespace "
    "AND c.relkind = 'v' ORDER BY 1"
)
COLUMNS: Final = (
    "SELECT a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type "
    "FROM pg_catalog.pg_attribute a WHERE a.attrelid = 'ksi_read.{}'::regclass "
    "AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
)
_TABLE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PART: Final = re.compile(r"[^\s,]*$")
_AFTER_KEYWORD: Final = re.compile(r"\b(from|field|direction)\s+(?:[\w]+,\s*)*$", re.IGNORECASE)
_VALUES: Final = {"field": ("title", "body"), "direction": ("out", "in", "both")}


class Left(Exception):
    """The person has left."""


async def talk(asking: "Asking") -> bool:
    """Answer questions until the person leaves; say whether all went well."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        await _edit(asking)
        return True
    went_well = True
    async for line in _lines():
        try:
            went_well &= await answer(asking, line)
        except Left:
            break
    return went_well


async def _edit(asking: "Asking") -> None:
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=RemCompleter(asking), complete_while_typing=False
    )
    output.write("KSI memory · \\? shows what you can do, Ctrl-D leaves")
    while True:
        try:
            line = await session.prompt_async(PROMPT)
            await _interruptible(asking, line)
        except KeyboardInterrupt:
            continue
        except (EOFError, Left):
            return


async def _interruptible(asking: "Asking", line: str) -> None:
    """Answer a line; Ctrl-C breaks it off."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_left(asking, line), name="question")
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            await asyncio.wait({task})
        finally:
            loop.remove_signal_handler(signal.SIGINT)
    if task.cancelled():
        output.note("it was broken off")
    elif task.result():
        raise Left


async def _left(asking: "Asking", line: str) -> bool:
    """Answer a line; say whether the person has left."""
    try:
        await answer(asking, line)
    except Left:
        return True
    return False


async def _lines() -> AsyncIterator[str]:
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line


async def answer(asking: "Asking", line: str) -> bool:
    """Answer a line; say whether that went well.

    Raises:
        Left: It says so.
    """
    line = line.strip()
    try:
        if line.startswith("\\"):
            await _do(asking, line)
        elif line:
            await asking.answer(line)
    except KsiError as error:
        output.note(f"ksi: {output.reason(error)}")
        return False
    return True


async def _do(asking: "Asking", line: str) -> None:
    """Do what a line with a backslash says."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if command == "\\q":
        raise Left
    if command == "\\timing":
        asking.is_timed = not asking.is_timed
        output.write(f"timing is {'on' if asking.is_timed else 'off'}")
    elif command == "\\d":
        await _describe(asking, argument)
    elif command in ("\\?", "\\h", "\\help"):
        output.write(HELP)
    else:
        output.note(f"there is no {command}; \\? shows what there is")


async def _describe(asking: "Asking", table: str) -> None:
    if not table:
        await asking.answer(f"SQL {VIEWS}")
    elif _TABLE.fullmatch(table):
        await asking.answer(f"SQL {COLUMNS.format(table)}")
    else:
        output.note(f"{table!r} is no table's name; \\d lists them")


# -- the editor -----------------------------------------------------------------------------------


def history_file() -> Path:
    """Return where what was asked is kept for the arrow keys."""
    return home_directory() / "query_history"


def _history() -> History:
    path = history_file()
    try:
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


class RemCompleter(Completer):
    """Completes commands, clauses, tables and keys.

    Args:
        asking: Knows the keys.
    """

    def __init__(self, asking: "Asking") -> None:
        self._asking = asking

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Complete without asking anybody; the editor calls the other one."""
        text = document.text_before_cursor
        return _completions(text, words_for(text))

    async def get_completions_async(
        self, document: Document, event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Complete; keys are asked for."""
        text = document.text_before_cursor
        for each in _completions(text, words_for(text)):
            yield each
        if wants_key(text):
            part = key_part(text)
            for key in await self._keys(part):
                shown = key if rem.is_plain(key) else rem.quoted(key)
                yield Completion(shown, start_position=-len(part), display=key)

    async def _keys(self, beginning: str) -> tuple[str, ...]:
        try:
            listed = await self._asking.keys(beginning.strip('"'))
        except KsiError:  # nothing to complete with; the question itself will tell
            return ()
        return listed.keys


def words_for(text: str) -> tuple[str, ...]:
    """Return the words that may stand at the end of a text, whatever it already has of them."""
    command = text.split(maxsplit=1)[0].upper() if text.strip() else ""
    if " " not in text.lstrip():
        return (*rem.COMMANDS, "\\d", "\\q", "\\timing", "\\?")
    mode = rem.COMMANDS.get(command)
    if command == "\\D":
        return rem.TABLES
    if mode is None or mode == "sql":
        return ()
    after = _AFTER_KEYWORD.search(_PART.sub("", text))
    if after is not None:
        return _VALUES.get(after[1].lower(), rem.TABLES)
    return rem.TAKEN[mode]


def _completions(text: str, words: Iterable[str]) -> Iterator[Completion]:
    match = _PART.search(text)
    part = match[0] if match is not None else ""
    for word in words:
        if part and word.lower().startswith(part.lower()):
            yield Completion(word, start_position=-len(part))


def wants_key(text: str) -> bool:
    """Say whether a key may stand at the end of a text."""
    command = text.split(maxsplit=1)[0].upper() if text.strip() else ""
    return command in ("LOOKUP", "TRAVERSE", "TIMELINE", "FUZZY") and bool(key_part(text))


def key_part(text: str) -> str:
    """Return what there is of the key at the end of a text."""
    rest = text.lstrip().partition(" ")[2]
    return rest.rpartition(",")[2].lstrip()
