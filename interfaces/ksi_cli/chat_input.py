"""Where what a person says comes from: a terminal with an editor, or lines on stdin."""

import asyncio
import os
import queue
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ksi_daemon.protocol.paths import home_directory

if TYPE_CHECKING:  # only a terminal needs it, and it takes long to import
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

# ruff: noqa: PLC0415  prompt_toolkit, as above


LOCAL_FLAGS: Final = 3  # where they stand in what termios tells


class Input(Protocol):
    """Asks a person."""

    async def ask(self, prompt: str, *, is_question: bool = False) -> str:
        """Return what the person says; ``is_question`` keeps it out of the history.

        Raises:
            EOFError: The person has left.
            KeyboardInterrupt: The person has thought better of it.
        """

    def quiet(self) -> AbstractContextManager[None]:
        """Show nothing of what is typed meanwhile; it is there for what is asked next."""


class LinesInput:
    """Reads lines from stdin, without prompting; a line that ends with a backslash goes on."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[Callable[[str], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def ask(self, prompt: str, *, is_question: bool = False) -> str:
        """Return the next line that says something."""
        while True:
            line = await self._line()
            while line.endswith("\\\n"):
                line = line[:-2] + "\n" + await self._line()
            if not line:
                raise EOFError
            if line.strip():
                return line.rstrip("\n")

    def quiet(self) -> AbstractContextManager[None]:
        """Do nothing: nothing is typed."""
        return nullcontext()

    async def _line(self) -> str:
        """Read a line in a thread that nobody waits for: there may never be one."""
        loop = asyncio.get_running_loop()
        line: asyncio.Future[str] = loop.create_future()

        def found(text: str) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_settle, line, text)

        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="stdin", daemon=True)
            self._thread.start()
        self._wanted.put(found)
        return await line

    def _read(self) -> None:
        while True:
            found = self._wanted.get()
            try:
                found(sys.stdin.readline())
            except (UnicodeDecodeError, ValueError, OSError):
                found("")


def _settle(line: "asyncio.Future[str]", text: str) -> None:
    if not line.done():  # else nobody waits for it any more
        line.set_result(text)


class TerminalInput:
    """An editor for some lines: Enter sends, Esc Enter or a backslash at the end begins a line.

    Args:
        words: What Tab completes at the beginning of a line.
    """

    def __init__(self, words: Iterable[str]) -> None:
        from prompt_toolkit import PromptSession

        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
            completer=_completer(words),
            complete_while_typing=False,
        )
        self._questions: PromptSession[str] = PromptSession(key_bindings=_keys(), multiline=True)

    async def ask(self, prompt: str, *, is_question: bool = False) -> str:
        """Edit, and return what is sent."""
        session = self._questions if is_question else self._session
        return await session.prompt_async(prompt, handle_sigint=False)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep the terminal from echoing and from editing lines; Ctrl-C still works."""
        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
        quiet = list(before)
        quiet[LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(handle, termios.TCSANOW, quiet)
        try:
            yield
        finally:
            termios.tcsetattr(handle, termios.TCSANOW, before)


def _history() -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_file()
    try:
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def history_file() -> Path:
    """Return where what was said in ``ksi chat`` is kept for the arrow keys."""
    return home_directory() / "chat_history"


def _keys() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: "KeyPressEvent") -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_line(event: "KeyPressEvent") -> None:
        event.current_buffer.newline()

    return keys


def _completer(words: Iterable[str]) -> "Completer":
    from prompt_toolkit.completion import WordCompleter

    return WordCompleter(list(words), sentence=True)
