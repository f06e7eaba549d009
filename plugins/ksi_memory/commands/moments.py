"""What happened, and what it comes to: ``ksi moments`` and ``ksi dream``."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from ksi_cli import completion, output
from ksi_cli.connection import connect, show_answer
from ksi_cli.output import JsonFlag, UsageError
from ksi_memory import events as e

moments = typer.Typer(
    rich_markup_mode=None,
    invoke_without_command=True,
    help="List what happened, or sum up a conversation.",
)

TITLE_WIDTH = 60

Type = Annotated[
    str | None,
    typer.Option("--type", metavar="TYPE", help="session_chunk, date, dream, note, upload …"),
]
Conversation = Annotated[
    str,
    typer.Argument(
        metavar="CONVERSATION",
        help="As `ksi conversation list` shows it.",
        autocompletion=completion.conversations,
    ),
]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="From then on: 2026-03-01, or with a time.")
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before that.")]
Lines = Annotated[
    int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
]


@moments.callback()
def all_moments(context: typer.Context, type_: Type = None, *, as_json: JsonFlag = False) -> None:
    """List moments, the newest first; the commands below show more."""
    if context.invoked_subcommand is None:
        list_moments(type_=type_, as_json=as_json)
    elif type_ is not None or as_json:
        raise UsageError(f"options belong behind the command: ksi moments list --type {type_}")


@moments.command("list")
def list_moments(
    *,
    type_: Type = None,
    conversation: Annotated[
        str | None, typer.Option(metavar="CONVERSATION", help="Of this conversation.")
    ] = None,
    person: Annotated[str | None, typer.Option(metavar="NAME", help="With this person.")] = None,
    topic: Annotated[str | None, typer.Option(metavar="WORD", help="About this.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Lines = 50,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where an answer before ended.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List moments, the newest first."""
    ask = e.MemoryMoments(
        type=type_,
        conversation_id=conversation,
        person=person,
        topic=topic,
        since=time_of(since),
        until=time_of(until),
        cursor=cursor,
        limit=limit,
    )
    show_answer("memory:moments", ask, e.MemoryListed, list_text, as_json=as_json)


def list_text(listed: e.MemoryListed) -> str:
    """Lay moments out."""
    if not listed.items:
        return (
            "there are no moments yet: conversations become some (memory.compact_tokens), and "
            "each load of files"
        )
    rows = [
        (
            f"{each.starts_at or each.valid_from:%Y-%m-%d %H:%M}",
            each.category or "",
            each.key,
            shortened(each.title or each.body),
        )
        for each in listed.items
    ]
    text = output.table(("WHEN", "TYPE", "KEY", "WHAT"), rows)
    return f"{text}\nmore: --cursor '{listed.next}'" if listed.next else text


def shortened(text: str) -> str:
    """Return the beginning of a text, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= TITLE_WIDTH else f"{text[: TITLE_WIDTH - 1]}…"


@moments.command()
def timeline(
    subject: Annotated[str, typer.Argument(metavar="ID", help="A conversation, a user, or a key.")],
    *,
    since: Since = None,
    until: Until = None,
    limit: Lines = 100,
    as_json: JsonFlag = False,
) -> None:
    """Show what happened around something, in its order."""
    ask = e.MemoryTimeline(subject=subject, since=time_of(since), until=time_of(until), limit=limit)
    show_answer("memory:timeline", ask, e.MemoryFound, timeline_text, as_json=as_json)


def timeline_text(found: e.MemoryFound) -> str:
    """Lay out what happened."""
    rows = [
        (
            f"{each.starts_at or each.valid_from:%Y-%m-%d %H:%M}",
            each.table,
            each.key,
            shortened(each.title or each.snippet),
        )
        for each in found.results
    ]
    lines = [output.table(("WHEN", "WHERE", "KEY", "WHAT"), rows)] if rows else []
    lines += list(found.notes)
    return "\n".join(lines) or "nothing happened there"


@moments.command()
def compact(
    conversation: Conversation,
    *,
    threshold: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="TOKENS", help="From how many on; memory.compact_tokens unless given."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Sum up what a conversation's moments don't cover yet."""
    ask = e.MemoryCompact(conversation_id=conversation, threshold_tokens=threshold)
    with connect(timeout_s=660.0) as client:
        made = client.request("memory:compact", ask, result_type=e.MemoryCompacted)
    output.show(made, compacted_text, as_json=as_json)


def compacted_text(made: e.MemoryCompacted) -> str:
    """Tell what was summed up."""
    if not made.moments:
        return f"nothing to sum up: {made.uncovered_tokens} tokens are uncovered"
    keys = "\n".join(made.moments)
    return f"{keys}\ncovered up to message {made.up_to}, {made.uncovered_tokens} tokens are not"


def dream(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="How far back; memory.dream_days by default.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How much it may read.")
    ] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option("--max-cost", min=0.0, metavar="USD", help="Of models.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go over the recent past, and keep what it comes to."""
    ask = e.MemoryDream(
        since=time_of(since), max_tokens=max_tokens, max_cost_usd=max_cost_usd, dry_run=dry_run
    )
    with connect(timeout_s=None) as client:
        dreamt = client.request("memory:dream", ask, result_type=e.MemoryDreamt)
    output.show(dreamt, dreamt_text, as_json=as_json)


def dreamt_text(dreamt: e.MemoryDreamt) -> str:
    """Tell what came of a dream."""
    cost = "an unknown price" if dreamt.cost_usd is None else f"${dreamt.cost_usd:.4f}"
    read = f"read {dreamt.read_items} items, {dreamt.tokens} tokens of models, {cost}"
    if not dreamt.did:
        return f"nothing new; {read}"
    rows = [(each.did, each.table, each.key, shortened(each.text)) for each in dreamt.did]
    head = "it would have:\n" if dreamt.dry_run else ""
    return f"{head}{output.table(('DID', 'IN', 'KEY', 'WHAT'), rows)}\n{read}"


def time_of(text: str | None) -> datetime | None:
    """Return a time that was written; one without a zone is the local one.

    Raises:
        UsageError: It is none.
    """
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is no time: write 2026-03-01, or 2026-03-01T12:00") from error
