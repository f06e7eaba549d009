"""Asks the ``claude`` command, with all of its own tools switched off.

Where it may call tools, it has none but those of a server that we give it, which makes no calls
(see `tool_server`). When its model wants some, the answer ends with them as any model's does, and
the command stays parked: the question that brings the results has it go on. Where it is gone by
then, another one is told what was said and done.
"""

import asyncio
import math
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ksi_daemon.confinement import Confined
from ksi_models.events import Message, ToolCallPart, ToolResultPart, Usage
from ksi_models.keys import Keys
from ksi_models.provider import Answered, Delta, KnownModel, ProviderError, Question
from ksi_models.providers.claude_login import Login
from ksi_models.providers.claude_messages import (
    PREFIX,
    ClaudeReader,
    blocks_of,
    digest_of,
    transcript,
    user_line,
)
from ksi_models.providers.errors import brief
from ksi_models.providers.guarded import Ended, GuardedProcess, ProcessBounds
from ksi_models.providers.tool_server import Desk, OpenTools, ToolServer

MODELS: Final = ("sonnet", "opus", "haiku", "default")
MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@\[\]-]{0,99}")
CONTEXT_TOKENS: Final = 200_000
MAX_SESSIONS: Final = 1000
LINGER_S: Final = 5.0  # it writes its session down after it has answered
# What one call takes is a tenth of this: what it takes more than this is a mistake.
MEMORY_MB: Final = 2048
CPU_S: Final = 300
OPEN_FILES: Final = 1024
SETTING: Final = "models.providers.claude-cli"
NO_MORE_FILES: Final = re.compile(r"EMFILE|too many open files", re.IGNORECASE)
LAST_LINES: Final = 3
CALL: Final = "call-"
PARKED_S: Final = 600.0
MAX_PARKED: Final = 16
SYSTEM: Final = "You are a helpful assistant."
THINKING: Final = {"off": "0", "low": "4000", "medium": "10000", "high": "31999"}
OAUTH_KEY: Final = "sk-ant-oat"

# What a program needs to run and to reach the network; keys are in none of these.
PASSED: Final = frozenset(
    {
        "ALL_PROXY",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LOGNAME",
        "NODE_EXTRA_CA_CERTS",
        "NO_PROXY",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
    }
)
# It is to do nothing that nobody asked for, and to leave retries to who calls.
QUIET: Final = {
    "CLAUDE_CODE_MAX_RETRIES": "0",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
}
# A tool may wait for a person: it is the daemon that bounds how long.
PATIENT: Final = {
    "CLAUDE_CODE_MCP_AUTO_BACKGROUND_MS": "0",
    "CLAUDE_CODE_MCP_TOOL_IDLE_TIMEOUT": "0",
    "ENABLE_TOOL_SEARCH": "false",
    "MAX_MCP_OUTPUT_TOKENS": "1000000",
    "MCP_TIMEOUT": "60000",
    "MCP_TOOL_TIMEOUT": "604800000",
}
FLAGS: Final = (
    "--print",
    "--output-format",
    "stream-json",
    "--input-format",
    "stream-json",
    "--include-partial-messages",
    "--verbose",
    "--tools",
    "",
    "--strict-mcp-config",
    "--setting-sources",
    "",
    "--disable-slash-commands",
    "--permission-mode",
    "dontAsk",
)
BOUNDS: Final = ProcessBounds(memory_mb=MEMORY_MB, cpu_s=CPU_S, open_files=OPEN_FILES)

Whose = tuple[str | None, ...]
Awaited = tuple[Whose, str]  # the first of the calls whose results are awaited: ids may be alike


class Session(Struct, frozen=True):
    """What the command knows of a conversation, and the process that wrote that down."""

    id: str
    messages: int
    digest: bytes
    process: GuardedProcess


