"""Asks the ``claude`` command, with all of its own tools switched off."""

import asyncio
import math
import os
import re
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ksi_models.events import Usage
from ksi_models.keys import Keys
from ksi_models.provider import Answered, Delta, KnownModel, ProviderError, Question
from ksi_models.providers.claude_messages import (
    ClaudeReader,
    blocks_of,
    digest_of,
    transcript,
    user_line,
)
from ksi_models.providers.errors import brief
from ksi_models.providers.guarded import Ended, GuardedProcess, ProcessBounds

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
PROMPT: Final = ".prompt"
SYSTEM: Final = "You are a helpful assistant."
THINKING: Final = {"off": "0", "low": "4000", "medium": "10000", "high": "31999"}
OAUTH_KEY: Final = "sk-ant-oat"

# What a program needs to run and to reach the network; keys are in none of these.
PASSED: Final = frozenset(
    {
        "ALL_PROXY",
        "CLAUDE_CONFIG_DIR",
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
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
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
)


BOUNDS: Final = ProcessBounds(memory_mb=MEMORY_MB, cpu_s=CPU_S, open_files=OPEN_FILES)


class Session(Struct, frozen=True):
    """What the command knows of a conversation, and the process that wrote that down."""

    id: str
    messages: int
    digest: bytes
    process: GuardedProcess


class ClaudeCLI:
    """The ``claude`` command: a process for each call, a session for each conversation.

    Args:
        command: Its name on the `PATH`, or its path.
        config_folder: Where it keeps its login and sessions; where it does by itself if empty.
        folder: A folder of our own that it runs in.
        keys: May have a login for it.
        max_answer_bytes: How long an answer may be.
        bounds: What the process of a call may take.
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
    ) -> None:
        self._command = command
        self._config_folder = config_folder
        self._folder = folder
        self._keys = keys
        self._max_answer_bytes = max_answer_bytes
        self._bounds = bounds
        self._sessions: OrderedDict[tuple[str, str, str], Session] = OrderedDict()
        self._running: set[GuardedProcess] = set()
        self._is_cleared = False

    # -- what a provider does -------------------------------------------------------------------

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Ask, in the conversation's session where that has all that was said before."""
        _check(question)
        key = (question.tenant, question.conversation or "", question.model)
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
        """Say that there is no such command, or that nobody has logged in."""
        if self._found() is None:
            return f"there is no command {self._command!r}; install Claude Code, and log in"
        if await self._keys.find(self.name) or self._has_login():
            return None
        return "nobody has logged in: run `claude` once and log in"

    async def close(self) -> None:
        """End all that runs."""
        running = list(self._running)
        for process in running:
            process.end()
        for process in running:
            await process.until_gone()
        self._running.clear()
        self._sessions.clear()

    # -- a call ---------------------------------------------------------------------------------

    async def _ask(
        self, question: Question, key: tuple[str, str, str], session: Session | None
    ) -> AsyncGenerator[Delta, None]:
        known = session.messages if session else 0
        blocks = blocks_of(question.messages[known:]) if session else transcript(question.messages)
        reader = ClaudeReader(self.name, self._max_answer_bytes, self._keys.redacted)
        with tempfile.NamedTemporaryFile(dir=self._own_folder(), suffix=PROMPT) as prompt:
            prompt.write(_system(question).encode(errors="replace"))
            prompt.flush()
            process = await self._start(question, session, prompt.name)
            try:
                process.write_and_close(user_line(blocks))
                async with aclosing(self._read(process, reader)) as answer:
                    async for delta in answer:
                        yield delta
                end = reader.answer.answered(reader.finish, reader.usage, served=reader.served)
                self._remember(question, key, end, reader, process)
                yield end
            finally:
                await self._leave(process, is_done=reader.is_done)

    async def _start(
        self, question: Question, session: Session | None, prompt: str
    ) -> GuardedProcess:
        command = self._found()
        if command is None:
            raise ProviderError("login", str(await self.why_not()))
        arguments = [command, *FLAGS, "--system-prompt-file", prompt]
        if question.model != "default":
            arguments += ["--model", question.model]
        if session is not None:
            arguments += ["--resume", session.id]
        elif question.conversation is None:
            arguments.append("--no-session-persistence")
        try:
            process = await GuardedProcess.start(
                arguments,
                environ=self._environ(question),
                secrets=await self._login(),
                folder=self._own_folder(),
                max_line_bytes=2 * self._max_answer_bytes,
                bounds=self._bounds,
            )
        except OSError as error:
            raise ProviderError(
                "server", f"the claude command can't be started: {error.strerror}"
            ) from error
        self._running.add(process)
        return process

    async def _read(
        self, process: GuardedProcess, reader: ClaudeReader
    ) -> AsyncGenerator[Delta, None]:
        while not reader.is_done:
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
            for piece in reader.answer.take():
                yield piece

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

    def _found(self) -> str | None:
        return shutil.which(Path(self._command).expanduser())

    def _config(self) -> Path:
        chosen = self._config_folder or os.environ.get("CLAUDE_CONFIG_DIR")
        return Path(chosen).expanduser() if chosen else Path.home() / ".claude"

    def _has_login(self) -> bool:
        """Tell whether there is a login; on macOS it is in the keychain, and noted elsewhere."""
        if (self._config() / ".credentials.json").is_file():
            return True
        if sys.platform != "darwin":
            return False
        try:
            return '"oauthAccount"' in (Path.home() / ".claude.json").read_text(errors="replace")
        except OSError:
            return False

    def _own_folder(self) -> Path:
        """Return the folder: made, and cleared of a dead daemon's files, when it is first used."""
        if not self._is_cleared:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._folder.glob(f"*{PROMPT}"):
                left.unlink(missing_ok=True)
            self._is_cleared = True
        return self._folder

    async def _login(self) -> dict[str, str]:
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
            for name, value in os.environ.items()
            if name.upper() in PASSED or name.startswith("LC_")
        }
        environ.update(QUIET)
        if self._config_folder:
            environ["CLAUDE_CONFIG_DIR"] = str(self._config())
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


def last_lines(text: str) -> str:
    """Return the last lines of a text in one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-LAST_LINES:])


class _NoSession(Exception):
    """The command does not know the session any more."""


def _check(question: Question) -> None:
    if question.tools:
        raise ProviderError(
            "refused",
            "tools reach the claude command through MCP, which this version doesn't serve; ask "
            "another model, or ask without tools",
        )
    if not MODEL.fullmatch(question.model):
        raise ProviderError("not_found", "that is no name of a model of the claude command")


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
