"""Ask a model something: ``ksi ask``."""

import asyncio
import base64
import mimetypes
import os
import select
import signal
import stat
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from msgspec import Struct

from ksi_cli import completion, output, turns
from ksi_cli.connection import connect_async
from ksi_cli.output import JsonFlag, UsageError
from ksi_cli.spinner import Spinner
from ksi_client import (
    AcceptedChunk,
    AsyncClient,
    Completion,
    CompletionChunk,
    KsiError,
    RestartedChunk,
    StatusChunk,
    TextChunk,
    ToolCallChunk,
    ToolResultChunk,
)
from ksi_daemon.protocol import ErrorBody

STDIN_WAIT_S: Final = 3.0
# What fits into one frame to the daemon, base64 included.
MAX_FILES_BYTES: Final = 2_500_000
MAX_PROMPT: Final = 2_000_000

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PROMPT]…", help="What to ask; - is what comes on stdin."),
]


class AskReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a turn; ``output`` is the answer where it succeeded."""

    run_id: str
    conversation_id: str
    status: str
    request_id: str = ""
    output: Any = None
    model: str | None = None
    usage: dict[str, int] = {}
    cost_usd: float | None = None
    tool_calls: int = 0
    waits_for: str | None = None
    error: ErrorBody | None = None


def ask(
    prompt: Words = None,
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="See: ksi model list",
            autocompletion=completion.models,
        ),
    ] = None,
    conversation: Annotated[
        str | None,
        typer.Option(
            "--conversation",
            "-c",
            metavar="ID",
            help="Go on with a conversation; one that is not there begins.",
            autocompletion=completion.conversations,
        ),
    ] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="In whose name; its tools and rules hold.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="PATH", help="Hand over a file, too; repeatable."),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Print while it comes; as it is on a terminal."),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to wait here; then the turn goes on in the daemon. 0: not at all.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model, and print its answer.

    What comes through a pipe is read, too. Ctrl-C ends the turn. On stderr: what is going on, and
    in the end tokens and cost.
    """
    turns.check_conversation(conversation)
    request = {
        **_said(" ".join(prompt or ()), file or []),
        "model": model,
        "conversation_id": conversation,
        "agent": agent,
        "system": system,
    }
    is_streamed = sys.stdout.isatty() if stream is None else stream
    asking = Asking(request, shows_text=is_streamed and not as_json)
    report = asyncio.run(asking.run(timeout_s))
    if as_json:
        output.write_json(report)
    else:
        asking.tell(report)
    if code := _exit_code(report, is_interrupted=asking.is_interrupted):
        raise typer.Exit(code)


def _exit_code(report: AskReport, *, is_interrupted: bool) -> int:
    if is_interrupted:
        return output.INTERRUPTED
    if report.status == "running":
        return output.TIMED_OUT
    if report.error is not None:
        return output.exit_code(turns.error_of(report.error))
    return 0


# -- what is said --------------------------------------------------------------------------------


def _said(words: str, files: list[Path]) -> dict[str, Any]:
    """Return the turn's prompt, or its message where there are images or documents.

    Raises:
        UsageError: There is nothing to ask, or a file can't be handed over.
    """
    piped = "" if words and words != "-" and not _is_piped() else _stdin(waits=words in ("", "-"))
    texts = [] if words in ("", "-") else [words]  # the question first, so that it is known as that
    attached: list[dict[str, Any]] = []
    total = 0
    for path in files:
        data = _read(path)
        total += len(data)
        if total > MAX_FILES_BYTES:
            raise UsageError(f"the files are too large: at most {MAX_FILES_BYTES:,} bytes together")
        part, text = _file_part(path, data)
        if part is None:
            texts.append(text)
        else:
            attached.append(part)
    if piped.strip():
        texts.append(piped)
    if not any(text.strip() for text in texts) and not attached:
        raise UsageError('there is nothing to ask; write, for example: ksi ask "What is a daemon?"')
    size = sum(map(len, texts))
    if size > MAX_PROMPT:
        raise UsageError(f"that is too long: {size:,} characters of at most {MAX_PROMPT:,}")
    if len(texts) == 1 and not attached:
        return {"prompt": texts[0]}
    text_parts = [{"kind": "text", "text": text} for text in texts if text.strip()]
    return {"messages": [{"role": "user", "parts": [*text_parts, *attached]}]}


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        where = output.displayed(path)
        raise UsageError(f"the file {where} can't be read: {error.strerror}") from error