class Talk:
    """A process of the command, and what it was handed.

    Attributes:
        whose: Whom it works for: tenant, conversation, run and model.
        calls: Those for whose results it waits.
    """

    def __init__(
        self,
        folder: tempfile.TemporaryDirectory[str],
        reader: ClaudeReader,
        whose: Whose,
    ) -> None:
        self.folder = folder
        self.reader = reader
        self.whose = whose
        self.desk = Desk()
        self.tools: OpenTools | None = None
        self.process: GuardedProcess | None = None
        self.calls: tuple[ToolCallPart, ...] = ()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process is not None and not self.process.is_gone

    def close(self) -> None:
        """Take away what it was handed; it has ended, or is about to."""
        if self.timer is not None:
            self.timer.cancel()
        self.desk.close()
        tools, self.tools = self.tools, None
        if tools is not None:
            tools.close()
        self.folder.cleanup()


class ClaudeCLI:
    """The ``claude`` command: a process for each answer, a session for each conversation.

    Args:
        command: Its name on the `PATH`, or its path.
        config_folder: Where its user's login is; where it has that by itself if empty.
        folder: A folder of our own that it runs in, and that its own files are in.
        keys: May have a login for it.
        max_answer_bytes: How long an answer may be.
        bounds: What the process of a call may take.
        tools: Returns what gives it tools, where anything does.
        parked_s: How long a process waits for the results of tools.
        confined: The processes that are nobody to the daemon but by a token: its own are added.
        environ: What its environment is taken from; the daemon's unless given.
        more: What else is in its environment.
    """

    name = "claude-cli"

    def __init__(
        self,
        command: str,
        config_folder: str,
        folder: Path,
        keys: Keys,
        max_answer_bytes: int = 8 * 1024 * 1024,
        bounds: ProcessBounds = BOUNDS,
        *,
        tools: Callable[[], ToolServer | None] = lambda: None,
        parked_s: float = PARKED_S,
        confined: Confined | None = None,
        environ: Mapping[str, str] = os.environ,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._folder = folder
        self._keys = keys
        self._login = Login(config_folder, folder / "config")
        self._max_answer_bytes = max_answer_bytes
        self._bounds = bounds
        self._tools = tools
        self._parked_s = parked_s
        self._confined = confined
        self._outside = environ
        self._more = dict(more or {})
        self._sessions: OrderedDict[tuple[str, str, str], Session] = OrderedDict()
        self._parked: OrderedDict[Awaited, Talk] = OrderedDict()
        self._running: set[GuardedProcess] = set()
        self._is_cleared = False

    # -- what a provider does -------------------------------------------------------------------

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Ask, in the process that waits for these results, or in the conversation's session."""
        question = await self._checked(question)
        key = (question.tenant, question.conversation or "", question.model)
        talk = self._waiting_for(question)
        if talk is not None:
            try:
                async with aclosing(self._listen(talk, question, key)) as answer:
                    async for delta in answer:
                        yield delta
                return
            except ProviderError as error:  # it may have died while it waited
                if error.kind != "cut_off" or not talk.reader.answer.is_empty:
                    raise
        session = self._sessions.pop(key, None)
        if session is not None and not _goes_on(session, question):
            session = None
        if session is not None:
            await session.process.until_gone()  # it may still be writing its session
            try:
                async with aclosing(self._ask(question, key, session)) as answer:
                    async for delta in answer:
                        yield delta
                return
            except _NoSession:
                pass
        async with aclosing(self._ask(question, key, None)) as answer:
            async for delta in answer:
                yield delta

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Refuse: it makes no vectors."""
        raise ProviderError("refused", "the claude command makes no vectors")

    async def models(self) -> list[KnownModel]:
        """Return the names that it understands; further ones may do as well."""
        return [KnownModel(name=name, context_tokens=CONTEXT_TOKENS) for name in MODELS]

    async def why_not(self) -> str | None:
        """Say that there is no such command, that nobody has logged in, or that it can't be held.

        The last is told as far as it is known.
        """
        if self._found() is None:
            return f"there is no command {self._command!r}; install Claude Code, and log in"
        if not await self._keys.find(self.name) and (why := self._login.why_not()):
            return why
        tools = self._tools()
        return None if tools is None else tools.why_not_now()

    async def close(self) -> None:
        """End all that runs."""
        running = list(self._running)
        for process in running:
            process.end()
        for process in running:
            await process.until_gone()
        for talk in self._parked.values():
            talk.close()
        self._parked.clear()
        self._running.clear()
        self._sessions.clear()
        await self._login.bring_back()

    def end_run(self, run: str) -> None:
        """End the processes that wait for results of a run that is over."""
        for awaited, talk in list(self._parked.items()):
            if run in talk.whose:
                self._forget(awaited)

    async def _checked(self, question: Question) -> Question:
        tools = self._tools()
        if question.settings.tool_choice == "none":
            question = msgspec.structs.replace(question, tools=())
        if question.tools and tools is None:
            raise ProviderError(
                "refused",
                "tools reach the claude command through MCP, which isn't on here (ksi_mcp); ask "
                "another model, or ask without tools",
            )
        if not MODEL.fullmatch(question.model):
            raise ProviderError("not_found", "that is no name of a model of the claude command")
        if tools is not None and self._found() is not None:
            why = await tools.why_not(with_tools=bool(question.tools))
            if why is not None:
                raise ProviderError("untrusted", why)
        return question

    # -- a call ---------------------------------------------------------------------------------

    async def _ask(
        self, question: Question, key: tuple[str, str, str], session: Session | None
    ) -> AsyncGenerator[Delta, None]:
        """Start a process, and ask it."""
        known = session.messages if session else 0
        blocks = blocks_of(question.messages[known:]) if session else transcript(question.messages)
        names = frozenset(tool.name for tool in question.tools)
        reader = ClaudeReader(self.name, self._max_answer_bytes, self._keys.redacted, names)
        folder = tempfile.TemporaryDirectory(dir=self._own_folder(), prefix=CALL)
        talk = Talk(folder, reader, _whose(question))
        try:
            talk.process = await self._start(question, session, talk)
            talk.process.write_and_close(user_line(blocks))
        except OSError as error:
            talk.close()
            raise _not_started(error) from error
        except BaseException:
            talk.close()
            raise
        async with aclosing(self._listen(talk, question, key)) as answer:
            async for delta in answer:
                yield delta

    async def _listen(
        self, talk: Talk, question: Question, key: tuple[str, str, str]
    ) -> AsyncGenerator[Delta, None]:
        """Hand on an answer, to its end or to where the process waits for results."""
        process, reader = talk.process, talk.reader
        assert process is not None
        is_kept = False
        try:
            async with aclosing(self._read(process, reader)) as answer:
                async for delta in answer:
                    yield delta
            end = reader.answer.answered(reader.finish, reader.usage, served=reader.served)
            if reader.is_done:
                self._remember(question, key, end, reader, process)
            else:
                self._park(talk, end.message)
                is_kept = True
            yield end
        finally:
            if not is_kept:
                await self._leave(process, is_done=reader.is_done)
                talk.close()
                await self._login.bring_back()

    async def _start(
        self, question: Question, session: Session | None, talk: Talk
    ) -> GuardedProcess:
        command = self._found()
        if command is None:
            raise ProviderError("login", str(await self.why_not()))
        folder = Path(talk.folder.name)
        prompt = folder / "prompt"
        prompt.write_bytes(_system(question).encode(errors="replace"))
        arguments = [command, *FLAGS, "--system-prompt-file", str(prompt)]
        tools = self._tools()
        if question.tools and tools is not None:
            talk.tools = await tools.open(question.tools, talk.desk.result_of, folder)
            arguments += ["--mcp-config", str(talk.tools.config)]
            arguments += ["--allowedTools", PREFIX.removesuffix("__")]
        if question.model != "default":
            arguments += ["--model", question.model]
        if session is not None:
            arguments += ["--resume", session.id]
        elif question.conversation is None:
            arguments.append("--no-session-persistence")
        secrets = await self._secrets()
        await self._login.lend(has_key=bool(secrets))
        process = await GuardedProcess.start(
            arguments,
            environ=self._environ(question),
            secrets=secrets,
            folder=self._own_folder(),
            max_line_bytes=2 * self._max_answer_bytes,
            bounds=self._bounds,
            confined=self._confined,
        )
        self._running.add(process)
        return process

    # -- waiting for results --------------------------------------------------------------------

    def _park(self, talk: Talk, message: Message) -> None:
        """Have a process wait for the results of the calls in its answer, for a while."""
        talk.calls = _calls_of(message)
        awaited = talk.whose, talk.calls[0].id
        self._parked[awaited] = talk
        talk.timer = asyncio.get_running_loop().call_later(self._parked_s, self._forget, awaited)
        if len(self._parked) > MAX_PARKED:
            self._forget(next(iter(self._parked)))

    def _forget(self, awaited: Awaited) -> None:
        """End a process that waits for results."""
        talk = self._parked.pop(awaited, None)
        if talk is None:
            return
        talk.close()
        if talk.process is not None:
            talk.process.end()
            asyncio.get_running_loop().call_later(LINGER_S, self._drop, talk.process)

    def _waiting_for(self, question: Question) -> Talk | None:
        """Return the process that waits for what a question brings, and give it that."""
        said = _last_calls(question.messages)
        if said is None:
            return None
        calls, results = said
        awaited = _whose(question), calls[0].id
        talk = self._parked.get(awaited)
        if talk is None or talk.calls != calls:
            return None
        if results is None or not talk.is_alive:
            self._forget(awaited)
            return None
        del self._parked[awaited]
        if talk.timer is not None:
            talk.timer.cancel()
        talk.reader.go_on()
        talk.desk.give(calls, results)
        return talk

    async def _read(
        self, process: GuardedProcess, reader: ClaudeReader
    ) -> AsyncGenerator[Delta, None]:
        while not (reader.is_done or reader.is_parked):
            try:
                line = await process.read_line()
            except ValueError as error:
                raise ProviderError(
                    "malformed", "the claude command wrote a line longer than any answer"
                ) from error
            if not line:
                raise await self._ended_early(process, reader)
            if line.strip():
                reader.read(line)
                self._check(reader.version)
            for piece in reader.answer.take():
                yield piece

    def _check(self, version: str) -> None:
        """Refuse a command that was replaced where nobody could see that, as behind a wrapper."""
        tools = self._tools()
        if tools is not None and version and not tools.is_tried(version):
            raise ProviderError(
                "server", f"the claude command is another one by now, {version}: it is tried first"
            )

    async def _ended_early(self, process: GuardedProcess, reader: ClaudeReader) -> Exception:
        """Say why it ended before its answer did."""
        process.end()
        await process.until_gone()
        said = brief(last_lines(self._keys.redacted(process.complaints)), self._keys.redacted)
        if "No conversation found" in said and reader.answer.is_empty:
            return _NoSession()
        if "unknown option" in said:
            return ProviderError("refused", f"the claude command is too old; update it: {said}")
        return died(process.ended, self._bounds, said)

    async def _leave(self, process: GuardedProcess, *, is_done: bool) -> None:
        """End a process; one that has answered is given the time to end by itself."""
        if is_done:
            asyncio.get_running_loop().call_later(LINGER_S, self._drop, process)
            return
        process.end()
        await process.until_gone()
        self._running.discard(process)

    def _drop(self, process: GuardedProcess) -> None:
        process.end()
        self._running.discard(process)

    # -- sessions -------------------------------------------------------------------------------

    def _remember(
        self,
        question: Question,
        key: tuple[str, str, str],
        end: Answered,
        reader: ClaudeReader,
        process: GuardedProcess,
    ) -> None:
        if question.conversation is None or reader.session is None:
            return
        messages = (*question.messages, end.message)
        digest = digest_of(_system(question), messages)
        self._sessions[key] = Session(reader.session, len(messages), digest, process)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    # -- where it is ----------------------------------------------------------------------------

    @staticmethod
    def found(command: str) -> str | None:
        """Return the path of a command, where there is one."""
        return shutil.which(Path(command).expanduser())

    def _found(self) -> str | None:
        return self.found(self._command)

    def _own_folder(self) -> Path:
        """Return the folder: made, and cleared of a dead daemon's files, when it is first used."""
        if not self._is_cleared:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._folder.glob(f"{CALL}*"):
                shutil.rmtree(left, ignore_errors=True)
            self._is_cleared = True
        return self._folder

    async def _secrets(self) -> dict[str, str]:
        """Return the login that it is given, where it is not to use that of its own."""
        key = await self._keys.find(self.name)
        if not key:
            return {}
        kind = "OAUTH_TOKEN" if key.startswith(OAUTH_KEY) else "API_KEY"
        return {f"CLAUDE_CODE_{kind}_FILE_DESCRIPTOR": key}

    def _environ(self, question: Question) -> dict[str, str]:
        """Return its environment: nothing of the daemon's but what it runs by."""
        environ = {
            name: value
            for name, value in self._outside.items()
            if name.upper() in PASSED or name.startswith("LC_")
        }
        environ.update(QUIET)
        environ.update(PATIENT if question.tools else {})
        environ["CLAUDE_CONFIG_DIR"] = str(self._login.folder)
        environ.update(self._more)
        if question.settings.max_tokens is not None:
            environ["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(question.settings.max_tokens)
        if question.settings.thinking is not None:
            environ["MAX_THINKING_TOKENS"] = THINKING[question.settings.thinking]
        return environ


class OverLimit(ProviderError):
    """A process took more than a setting allows."""

    def __init__(self, message: str, bound: str) -> None:
        super().__init__("over_limit", f"{message} ({SETTING}.{bound})")
        self.setting = f"{SETTING}.{bound}"


def died(ended: Ended, bounds: ProcessBounds, said: str) -> ProviderError:
    """Return the error that tells why a process ended before its answer did, and what it said."""
    told = f"; it said: {said}" if said else ""
    if ended.broken == "memory_mb":
        return OverLimit(
            f"the claude command was ended, as it held {math.ceil(ended.memory_mb)} MB of memory "
            f"and may hold {bounds.memory_mb}{told}",
            "memory_mb",
        )
    if ended.broken == "cpu_s":
        return OverLimit(
            f"the claude command was ended, as it took {ended.cpu_s:g} s of CPU time and may take "
            f"{bounds.cpu_s}{told}",
            "cpu_s",
        )
    if bounds.open_files is not None and NO_MORE_FILES.search(said):
        return OverLimit(
            f"the claude command ended, as it may have {bounds.open_files} files open and wanted "
            f"more{told}",
            "open_files",
        )
    if ended.signal is None:
        how = f"ended with the exit code {ended.code}"
    elif ended.signal == "SIGKILL":
        how = "was ended by SIGKILL, and not by us: perhaps by the kernel, for want of memory,"
    else:
        how = f"was ended by {ended.signal}"
    return ProviderError("cut_off", f"the claude command {how} without an answer{told}")


def _not_started(error: OSError) -> ProviderError:
    return ProviderError("server", f"the claude command can't be started: {error.strerror}")


def last_lines(text: str) -> str:
    """Return the last lines of a text in one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-LAST_LINES:])


class _NoSession(Exception):
    """The command does not know the session any more."""


def _whose(question: Question) -> Whose:
    return question.tenant, question.conversation, question.run, question.model


def _calls_of(message: Message) -> tuple[ToolCallPart, ...]:
    return tuple(part for part in message.parts if isinstance(part, ToolCallPart))


def _last_calls(
    messages: tuple[Message, ...],
) -> tuple[tuple[ToolCallPart, ...], dict[str, ToolResultPart] | None] | None:
    """Return the calls of the last answer; their results where these are all that follows."""
    last = next(
        (at for at in reversed(range(len(messages))) if messages[at].role == "assistant"), 0
    )
    calls = _calls_of(messages[last]) if messages else ()
    if not calls:
        return None
    parts = [part for message in messages[last + 1 :] for part in message.parts]
    results = {part.id: part for part in parts if isinstance(part, ToolResultPart)}
    is_all = len(results) == len(parts) and results.keys() == {call.id for call in calls}
    return calls, results if is_all else None


def _goes_on(session: Session, question: Question) -> bool:
    """Tell whether messages are those of a session, and new ones of the user's after them.

    The system prompt must be the session's, too: the command goes on with that one.
    """
    old, new = question.messages[: session.messages], question.messages[session.messages :]
    return (
        bool(new)
        and all(message.role == "user" for message in new)
        and digest_of(_system(question), old) == session.digest
    )


def _system(question: Question) -> str:
    system = question.system or SYSTEM
    if question.output_schema is None:
        return system
    schema = msgspec.json.encode(question.output_schema).decode()
    return f"{system}\n\nAnswer with JSON only, which follows this schema: {schema}"
