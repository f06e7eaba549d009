"""What a person can say to ``ksi chat`` rather than to the model: words that begin with a slash."""

import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from ksi_cli import output, turns
from ksi_cli.chat_session import Left, Session
from ksi_client import KsiError

RECENT: Final = 10
PAGE: Final = 200
NOTHING_SAID: Final = "nothing has been said yet that could be asked again"
Command = Callable[[Session, str], Awaitable[None]]


async def run(session: Session, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        Left: The person wants to leave.
        KsiError: It can't be done.
    """
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "see /help"
        raise KsiError(f"there is no /{name}; {hint}")
    await command(session, rest.strip())


async def _model(session: Session, rest: str) -> None:
    """Show which model answers, or choose another: /model openai:gpt-6.1-terra."""
    if rest:
        found = await session.request("model:describe", model=rest)
        session.model = rest
        session.screen.say(f"from now on {found['id']} answers")
        return
    found = await session.request("model:describe", model=session.model)
    listed = await session.request("model:list")
    session.screen.say(f"{found['id']} answers; choose another with /model ID")
    rows = [(each["id"], each["provider"]) for each in listed["models"][: 3 * RECENT]]
    session.screen.table(("MODEL", "PROVIDER"), rows)
    if listed.get("hint"):
        session.screen.say(listed["hint"])


async def _new(session: Session, rest: str) -> None:
    """Begin a new conversation."""
    session.conversation_id = None
    session.screen.say("a new conversation; the one before is kept: /resume")


async def _resume(session: Session, rest: str) -> None:
    """List conversations, or go on with one: /resume 2, /resume ID."""
    listed = await session.request("conversation:list", limit=RECENT, user=session.user)
    found = listed["conversations"]
    if not rest:
        if not found:
            session.screen.say("there are no conversations yet")
            return
        rows = [
            (
                str(number),
                title_of(each),
                str(each["turns"]),
                ago(each["updated_at"]),
            )
            for number, each in enumerate(found, 1)
        ]
        session.screen.table(("", "CONVERSATION", "TURNS", "LAST"), rows)
        session.screen.say("go on with one: /resume NUMBER")
        return
    if rest.isdigit() and int(rest) <= len(found):
        rest = found[max(int(rest), 1) - 1]["conversation_id"]
    await resume(session, rest)


async def resume(session: Session, conversation_id: str) -> None:
    """Go on with a conversation: show how it stands, and the turn that runs in it.

    Raises:
        NotFound: There is none of that id.
    """
    found = await session.request("conversation:get", conversation_id=conversation_id)
    session.conversation_id = found["conversation_id"]
    session.screen.say(
        f"{found['title'] or 'conversation'} · {turns.plural(found['turns'], 'turn')} · "
        f"{session.conversation_id}"
    )
    await _history(session, "4")
    if found.get("running_run_id"):
        await session.attach(found["running_run_id"])


async def _history(session: Session, rest: str) -> None:
    """Show the last messages: /history, /history 50."""
    if session.conversation_id is None:
        session.screen.say("nothing has been said yet")
        return
    limit = int(rest) if rest.isdigit() and 0 < int(rest) <= 1000 else 20
    read = await session.request(
        "conversation:history", conversation_id=session.conversation_id, limit=limit
    )
    for message in read["messages"]:
        if text := text_of(message):
            session.screen.message("you" if message["role"] == "user" else message["role"], text)


def title_of(conversation: dict[str, Any]) -> str:
    """Return a conversation's title, or what stands for it."""
    return turns.one_line(conversation["title"], 60) or "(no title)"


def text_of(message: dict[str, Any]) -> str:
    """Return what of a message is for people, tool calls in a line each."""
    texts = []
    for part in message["parts"]:
        kind = part["kind"]
        if kind == "text":
            texts.append(part["text"])
        elif kind == "tool_call":
            texts.append(f"`{turns.one_line(part['name'] + part['arguments'], 100)}`")
        elif kind == "tool_result":
            texts.append(turns.one_line(part["content"], turns.MAX_RESULT))
        elif kind == "file":
            texts.append(f"[{part.get('name') or part['media_type']}]")
    return "\n\n".join(filter(None, texts))


async def _export(session: Session, rest: str) -> None:
    """Write the conversation into a file: /export notes.md, /export notes.json."""
    if session.conversation_id is None:
        raise KsiError("nothing has been said yet, so there is nothing to export")
    path = export_path(rest or f"{safe_name(session.conversation_id)}.md")
    form = "json" if path.suffix == ".json" else "markdown"
    pieces = session.client.stream(
        "conversation:export",
        {"conversation_id": session.conversation_id, "format": form},
        context=session.context,
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise KsiError(f"{path} exists; name another file: /export FILE") from error
    except OSError as error:
        raise KsiError(f"{path} can't be written: {error.strerror}") from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        async for piece in pieces:
            file.write(piece["text"])
    session.screen.say(f"written: {path}")


def export_path(name: str) -> Path:
    """Return the file that is meant; ``~`` is home."""
    return Path(name).expanduser()


def safe_name(conversation_id: str) -> str:
    """Return a conversation's id as a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in conversation_id)[:80]


async def _usage(session: Session, rest: str) -> None:
    """Show what this conversation, and this session, have taken."""
    total = session.totals
    unknown = f", {turns.plural(total.unpriced_turns, 'turn')} of unknown price"
    session.screen.say(
        f"this session: {turns.plural(total.turns, 'turn')}, "
        f"{turns.count(total.input_tokens)} tokens in, {turns.count(total.output_tokens)} out, "
        f"{turns.dollars(total.cost_usd)}{unknown if total.unpriced_turns else ''}"
    )
    if session.conversation_id is None:
        return
    used = await session.request("model:usage", by=["model"], conversation=session.conversation_id)
    rows = [
        (
            each["by"].get("model") or "-",
            str(each["calls"]),
            turns.count(each["input_tokens"]),
            turns.count(each["output_tokens"]),
            turns.dollars(each["cost_usd"])
            + (f" + {each['unpriced_calls']} unpriced" if each["unpriced_calls"] else ""),
        )
        for each in used["rows"]
    ]
    if rows:
        session.screen.table(("THIS CONVERSATION", "CALLS", "IN", "OUT", "COST"), rows)


async def _retry(session: Session, rest: str) -> None:
    """Ask the last thing again, in a copy of the conversation that ends before it."""
    if session.conversation_id is None:
        raise KsiError(NOTHING_SAID)
    asked = await _last_asked(session, session.conversation_id)
    if asked["number"] == 1:
        session.conversation_id = None
    else:
        fork = await session.request(
            "conversation:fork", conversation_id=session.conversation_id, at=asked["number"] - 1
        )
        session.conversation_id = fork["conversation_id"]
    session.screen.say("asking again, in a copy of the conversation")
    await session.say_parts(asked["parts"])


async def _last_asked(session: Session, conversation_id: str) -> dict[str, Any]:
    """Return the message that the last turn began with.

    Raises:
        KsiError: There was none.
    """
    asked: dict[str, Any] | None = None
    place: dict[str, Any] = {}
    while True:
        read = await session.request(
            "conversation:history", conversation_id=conversation_id, limit=PAGE, **place
        )
        for message in reversed(read["messages"]):
            if asked is not None and message["turn"] != asked["turn"]:
                return asked
            if message["role"] == "user":
                asked = message
        if read.get("before") is None:
            break
        place = {"before": read["before"]}
    if asked is None:
        raise KsiError(NOTHING_SAID)
    return asked


async def _stop(session: Session, rest: str) -> None:
    """End the turns of this conversation that have not ended."""
    if session.conversation_id is None:
        session.screen.say("no turn is under way")
        return
    listed = await session.request(
        "completion:list",
        conversation_id=session.conversation_id,
        status=["waiting", "running", "paused"],
    )
    for each in listed["turns"]:
        await session.client.cancel_completion(each["run_id"], reason="stopped by /stop")
    count = len(listed["turns"])
    session.screen.say(
        f"stopped {turns.plural(count, 'turn')}" if count else "no turn is under way"
    )


async def _help(session: Session, rest: str) -> None:
    """Show what there is."""
    rows = [(f"/{name}", (command.__doc__ or "").strip()) for name, command in SHOWN.items()]
    session.screen.table(("COMMAND", "WHAT IT DOES"), rows)
    session.screen.say(
        "Esc Enter, or a backslash at the end, begins a new line; Ctrl-C stops the turn; "
        "Ctrl-D leaves; // at the beginning says a slash to the model"
    )


async def _quit(session: Session, rest: str) -> None:
    """Leave; the conversation is kept."""
    raise Left


SHOWN: Final[dict[str, Command]] = {
    "model": _model,
    "new": _new,
    "resume": _resume,
    "history": _history,
    "export": _export,
    "usage": _usage,
    "retry": _retry,
    "stop": _stop,
    "help": _help,
    "quit": _quit,
}
COMMANDS: Final[dict[str, Command]] = {**SHOWN, "exit": _quit}


def ago(at: str) -> str:
    """Write how long ago a time is, in its largest unit."""
    then = datetime.fromisoformat(at)
    seconds = (datetime.now(then.tzinfo) - then).total_seconds()
    return "now" if seconds < 60 else f"{' '.join(output.duration(seconds).split()[:2])} ago"
