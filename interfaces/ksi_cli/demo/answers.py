"""What somebody presses and types, or what is answered where nobody is asked."""

import asyncio
import os
import sys
import termios
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, Self

END: Final = "\x04"  # Ctrl-D
MAX_READ: Final = 4096


class Left(Exception):
    """Raised when whoever was asked has gone: the end of the input."""


class Answers(Protocol):
    """Somebody who can be asked.

    Attributes:
        echoes: Whether a line that is typed is seen.
    """

    echoes: bool

    async def key(self, allowed: str) -> str:
        """Wait for one of these keys.

        Raises:
            Left: Nobody is there any more.
        """

    async def line(self, ask: Callable[[], None]) -> str:
        """Wait for a line; ``ask`` is called once it can be typed.

        Raises:
            Left: Nobody is there any more.
        """


class Prepared:
    """Answers that are given by themselves, one after the other.

    Args:
        answers: Keys and lines.
    """

    echoes = False

    def __init__(self, answers: Iterable[str]) -> None:
        self._answers = deque(answers)

    async def key(self, allowed: str) -> str:
        """Give the next answer."""
        answer = self._answers.popleft()
        assert answer in allowed, answer
        return answer

    async def line(self, ask: Callable[[], None]) -> str:
        """Give the next answer."""
        ask()
        return self._answers.popleft()


class Keyboard:
    """A terminal, from which single keys come; it is as it was after the ``with``."""

    echoes = True

    def __init__(self) -> None:
        self._handle = sys.stdin.fileno()
        self._was: list[Any] = []

    def __enter__(self) -> Self:
        self._was = termios.tcgetattr(self._handle)
        self._set(reads_keys=True)
        return self

    def __exit__(self, *_: object) -> None:
        termios.tcsetattr(self._handle, termios.TCSADRAIN, self._was)

    async def key(self, allowed: str) -> str:
        """Wait for one of these keys; others are passed over."""
        while True:
            text = await self._read()
            if not text or END in text:
                raise Left
            for letter in text.lower():
                if letter in allowed:
                    return letter

    async def line(self, ask: Callable[[], None]) -> str:
        """Wait for a line, which can be edited."""
        self._set(reads_keys=False)
        try:
            ask()
            text = await self._read()
        finally:
            self._set(reads_keys=True)
        if not text:
            raise Left
        return text.strip()

    def _set(self, *, reads_keys: bool) -> None:
        mode = [*self._was]
        if reads_keys:
            mode[3] &= ~(termios.ICANON | termios.ECHO)  # Ctrl-C stays what it is
        termios.tcsetattr(self._handle, termios.TCSADRAIN, mode)

    async def _read(self) -> str:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._handle, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._handle)
        return os.read(self._handle, MAX_READ).decode(errors="ignore")
