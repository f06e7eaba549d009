"""Calls in whose middle a server asks a person something: they outlast the asking."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from ksi_mcp.client.asking.forms import Answers, Form
from ksi_mcp.client.errors import LostError

MAX_QUESTIONS: Final = 8  # of one call
ENDED: Final = "its connection was ended"
MAX_PARKED: Final = 100  # calls to one server that wait for a person

Ask: TypeAlias = Callable[[Form], Awaitable[Answers | None]]
Key: TypeAlias = tuple[str, str]  # a tenant, and a call


class Dialogue:
    """A call that a server has, and what it wants to know meanwhile.

    Args:
        ask_timeout_s: How long a person may take to answer.
        call_timeout_s: How long the call may take once nobody waits for it any more.

    Attributes:
        form: What the server wants to know just now.
    """

    def __init__(self, ask_timeout_s: float, call_timeout_s: float) -> None:
        self.form: Form | None = None
        self._ask_timeout_s = ask_timeout_s
        self._call_timeout_s = call_timeout_s
        self._questions = 0
        self._answer: asyncio.Future[Answers | None] | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None
        self._result: dict[str, Any] | None = None
        self._error: Exception = LostError(ENDED)
        self._is_over = False

    def start(
        self, group: asyncio.TaskGroup, call: Callable[[Ask], Awaitable[dict[str, Any]]]
    ) -> None:
        """Make the call."""
        self._task = group.create_task(self._run(call), name="call of a server")

    async def _run(self, call: Callable[[Ask], Awaitable[dict[str, Any]]]) -> None:
        try:
            self._result = await call(self.ask)
        except Exception as error:  # noqa: BLE001  it is raised where the call is waited for
            self._error = error
        finally:
            if self._end is not None:
                self._end.cancel()
            self._is_over = True
            self._news.set()

    async def ask(self, form: Form) -> Answers | None:
        """Have a person asked; returns nothing where nobody answers in time, or wants to."""
        self._questions += 1
        if self._questions > MAX_QUESTIONS or self.form is not None or not form.is_bearable:
            return None
        self.form, self._answer = form, asyncio.get_running_loop().create_future()
        self._news.set()
        try:
            async with asyncio.timeout(self._ask_timeout_s):
                return await self._answer
        except TimeoutError:
            self._leave()
            return None
        finally:
            self.form = None

    async def told(self) -> dict[str, Any] | Form:
        """Wait for the call's result, or for a question that is to be answered before."""
        if self._end is not None:
            self._end.cancel()
        while not self._is_over:
            await self._news.wait()
            self._news.clear()
            if self.form is not None:
                return self.form
        if self._result is None:
            raise self._error
        return self._result

    def answer(self, answers: Answers | None) -> None:
        """Tell the server what a person has answered; nothing: they would not."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answers)

    def drop(self) -> None:
        """Decline what is asked; nobody wants to know what comes of the call."""
        self.answer(None)
        self._leave()

    def _leave(self) -> None:
        """End the call in a while, unless somebody waits for it again."""
        self._end = asyncio.get_running_loop().call_later(self._call_timeout_s, self.cancel)

    def cancel(self) -> None:
        """End the call."""
        if self._task is not None:
            self._task.cancel()

    def cut_off(self) -> None:
        """Wait for no person any more: the server is not connected."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LostError(ENDED))

    @property
    def is_over(self) -> bool:
        """Whether the call has ended."""
        return self._is_over


async def nobody(form: Form) -> Answers | None:
    """Ask nobody."""
    return None


class Parked:
    """The calls to a server that wait for a person, or for whoever asks what came of them."""

    def __init__(self) -> None:
        self._dialogues: dict[Key, Dialogue] = {}

    def park(self, key: Key, dialogue: Dialogue) -> None:
        """Keep a call; where too many are kept, the oldest is given up."""
        self._dialogues[key] = dialogue
        if len(self._dialogues) > MAX_PARKED:
            self.drop(next(iter(self._dialogues)))

    def take(self, key: Key) -> Dialogue | None:
        """Return a call that is to go on."""
        return self._dialogues.pop(key, None)

    def drop(self, key: Key) -> None:
        """Decline what is asked in a call."""
        dialogue = self._dialogues.pop(key, None)
        if dialogue is not None:
            dialogue.drop()


class Asking:
    """Knows which call a server's question belongs to, where its protocol does not say so.

    It is that of the only call that is being made; with several there is no telling, and nobody is
    asked what may be another's.
    """

    def __init__(self) -> None:
        self._calls: list[Ask] = []
        self._is_taken = False

    @contextmanager
    def during(self, ask: Ask) -> Iterator[None]:
        """Have what is asked meanwhile belong to a call."""
        self._calls.append(ask)
        try:
            yield
        finally:
            self._calls.remove(ask)
            self._is_taken = False

    def take(self) -> bool:
        """Say whether something can be asked now; if so, it is to be asked next."""
        if self._is_taken or len(self._calls) != 1:
            return False
        self._is_taken = True
        return True

    async def ask(self, form: Form) -> Answers | None:
        """Have a person asked who has to do with the call; nothing where there is none."""
        try:
            return await self._calls[0](form) if len(self._calls) == 1 else None
        finally:
            self._is_taken = False
