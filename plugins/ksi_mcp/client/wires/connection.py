"""A live connection to a server: a task holds it from its beginning to its end."""

import asyncio
import importlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from ksi_daemon.confinement import Confined
from ksi_daemon.protocol import KsiError
from ksi_mcp.client.asking.dialogues import Ask, Asking, Dialogue, nobody
from ksi_mcp.client.asking.forms import Answers, Form
from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.client.keys.references import Secrets
from ksi_mcp.client.keys.suspects import literal_secrets, secrets_in
from ksi_mcp.client.tools.text import cleaned
from ksi_mcp.events import McpServer
from ksi_mcp.lines import Bounds
from ksi_mcp.settings import McpSettings
from ksi_models.api import GuardedProcess, ProcessBounds

log = logging.getLogger(__name__)

SESSION: Final = "ksi_mcp.client.wires.session"  # loaded late, with the SDK
BEARER: Final = "ksi_mcp.client.wires.bearer"
WATCHING: Final = "ksi_mcp.client.wires.watching"
PROCESSES: Final = "ksi_mcp.client.wires.processes"
BY_HTTP: Final = "ksi_mcp.client.wires.by_http"
MAX_ITEMS: Final = 1_000
CLOSE_S: Final = 5.0
TELL_S: Final = 1.0
REFRESH_S: Final = 1.0
MAX_REFRESH_S: Final = 60.0
STEADY_S: Final = 10.0
LOGGED_S: Final = 10.0
UNAUTHORIZED: Final = "HTTP 401"
MAX_WHY_CHARS: Final = 1_000
# What any program needs of the environment, and no more.
KEPT: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")


class Progress(Protocol):
    """Says how far a call is."""

    def __call__(self, message: str, done: float | None = None, total: float | None = None) -> None:
        """Tell it."""


Listed = Callable[[list[dict[str, Any]], bool], Awaitable[None]]


