"""What tools there are, what became of their calls, and who may: ``ksi tool``."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args
from uuid import uuid4

import msgspec
import typer

from ksi_cli import completion, output
from ksi_cli.connection import connect, show_answer
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Unavailable
from ksi_daemon.protocol.errors import error_from
from ksi_daemon.protocol.names import did_you_mean
from ksi_tools import events as e

app = typer.Typer(rich_markup_mode=None, help="List tools, call one, settle a call in doubt.")

Name = Annotated[
    str, typer.Argument(metavar="TOOL", help="See: ksi tool list", autocompletion=completion.tools)
]
CallInDoubt = Annotated[
    str,
    typer.Argument(
        metavar="CALL",
        help="As `ksi tool in-doubt` shows it.",
        autocompletion=completion.calls_in_doubt,
    ),
]
CallThatAsks = Annotated[
    str,
    typer.Argument(
        metavar="CALL",
        help="As `ksi tool calls --status waiting --json` shows it.",
        autocompletion=completion.calls_that_ask,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ARGUMENT]…", help="A JSON object, or key=value pairs."),
]
Subject = Annotated[str, typer.Argument(metavar="SUBJECT", help="agent:NAME or conversation:ID.")]
EFFECTS = {"read_only": "reads", "idempotent": "repeatable", "effectful": "effects"}


@app.command("list")
def list_tools(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Which: * is any characters.")
    ] = "*",
    *,
    as_json: JsonFlag = False,
) -> None:
    """List the tools there are.

    Those that only read, those that may be repeated, and those with effects.
    """

    def text(listed: e.ToolListed) -> str:
        return list_text(listed, pattern)

    ask = e.ToolList(pattern=pattern, all_tools=True)
    show_answer("tool:list", ask, e.ToolListed, text, as_json=as_json)


def list_text(listed: e.ToolListed, pattern: str) -> str:
    """Lay tools out."""
    if not listed.tools:
        return "there are no tools" if pattern == "*" else f"no tool matches {pattern}"
    rows = [
        (each.name, EFFECTS[each.effects], each.provider, first_line(each.description))
        for each in listed.tools
    ]
    return output.table(("TOOL", "IT", "OF", "WHAT IT DOES"), rows)


def first_line(text: str) -> str:
    """Return the first line of a text."""
    return text.strip().partition("\n")[0]


@app.command()
def describe(name: Name, *, as_json: JsonFlag = False) -> None:
    """Show what a tool does, and its arguments."""
    with connect() as client:
        ask = e.ToolDescribe(names=(name,))
        found = client.request("tool:describe", ask, result_type=e.ToolDescribed).tools[0]
    output.show(found, describe_text, as_json=as_json)


def describe_text(found: e.ToolDescription) -> str:
    """Write a tool's page."""
    info = found.info
    lines = [
        f"{info.name}  (of {info.provider}; {EFFECTS[info.effects]})",
        "",
        output.paragraphs(info.description),
    ]
    fields = found.parameters.get("properties", {})
    required = found.parameters.get("required", ())
    rows = [
        (name, _type(field), "required" if name in required else "", field.get("description", ""))
        for name, field in fields.items()
    ]
    if rows:
        lines += ["", output.table(("ARGUMENT", "TYPE", "", "WHAT IT IS"), rows)]
    lines += ["", f"call it: ksi tool call {info.name}{''.join(f' {n}=…' for n in required)}"]
    return "\n".join(lines)


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    kind = field.get("type", "anything")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