def _file_part(path: Path, data: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return a file as a part of a message, or as text where it is that."""
    name = output.displayed(path.name)
    media_type = mimetypes.guess_type(name)[0] or ""
    if media_type.startswith("image/") or media_type == "application/pdf":
        encoded = base64.b64encode(data).decode()
        return {"kind": "file", "media_type": media_type, "data": encoded, "name": name}, ""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{name} is neither text (UTF-8) nor an image nor a PDF")
    fence = "```"
    while fence in text:
        fence += "`"
    return None, f"{name}:\n{fence}\n{text.rstrip()}\n{fence}"


def _is_piped() -> bool:
    """Say whether stdin is a pipe or a file, and not merely closed or a terminal."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _stdin(*, waits: bool) -> str:
    """Read what comes on stdin; where it is only an addition, not for longer than a moment."""
    if waits and sys.stdin.isatty():
        raise UsageError('there is nothing to ask; write, for example: ksi ask "What is a daemon?"')
    if not waits and not select.select([sys.stdin], [], [], STDIN_WAIT_S)[0]:
        output.note("nothing came on stdin; going on without (to skip the wait: </dev/null)")
        return ""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError("what came on stdin is no text in UTF-8; use --file") from error


# -- the turn ------------------------------------------------------------------------------------


class Asking:
    """One turn, and what is printed of it as it comes.

    Args:
        request: What `AsyncClient.stream_completion` takes.
        shows_text: Whether the answer is printed as it comes.
    """

    def __init__(self, request: dict[str, Any], *, shows_text: bool) -> None:
        self.is_interrupted = False
        self._request = request
        self._shows_text = shows_text
        self._progress = turns.Progress()
        self._spinner = Spinner(self._progress)
        self._accepted: AcceptedChunk | None = None
        self._ended: Completion | None = None
        self._waits_for: StatusChunk | None = None
        self._column_is_0 = True
        self._is_begun = False  # whether some of the answer has been printed
        self._cancelling = False

    async def run(self, timeout_s: float | None) -> AskReport:
        """Have the turn.

        Raises:
            KsiError: It was not even accepted.
        """
        async with connect_async() as client:
            found = await self._run(client, timeout_s)
        if isinstance(found, KsiError):
            raise found
        return found

    async def _run(self, client: AsyncClient, timeout_s: float | None) -> AskReport | KsiError:
        async with asyncio.TaskGroup() as group:
            loop = asyncio.get_running_loop()
            reading = group.create_task(self._read(client, timeout_s), name="answer")

            def interrupt() -> None:
                if self.is_interrupted:
                    reading.cancel()
                    return
                self.is_interrupted = True
                if self._accepted is not None:
                    group.create_task(self._cancel(client), name="cancel")

            loop.add_signal_handler(signal.SIGINT, interrupt)
            try:
                return await reading
            except asyncio.CancelledError:
                if not self.is_interrupted:
                    raise
                return self._report(None)
            finally:
                loop.remove_signal_handler(signal.SIGINT)

    async def _read(self, client: AsyncClient, timeout_s: float | None) -> AskReport | KsiError:
        """Read the turn to its end; an error is returned where it was not even accepted."""
        try:
            async with asyncio.timeout(None) as limit, self._spinner.running():
                chunks = client.stream_completion(**self._request)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        if isinstance(chunk, AcceptedChunk):
                            self._begin(limit, timeout_s)
                        self._take(chunk)
                        if await self._is_to_leave(client, chunk):
                            break
        except TimeoutError:
            return self._report(None)
        except KsiError as error:
            return error if self._accepted is None else self._report(error)
        return self._report(None)

    @staticmethod
    def _begin(limit: asyncio.Timeout, timeout_s: float | None) -> None:
        """Count the time from when the turn is accepted: before that there is nothing to leave."""
        if timeout_s is not None:
            limit.reschedule(asyncio.get_running_loop().time() + timeout_s)

    async def _is_to_leave(self, client: AsyncClient, chunk: CompletionChunk) -> bool:
        if self.is_interrupted and isinstance(chunk, AcceptedChunk):
            await self._cancel(client)  # it came too early for that
        if not isinstance(chunk, StatusChunk) or chunk.waits_for not in turns.ASKS:
            return False
        run_id = self._accepted.run_id if self._accepted else ""
        self._waits_for = chunk
        self._note(f"{turns.waiting(chunk)}\n{turns.how_to_answer(chunk, run_id)}")
        return not sys.stderr.isatty()  # nobody is there who could answer

    async def _cancel(self, client: AsyncClient) -> None:
        if self._accepted is None or self._cancelling:
            return
        self._cancelling = True
        try:
            await client.cancel_completion(self._accepted.run_id, reason="interrupted by Ctrl-C")
        except KsiError as error:
            self._note(f"the turn may go on: {error.message}")

    def _take(self, chunk: CompletionChunk) -> None:
        self._progress.take(chunk)
        if not (isinstance(chunk, StatusChunk) and chunk.waits_for in turns.ASKS):
            self._waits_for = None
        if isinstance(chunk, AcceptedChunk):
            self._accepted = chunk
        elif isinstance(chunk, Completion):
            self._ended = chunk
        elif isinstance(chunk, TextChunk) and self._shows_text:
            self._is_begun = True
            self._print(turns.plain(chunk.text))
        elif isinstance(chunk, StatusChunk) and chunk.waits_for == "daemon":
            self._note(turns.one_line(chunk.message, 300))
        elif isinstance(chunk, RestartedChunk) and self._is_begun:
            self._is_begun = False
            self._note(f"the answer begins again: {chunk.why}")
        elif isinstance(chunk, ToolCallChunk) and self._shows_text:
            self._note(f"calling {turns.called(chunk)}")
        elif isinstance(chunk, ToolResultChunk) and self._shows_text:
            self._note(f"  {turns.came_of(chunk)}")

    def _print(self, text: str) -> None:
        if text:
            self._spinner.clear()
            self._column_is_0 = text.endswith("\n")
            self._spinner.is_hidden = not self._column_is_0
            sys.stdout.write(text)
            sys.stdout.flush()

    def _end_line(self) -> None:
        if not self._column_is_0:
            self._print("\n")

    def _note(self, text: str) -> None:
        self._end_line()
        self._spinner.clear()
        output.note(text)

    def _report(self, error: KsiError | None) -> AskReport:
        ended, accepted = self._ended, self._accepted
        ids = error.details or {} if error is not None else {}
        is_over = error is not None and (accepted is None or turns.is_of_turn(error))
        status = "failed" if is_over else "running"
        if ended is not None:
            status = "succeeded" if ended.status == "succeeded" else "failed"
        waits_for = self._waits_for.waits_for if self._waits_for else None
        report = AskReport(
            run_id=accepted.run_id if accepted else str(ids.get("run_id", "")),
            conversation_id=accepted.conversation_id if accepted else "",
            request_id=accepted.request_id if accepted else "",
            status=status,
            waits_for=waits_for,
            error=error.body if error is not None else None,
        )
        if ended is None:
            return report
        return _with_answer(report, ended)

    def tell(self, report: AskReport) -> None:
        """Print what is still to be said to people."""
        if report.status == "succeeded" and self._ended is not None:
            if self._shows_text:
                self._end_line()
            else:
                output.write(_answer_text(report.output))
            output.note(turns.account(self._ended))
            return
        self._end_line()
        if report.status == "running":
            if report.error is not None:
                output.note(f"ksi: {output.reason(turns.error_of(report.error))}")
            if report.error is None or report.run_id not in report.error.message:
                output.note(
                    f"the turn goes on; wait for it with: ksi turn wait {report.run_id}, "
                    f"end it with: ksi turn cancel {report.run_id}"
                )
        elif self.is_interrupted:
            output.note("stopped")
        elif report.error is not None:
            output.note(f"ksi: {output.reason(turns.error_of(report.error))}")
        if report.conversation_id and report.status != "running":
            output.note(f"what was said is kept: --conversation {report.conversation_id}")


def _answer_text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer.replace("\r\n", "\n")
    return output.encode_json(answer)


def _with_answer(report: AskReport, ended: Completion) -> AskReport:
    from msgspec.structs import asdict, replace  # noqa: PLC0415  beside what it is for

    answer = ended.text if ended.output is None else ended.output
    return replace(
        report,
        output=answer if report.status == "succeeded" else None,
        model=ended.model,
        usage=asdict(ended.usage),
        cost_usd=ended.cost_usd,
        tool_calls=ended.tool_calls,
        error=report.error or ended.error,
    )


__all__ = ["ask"]