class Connection:
    """A server, connected.

    Args:
        name: The server's.
        server: What it is.
        settings: The bounds.
        folder: Its own, where its process runs.
        listed: Told what it says of its tools, and whether that is all, whenever it was asked.
        login: The file of the login with it, where one logs in.
        confined: Knows whom the daemon does not take for its owner: a server's process is nobody.
        ended: Told when it has ended, or is about to.

    Attributes:
        is_ready: Set when it has told its tools, or has failed.
        was_ready: Whether it had told its tools.
        is_over: Whether it has ended, or is about to.
        why: Why it ended, where something was wrong.
        calls: How many are being made.
        used_at: When one was made the last time.
    """

    def __init__(
        self,
        name: str,
        server: McpServer,
        settings: McpSettings,
        folder: Path,
        listed: Listed,
        login: Path | None = None,
        confined: Confined | None = None,
        ended: Callable[["Connection"], None] | None = None,
    ) -> None:
        self.is_ready = asyncio.Event()
        self.was_ready = False
        self.is_over = False
        self.why: str | None = None
        self.calls = 0
        self.used_at = time.monotonic()
        self._name = name
        self._server = server
        self._settings = settings
        self._bounds = Bounds(settings.max_result_bytes, settings.max_result_values)
        self._folder = folder
        self._listed = listed
        self._login = login
        self._confined = confined
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._session: Any = None
        self._is_stale = False
        self._stirred = asyncio.Event()
        self._secrets = Secrets()
        self._process: GuardedProcess | None = None
        self._group: asyncio.TaskGroup | None = None
        self._asks = Asking()
        self._dialogues: list[Dialogue] = []
        self._has_answered = False
        self._has_left = False
        self._ready_at = 0.0
        self._asked_at = 0.0
        self._pause_s = REFRESH_S
        self._asking: asyncio.Timeout | None = None
        self._logged_at = 0.0
        self._heard_at = 0.0
        self._silent_s = 0.0  # how long calls have waited since then
        self._silent_until = 0.0
        self._people = 0  # who are asked something just now

    # -- its task -------------------------------------------------------------------------------

    def start(self, group: asyncio.TaskGroup) -> None:
        """Begin to connect."""
        self._group = group
        self._task = group.create_task(self._run(), name=f"server {self._name}")

    async def _run(self) -> None:
        """Connect, ask for the tools, and stay connected while there is something to do."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s) as limit:
                async with self._opened() as session:
                    await self._ask_for_tools(session)
                    self._session = session
                    limit.reschedule(None)
                    self._ready_at = time.monotonic()
                    self.was_ready = True
                    self.is_ready.set()
                    await self._live(session)
                    await self._until_told()
                    limit.reschedule(asyncio.get_running_loop().time() + CLOSE_S)
        except TimeoutError:
            if self._session is None:
                self.give_up(f"it did not answer within {self._settings.connect_timeout_s:g} s")
        except KsiError as error:
            self.give_up(error.message)
        except Exception as error:  # noqa: BLE001  a stranger's program may have the SDK raise what it likes
            self.give_up(_told(error))
        finally:
            self._over()
            self._session = None
            self.is_ready.set()
            for each in self._dialogues:
                each.cut_off()

    def _explained(self, why: str) -> str:
        why = self._advised(why)
        complaints = self._process.complaints if self._process is not None else ""
        if complaints:
            why = f"{why}; it said: {complaints}"
        return self._secrets.masked(cleaned(why, MAX_WHY_CHARS))

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Any]:
        sdk: Any = await asyncio.to_thread(importlib.import_module, SESSION)
        watching: Any = await asyncio.to_thread(importlib.import_module, WATCHING)
        sdk.hush()
        self._secrets.note(*literal_secrets(self._server))
        wire = await (self._process_wire() if self._server.command else self._http_wire())
        watched = watching.watched(
            wire,
            self._settings.max_messages_per_s,
            max(MAX_ITEMS, self._settings.max_tools),
            may_ask=self._asks.take,
            on_message=self._heard,
            on_end=self._gone,
        )
        async with sdk.opened(
            watched,
            handshake=self._server.handshake,
            changed=self._changed,
            logged=self._log,
            ask=self._asks.ask,
        ) as session:
            yield session

    async def _process_wire(self) -> Any:
        wires: Any = await asyncio.to_thread(importlib.import_module, PROCESSES)
        server = self._server
        args = [await self._secrets.filled("an argument", each) for each in server.args]
        variables = await self._secrets.all_filled(server.variables)
        environ = _environ(server, self._folder, variables)
        for name in server.environment:
            self._secrets.note(*secrets_in(name, environ.get(name, "")))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._process = await GuardedProcess.start(
            [server.command, *args],
            environ=environ,
            folder=self._folder,
            max_line_bytes=wires.READ_BYTES,
            bounds=ProcessBounds(memory_mb=server.memory_mb),
            confined=self._confined,
        )
        return wires.process_wire(self._process, self._bounds)

    async def _http_wire(self) -> Any:
        by_http: Any = await asyncio.to_thread(importlib.import_module, BY_HTTP)
        url = await self._secrets.filled("the URL", self._server.url, in_url=True)
        headers = await self._secrets.all_filled(self._server.headers)
        auth = None
        if self._login is not None:
            bearer: Any = await asyncio.to_thread(importlib.import_module, BEARER)
            auth = bearer.Bearer(self._login, url, self._secrets.note)
        return by_http.http_wire(
            url,
            headers,
            auth,
            bounds=self._bounds,
            connect_timeout_s=self._settings.connect_timeout_s,
        )

    async def _live(self, session: Any) -> None:
        """Stay until nobody has called for a while, the server is gone, or `end` was called."""
        while not self.is_over:
            is_stale = self._is_stale
            if is_stale and self._refresh_in_s() <= 0:
                await self._refresh(session)
            elif await self._is_stirred(
                self._refresh_in_s() if is_stale else self._settings.idle_s
            ):
                continue
            elif not is_stale and not self.calls:
                self._over()  # before it is closed: nobody may call any more

    async def _until_told(self) -> None:
        """Let those who call a server that has left be told whether it can have got that."""
        until = time.monotonic() + TELL_S
        while self._has_left and self.calls:
            if not await self._is_stirred(until - time.monotonic()):
                return

    async def _is_stirred(self, within_s: float) -> bool:
        """Wait for something to happen; says whether it did."""
        try:
            async with asyncio.timeout(within_s):
                await self._stirred.wait()
        except TimeoutError:
            return False
        self._stirred.clear()
        return True

    def _refresh_in_s(self) -> float:
        """Return when the tools may be asked for anew: ever later while they keep changing."""
        return self._asked_at + self._pause_s - time.monotonic()

    async def _refresh(self, session: Any) -> None:
        """Ask for the tools anew: once, however often the server says that they have changed."""
        is_calm = time.monotonic() - self._asked_at > MAX_REFRESH_S
        self._pause_s = REFRESH_S if is_calm else min(2 * self._pause_s, MAX_REFRESH_S)
        self._is_stale = False
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s) as self._asking:
                await self._ask_for_tools(session)
        except (NotSentError, LostError, TimeoutError) as error:
            self.give_up(str(error) or "it does not answer")
        except (AnswerError, KsiError) as error:
            told = {"server": self._name, "why": str(error)}
            log.warning("a server's tools are not known anew", extra=told)
        finally:
            self._asking = None

    async def _ask_for_tools(self, session: Any) -> None:
        self._asked_at = time.monotonic()
        most, max_bytes = self._settings.max_tools, self._settings.max_tools_bytes
        found, is_all = await session.tools(most, max_bytes)
        await self._listed(found, is_all)

    # -- what is asked of it --------------------------------------------------------------------

    def begin(self, tool: str, arguments: dict[str, Any], progress: Progress) -> Dialogue:
        """Begin a call in whose middle a person may be asked something."""
        assert self._group is not None  # it was started
        call_timeout_s = self._server.timeout_s or self._settings.call_timeout_s
        dialogue = Dialogue(self._settings.ask_timeout_s, call_timeout_s)
        dialogue.start(self._group, lambda ask: self.call(tool, arguments, progress, ask))
        self._dialogues = [each for each in self._dialogues if not each.is_over] + [dialogue]
        return dialogue

    async def call(
        self, tool: str, arguments: dict[str, Any], progress: Progress, ask: Ask = nobody
    ) -> dict[str, Any]:
        """Call a tool, and return what it returned as MCP has it in JSON.

        Args:
            tool: Its own name for it.
            arguments: What it is called with.
            progress: Told how far the call is.
            ask: Has a person asked what the server wants to know meanwhile.

        Raises:
            NotSentError: The server has not got the call.
            AnswerError: It says that it can't be done.
            LostError: Nobody knows what came of it.
        """
        session = self._session
        if session is None or self.is_over:
            raise NotSentError("it is not connected")
        self.calls += 1
        self._stirred.set()
        began = time.monotonic()
        try:
            with self._asks.during(asked := self._counted(ask)):
                result: dict[str, Any] = await session.call(
                    tool, arguments, self._masking(progress), asked
                )
        except (NotSentError, AnswerError, LostError) as error:
            self._has_answered = self._has_answered or isinstance(error, AnswerError)
            raise type(error)(self._advised(self._secrets.masked(str(error)))) from error
        except asyncio.CancelledError:
            self._waited_in_vain(began)
            raise
        finally:
            self.calls -= 1
            self.used_at = time.monotonic()
            self._stirred.set()
        self._has_answered = True
        if not self._secrets:
            return result
        return await asyncio.to_thread(self._secrets.masked_all, result)

    def _counted(self, ask: Ask) -> Ask:
        """Have it known while a person is asked: the server has reason to be silent then."""

        async def asked(form: Form) -> Answers | None:
            self._people += 1
            try:
                return await ask(form)
            finally:
                self._people -= 1
                self._heard()

        return asked

    def _masking(self, progress: Progress) -> Progress:
        def told(message: str, done: float | None = None, total: float | None = None) -> None:
            progress(self._secrets.masked(message), done, total)

        return told

    def _advised(self, why: str) -> str:
        """Return what went wrong, and what to do where the server wants to know who calls."""
        if UNAUTHORIZED not in why or not self._server.url:
            return why
        if self._server.oauth:
            return f"{why}: log in with ksi mcp login {self._name}"
        if self._server.headers:
            return f"{why}: what its headers have is not taken"
        return f"{why}: it is to be added with --oauth, or with a --header that names a secret"

    def _waited_in_vain(self, since: float) -> None:
        """End a connection over which nothing at all comes for as long as a call may take."""
        if self._people:
            return
        now = time.monotonic()
        self._silent_s += now - max(since, self._heard_at, self._silent_until)
        self._silent_until = now
        if self._silent_s >= (self._server.timeout_s or self._settings.call_timeout_s):
            self.give_up(f"it said nothing for {self._silent_s:.0f} s while it was called")

    def _heard(self) -> None:
        self._heard_at, self._silent_s = time.monotonic(), 0.0

    async def refresh(self) -> None:
        """Ask for the tools now.

        Raises:
            NotSentError: It is not connected.
        """
        if self._session is None:
            raise NotSentError("it is not connected")
        await self._ask_for_tools(self._session)

    async def until_left(self) -> None:
        """Wait until it has ended, which has a time limit."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def end(self) -> None:
        """Have it ended; does not wait for that."""
        self._over()
        if self._task is not None and not self.is_ready.is_set():
            self._task.cancel()  # it is being connected still, or has not even begun
            self.is_ready.set()

    def give_up(self, why: str) -> None:
        """Have it ended, since something is wrong."""
        if not self.is_over:
            self.why = self._explained(why)
            self._over()

    def _over(self) -> None:
        """Let nobody call any more."""
        if not self.is_over:
            self.is_over = True
            if self._ended is not None:
                self._ended(self)
        if self._asking is not None and not self._asking.expired():
            self._asking.reschedule(0.0)  # nobody wants to know any more
        self._stirred.set()

    def is_idle(self) -> bool:
        """Say whether it is connected, and nobody calls it."""
        return self.is_ready.is_set() and not self.is_over and not self.calls

    @property
    def did_well(self) -> bool:
        """Whether it was of use, or stayed for a while."""
        is_steady = self.was_ready and time.monotonic() - self._ready_at >= STEADY_S
        return self._has_answered or is_steady

    def _gone(self, why: str) -> None:
        """Note that the server says nothing more; who connects it is told by the SDK."""
        if self._session is not None:
            self._has_left = True
            self.give_up(why)

    def _changed(self) -> None:
        self._is_stale = True
        self._stirred.set()

    def _log(self, text: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOGGED_S:
            self._logged_at = now
            told = self._secrets.masked(text)
            log.warning("a server complains", extra={"server": self._name, "says": told})


def _environ(server: McpServer, folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a server's process: nothing of the daemon's but what is named."""
    kept = {name: os.environ[name] for name in (*KEPT, *server.environment) if name in os.environ}
    return {"HOME": str(folder), **kept, **variables}


def _told(error: BaseException) -> str:
    """Return what went wrong at the bottom of what the SDK's groups of tasks make of it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