@app.command()
def call(
    name: Name,
    words: Words = None,
    *,
    call_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Makes it safe to repeat: once for an id.")
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="How long it may take.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Call a tool, and print what came of it."""
    call_id = call_id or uuid4().hex
    ask = e.ToolCall(
        name=name, arguments=arguments(words or []), call_id=call_id, timeout_s=timeout_s
    )
    with connect(timeout_s=None if timeout_s is None else timeout_s + 30) as client:
        try:
            called = client.request("tool:call", ask, result_type=e.ToolCalled)
        except Unavailable as lost:
            told = f"{lost.message}; the same with --call-id {call_id} tells what came of it"
            raise Unavailable(told, retry_after_s=lost.retry_after_s) from lost
    output.show(called, called_text, as_json=as_json)
    if called.status in ("failed", "dropped"):
        error = None if called.error is None else error_from(called.error)
        raise typer.Exit(output.FAILED if error is None else output.exit_code(error))
    if called.status in ("waiting", "in_doubt"):
        raise typer.Exit(output.TRY_AGAIN)


def arguments(words: Sequence[str]) -> dict[str, Any]:
    """Make a tool's arguments of a command's.

    Raises:
        UsageError: They are neither a JSON object nor key=value pairs.
    """
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            return msgspec.json.decode(words[0], type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise UsageError(f"the arguments are no JSON object: {error}") from error
    found = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is neither a JSON object nor key=value")
        found[key] = value_of(text)
    return found


def value_of(text: str) -> Any:
    """Read a value: JSON where it is that, or else text as it stands."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text


def called_text(called: e.ToolCalled) -> str:
    """Say what came of a call."""
    if called.status == "waiting":
        return (
            f"{called.content}\n\n"
            f"It waits for an answer: ksi tool answer {called.call_id} TEXT\n"
            f"What comes of it then: the same once more with --call-id {called.call_id}"
        )
    if called.status == "in_doubt":
        return f"nobody knows whether it has happened.\n{how_to_resolve(called.call_id)}"
    lines = [called.content or f"({called.status}, and no output)"]
    if called.output_ref:
        lines.append(
            f"… all of it, {called.size_bytes:,} bytes: "
            f"ksi send tool:output output_ref={called.output_ref}"
        )
    return "\n".join(lines)


def how_to_resolve(call_id: str) -> str:
    """Tell how a call in doubt is settled."""
    return (
        "Look at the world, then say one of:\n"
        f"  ksi tool resolve {call_id} done   it has happened\n"
        f"  ksi tool resolve {call_id} redo   it hasn't; call again\n"
        f"  ksi tool resolve {call_id} drop   leave it"
    )


@app.command()
def calls(
    *,
    status: Annotated[
        str | None,
        typer.Option(metavar="STATUS", help="running, done, failed, waiting, in_doubt or dropped."),
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Of this turn.")] = None,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Of this conversation.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
    ] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List the calls of tools, the newest first."""
    known = (*get_args(e.CallStatus), "running")
    if status is not None and status not in known:
        hint = did_you_mean(status, known) or f"; there are: {', '.join(known)}"
        raise UsageError(f"there is no status {status!r}{hint}")
    ask = {"status": status, "run_id": run, "conversation_id": conversation, "limit": limit}
    show_answer("tool:calls", ask, e.ToolCallsListed, calls_text, as_json=as_json)


def calls_text(listed: e.ToolCallsListed) -> str:
    """Lay calls out."""
    if not listed.calls:
        return "no tool has been called; see what there is: ksi tool list"
    rows = [
        (
            f"{each.begun_at.astimezone():%m-%d %H:%M:%S}",
            each.status,
            each.name,
            output.clean(output.encode_json(each.arguments))[:60],
        )
        for each in listed.calls
    ]
    return output.table(("BEGUN", "STATUS", "TOOL", "ARGUMENTS"), rows)


@app.command("in-doubt")
def in_doubt(*, as_json: JsonFlag = False) -> None:
    """List the calls of which nobody knows whether they have happened."""
    show_answer("tool:in_doubt", e.ToolInDoubt(), e.ToolCallsListed, doubt_text, as_json=as_json)


def doubt_text(listed: e.ToolCallsListed) -> str:
    """Write each call in doubt, and how to settle it."""
    if not listed.calls:
        return "no call is in doubt"
    return "\n\n".join(
        output.fields(
            [
                ("call", each.call_id),
                ("tool", each.name),
                ("arguments", output.encode_json(each.arguments)[:300]),
                ("begun", f"{each.begun_at.astimezone():%Y-%m-%d %H:%M:%S}"),
                ("conversation", each.conversation_id),
                ("why", each.why),
            ]
        )
        + f"\n{how_to_resolve(each.call_id)}"
        for each in listed.calls
    )


Verdict = Literal["done", "redo", "drop"]


@app.command()
def resolve(
    call_id: CallInDoubt,
    verdict: Annotated[str, typer.Argument(metavar="VERDICT", help="done, redo or drop.")],
    *,
    content: Annotated[
        str, typer.Option(metavar="TEXT", help="What came of it, where it is done.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Say what became of a call in doubt.

    done: it has happened. redo: it has not; call again. drop: leave it; the model is told.
    """
    if verdict not in get_args(Verdict):
        raise UsageError(f"{verdict!r} is no verdict; say done, redo or drop")
    ask = {"call_id": call_id, "verdict": verdict, "content": content}
    show_answer("tool:resolve", ask, e.ToolResolved, resolved_text, as_json=as_json)


@app.command()
def answer(
    call_id: CallThatAsks,
    content: Annotated[str, typer.Argument(metavar="TEXT", help="The answer.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Answer a call that waits for a person."""
    ask = e.ToolAnswer(call_id=call_id, content=content)
    show_answer("tool:answer", ask, e.ToolResolved, resolved_text, as_json=as_json)


def resolved_text(resolved: e.ToolResolved) -> str:
    """Say how a call stands now."""
    if resolved.status == "running":
        return f"{resolved.call_id} will be called again"
    return f"{resolved.call_id} is {resolved.status}"


@app.command()
def permit(
    subject: Subject,
    *,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="It may call these alone; repeatable."),
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="It may not; wins over --allow.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help="Nothing that this one may not.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what an agent or a conversation may call, or show it.

    Without options what holds is shown. With them they replace what held.
    """
    check_subject(subject)
    ask: dict[str, Any] = {"subject": subject}
    event = "tool:permissions"
    if (allow, deny, parent) != (None, None, None):
        event = "tool:permit"
        ask |= {"allow": allow, "deny": deny or [], "parent": parent}
    show_answer(event, ask, e.ToolPermitted, permitted_text, as_json=as_json)


def check_subject(subject: str) -> None:
    """Make sure that a subject is one.

    Raises:
        UsageError: It is not.
    """
    kind, colon, name = subject.partition(":")
    if kind not in ("agent", "conversation") or not colon or not name:
        raise UsageError(f"{subject!r} is neither agent:NAME nor conversation:ID")


def permitted_text(permitted: e.ToolPermitted) -> str:
    """Write what a subject may call."""
    allow = "what only reads" if permitted.allow is None else ", ".join(permitted.allow) or "none"
    return output.fields(
        [
            ("subject", permitted.subject),
            ("allow", allow),
            ("deny", ", ".join(permitted.deny)),
            ("parent", permitted.parent),
            ("tools now", ", ".join(permitted.tools) or "none"),
        ]
    )
