"""Look after conversations and their turns: ``ksi conversation`` and ``ksi turn``."""

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer

from ksi_cli import completion, output
from ksi_cli.connection import connect, show_answer
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Completion, KsiError
from ksi_completion import events as e
from ksi_daemon.protocol.names import did_you_mean

conversation = typer.Typer(
    rich_markup_mode=None, help="List conversations, read, search, fork, export them."
)
turn = typer.Typer(rich_markup_mode=None, help="List turns, wait for one, end or answer it.")

Id = Annotated[
    str,
    typer.Argument(
        metavar="CONVERSATION",
        help="As `ksi conversation list` shows it.",
        autocompletion=completion.conversations,
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="As `ksi turn list` shows it.", autocompletion=completion.runs
    ),
]
Agent = Annotated[str | None, typer.Option(metavar="AGENT", help="Of this agent.")]
Lines = Annotated[
    int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
]
Cursor = Annotated[
    str | None, typer.Option(metavar="CURSOR", help="Go on where an answer before ended.")
]
OPEN = ("waiting", "running", "paused")


# -- conversations -------------------------------------------------------------------------------


@conversation.command("list")
def list_conversations(
    *,
    agent: Agent = None,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Of this user.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Those that were put away.")] = False,
    limit: Lines = 20,
    cursor: Cursor = None,
    as_json: JsonFlag = False,
) -> None:
    """List conversations, the one that was used last first."""
    ask = e.ConversationList(agent=agent, user=user, archived=archived, limit=limit, cursor=cursor)
    show_answer("conversation:list", ask, e.ConversationListed, list_text, as_json=as_json)


def list_text(listed: e.ConversationListed) -> str:
    """Lay conversations out."""
    if not listed.conversations:
        return "there are no conversations; begin one with: ksi chat"
    rows = [
        (
            each.conversation_id,
            str(each.turns),
            ago(each.updated_at),
            (each.title or "(no title)") + (" (at work)" if each.running_run_id else ""),
        )
        for each in listed.conversations
    ]
    text = output.table(("CONVERSATION", "TURNS", "LAST", "TITLE"), rows)
    return text + (f"\nmore: --cursor {listed.cursor}" if listed.cursor else "")


@conversation.command()
def show(
    conversation_id: Id,
    *,
    limit: Lines = 50,
    before: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Messages before this one.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a conversation's last messages."""
    with connect() as client:
        read = client.request(
            "conversation:history",
            e.ConversationHistory(conversation_id=conversation_id, before=before, limit=limit),
            result_type=e.ConversationRead,
        )
    output.show(read, read_text, as_json=as_json)


def read_text(read: e.ConversationRead) -> str:
    """Write messages down."""
    if not read.messages:
        return "nothing has been said"
    lines = [] if read.before is None else [f"before that: --before {read.before}\n"]
    for message in read.messages:
        who = message.role + (f", {message.model}" if message.model else "")
        lines += [f"[{message.number}] {who}, {moment(message.created_at)}", *parts_of(message), ""]
    return "\n".join(lines)


def parts_of(message: e.NumberedMessage) -> Iterator[str]:
    """Write a message's parts down, tool calls and their results in a line each."""
    for part in message.parts:
        kind = msgspec.to_builtins(part)
        if kind["kind"] == "text":
            yield kind["text"]
        elif kind["kind"] == "tool_call":
            yield f"→ {kind['name']} {short(kind['arguments'])}"
        elif kind["kind"] == "tool_result":
            yield f"← {short(kind['content'])}"
        elif kind["kind"] == "file":
            yield f"[{kind.get('name') or kind['media_type']}]"


@conversation.command()
def search(
    text: Annotated[list[str], typer.Argument(metavar="WORD…", help="What to look for.")],
    *,
    conversation_id: Annotated[
        str | None, typer.Option("--in", metavar="ID", help="In this conversation alone.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=200, metavar="N", help="How many.")
    ] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Find messages by their words."""
    ask = e.ConversationSearch(text=" ".join(text), conversation_id=conversation_id, limit=limit)
    show_answer("conversation:search", ask, e.ConversationFound, found_text, as_json=as_json)


def found_text(listed: e.ConversationFound) -> str:
    """Write what was found."""
    if not listed.found:
        return "nothing was found; try fewer words"
    return "\n\n".join(
        f"{each.conversation_id} [{each.number}] {each.role}, {moment(each.created_at)}, "
        f"“{short(each.title, 60) or 'no title'}”\n  {short(each.snippet, 300)}"
        for each in listed.found
    )


@conversation.command()
def rename(
    conversation_id: Id,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="The new title.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Give a conversation another title."""
    ask = {"conversation_id": conversation_id, "title": title}
    show_answer("conversation:rename", ask, e.Conversation, conversation_text, as_json=as_json)


@conversation.command()
def archive(
    conversation_id: Id,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Take it out again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Put a conversation away, or take it out again.

    Meanwhile it takes no turns.
    """
    ask = e.ConversationArchive(conversation_id=conversation_id, archived=not undo)
    show_answer("conversation:archive", ask, e.Conversation, conversation_text, as_json=as_json)


def conversation_text(found: e.Conversation) -> str:
    """Write what is known of a conversation."""
    away = f"since {moment(found.archived_at)}" if found.archived_at else ""
    return output.fields(
        [
            ("conversation", found.conversation_id),
            ("title", found.title),
            ("turns", found.turns),
            ("messages", found.messages),
            ("model", found.model),
            ("agent", found.agent),
            ("archived", away),
            ("copy of", found.forked_from),
        ]
    )


@conversation.command()
def delete(
    conversation_id: Id,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a conversation, with its messages and turns, for good."""
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError("deleting is for good; say so with --yes")
        typer.confirm(f"delete {conversation_id} for good?", abort=True, err=True)
    ask = e.ConversationDelete(conversation_id=conversation_id)
    show_answer("conversation:delete", ask, e.ConversationDeleted, deleted_text, as_json=as_json)


def deleted_text(deleted: e.ConversationDeleted) -> str:
    """Say what is gone."""
    return f"{deleted.conversation_id} is deleted, with {plural(deleted.messages, 'message')}"


@conversation.command()
def fork(
    conversation_id: Id,
    *,
    at: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="The last message to copy.")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TITLE", help="The copy's title.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a copy of a conversation, up to a message."""
    ask = e.ConversationFork(conversation_id=conversation_id, at=at, title=title)
    show_answer("conversation:fork", ask, e.Conversation, conversation_text, as_json=as_json)


@conversation.command()
def export(
    conversation_id: Id,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; stdout unless given.")
    ] = None,
    *,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="json or markdown; by the file's name unless given."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a conversation down; JSON can be imported again."""
    ask = e.ConversationExport(
        conversation_id=conversation_id, format=export_format(form, file, as_json=as_json)
    )
    with connect() as client:
        pieces = client.stream("conversation:export", ask, result_type=e.ExportedText)
        first = next(pieces, None)  # what can't be exported leaves no file behind
        texts = (each.text for part in ([first] if first else [], pieces) for each in part)
        if file is None:
            for text in texts:
                sys.stdout.write(text if ask.format == "json" else output.clean(text))
            if ask.format == "json":
                sys.stdout.write("\n")
            return
        written = write_file(file.expanduser(), texts, force=force)
    report = {"file": output.displayed(file), "bytes": written}
    output.show(report, lambda _: f"{report['file']}: {written:,} bytes", as_json=as_json)


def export_format(form: str | None, file: Path | None, *, as_json: bool) -> Any:
    """Choose how to write a conversation down.

    Raises:
        UsageError: There is no such format.
    """
    if form is None:
        is_text = file is not None and file.suffix in (".md", ".markdown")
        return "markdown" if is_text or (file is None and not as_json) else "json"
    known = ("json", "markdown")
    if form not in known:
        hint = did_you_mean(form, known) or "; there are: json, markdown"
        raise UsageError(f"there is no format {form!r}{hint}")
    return form


def write_file(path: Path, texts: Iterator[str], *, force: bool) -> int:
    """Write a private file; returns its size.

    Raises:
        KsiError: It exists, or can't be written.
    """
    once = os.O_TRUNC if force else os.O_EXCL
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | once, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for text in texts:
                file.write(text)
            return file.tell()
    except FileExistsError as error:
        raise KsiError(f"{path} exists; replace it with --force") from error
    except OSError as error:
        raise KsiError(f"{path} can't be written: {error.strerror}") from error


@conversation.command("import")
def import_conversation(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As export wrote it; - is stdin.")],
    *,
    new_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="What to call it; new unless given.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a conversation of an export in JSON."""
    ask: dict[str, Any] = {"document": document_of(file)}
    if new_id:
        ask["new_id"] = new_id
    show_answer("conversation:import", ask, e.Conversation, conversation_text, as_json=as_json)


def document_of(file: Path) -> dict[str, Any]:
    """Read an exported conversation.

    Raises:
        UsageError: It can't be read, or is none.
    """
    where = "stdin" if str(file) == "-" else output.displayed(file)
    try:
        data = sys.stdin.buffer.read() if where == "stdin" else file.expanduser().read_bytes()
        return msgspec.json.decode(data, type=dict[str, Any])
    except OSError as error:
        raise UsageError(f"{where} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(f"{where} is no exported conversation: {error}") from error


@conversation.command()
def locks(*, as_json: JsonFlag = False) -> None:
    """List the locks that keep turns from starting."""
    ask = e.ConversationLocks()
    show_answer("conversation:locks", ask, e.LocksListed, locks_text, as_json=as_json)


def locks_text(listed: e.LocksListed) -> str:
    """Lay locks out."""
    if not listed.locks:
        return "no conversation is locked"
    rows = [
        (each.conversation_id, moment(each.locked_at), moment(each.expires_at), each.owner)
        for each in listed.locks
    ]
    return output.table(("CONVERSATION", "SINCE", "UNTIL", "BY"), rows)


@conversation.command()
def unlock(
    conversation_id: Id,
    *,
    lock_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Your own lock; without it, anybody's.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Take a lock away, so that the conversation's turns go on."""
    ask = e.ConversationUnlock(
        conversation_id=conversation_id, lock_id=lock_id, force=lock_id is None
    )
    show_answer("conversation:unlock", ask, e.ConversationUnlocked, unlocked_text, as_json=as_json)


def unlocked_text(unlocked: e.ConversationUnlocked) -> str:
    """Say whether there was a lock."""
    how = "is unlocked" if unlocked.was_locked else "was not locked"
    return f"{unlocked.conversation_id} {how}"


# -- turns ---------------------------------------------------------------------------------------


@turn.command("list")
def list_turns(
    conversation_id: Annotated[
        str | None, typer.Argument(metavar="[CONVERSATION]", help="Of this conversation alone.")
    ] = None,
    *,
    agent: Agent = None,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help=f"{', '.join(get_args(e.TurnStatus))}; repeatable."),
    ] = None,
    is_open: Annotated[bool, typer.Option("--open", help="Those that have not ended.")] = False,
    limit: Lines = 20,
    cursor: Cursor = None,
    as_json: JsonFlag = False,
) -> None:
    """List turns, the newest first."""
    wanted = [*(status or ()), *(OPEN if is_open else ())]
    known = get_args(e.TurnStatus)
    for each in wanted:
        if each not in known:
            hint = did_you_mean(each, known) or f"; there are: {', '.join(known)}"
            raise UsageError(f"there is no status {each!r}{hint}")
    ask = {
        "conversation_id": conversation_id,
        "agent": agent,
        "status": wanted or None,
        "limit": limit,
        "cursor": cursor,
    }
    show_answer("completion:list", ask, e.CompletionListed, turns_text, as_json=as_json)


def turns_text(listed: e.CompletionListed) -> str:
    """Lay turns out."""
    if not listed.turns:
        return "there are no such turns"
    rows = [
        (
            each.run_id,
            ago(each.accepted_at) if each.accepted_at else "",
            each.status,
            each.waits_for or (each.error.message if each.error else "") or each.model or "",
        )
        for each in listed.turns
    ]
    text = output.table(("RUN", "ASKED", "STATUS", "NOTE"), rows)
    return text + (f"\nmore: --cursor {listed.cursor}" if listed.cursor else "")


@turn.command()
def status(run_id: RunArgument, *, as_json: JsonFlag = False) -> None:
    """Tell how a turn stands."""
    ask = e.CompletionStatus(run_id=run_id)
    show_answer("completion:status", ask, e.Turn, turn_text, as_json=as_json)


def turn_text(turn: e.Turn) -> str:
    """Write how a turn stands."""
    until = turn.waits_until.astimezone().strftime("%H:%M:%S") if turn.waits_until else ""
    return output.fields(
        [
            ("run", turn.run_id),
            ("conversation", turn.conversation_id),
            ("status", turn.status),
            ("model", turn.model),
            ("agent", turn.agent or ""),
            ("waits for", turn.waits_for or ""),
            ("until", until),
            ("error", turn.error.message if turn.error else ""),
        ]
    )


@turn.command()
def wait(
    run_id: RunArgument,
    *,
    timeout_s: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long to wait here.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Wait for a turn's end, and print its answer.

    Exit code 7: it has not ended in time, and goes on.
    """
    from ksi_client import completions  # noqa: PLC0415  it brings asyncio

    with connect(timeout_s=None) as client:
        ended = completions.wait(client, run_id, timeout_s)
    output.show(ended, ended_text, as_json=as_json)
    if ended.is_open:
        raise typer.Exit(output.TIMED_OUT)


def ended_text(ended: Completion) -> str:
    """Write a turn's answer, or how it stands."""
    return f"{ended.run_id} is {ended.status}" if ended.is_open else ended.text


@turn.command()
def cancel(
    run_id: RunArgument,
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "cancelled by hand",
    as_json: JsonFlag = False,
) -> None:
    """End a turn; what the user said stays."""
    ask = e.CompletionCancel(run_id=run_id, reason=reason)
    show_answer("completion:cancel", ask, e.CompletionCancelled, cancelled_text, as_json=as_json)


def cancelled_text(cancelled: e.CompletionCancelled) -> str:
    """Say how the turn stands now."""
    if cancelled.status in ("succeeded", "failed"):
        return f"{cancelled.run_id} had ended before: {cancelled.status}"
    return f"{cancelled.run_id} is {cancelled.status}"


@turn.command()
def answer(
    run_id: RunArgument,
    content: Annotated[str, typer.Argument(metavar="TEXT", help="The answer.")],
    *,
    call_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Which question, where there are several.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer what a turn has asked a person."""
    ask = e.CompletionAnswer(run_id=run_id, content=content, call_id=call_id)
    show_answer("completion:answer", ask, e.CompletionAnswered, answered_text, as_json=as_json)


def answered_text(answered: e.CompletionAnswered) -> str:
    """Say that the turn goes on."""
    return f"{answered.run_id} goes on; see it end with: ksi turn wait {answered.run_id}"


# -- for people ----------------------------------------------------------------------------------


def short(text: str, limit: int = 100) -> str:
    """Write a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plural(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def moment(at: datetime) -> str:
    """Write a time as the clock on this machine shows it."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def ago(at: datetime) -> str:
    """Write how long ago a time is, in its largest unit."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    return "now" if seconds < 60 else f"{' '.join(output.duration(seconds).split()[:2])} ago"
