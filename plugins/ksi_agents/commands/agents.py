"""Agents that run, and what they are told: ``ksi agent``."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import typer

from ksi_agents import events as e
from ksi_agents.commands import definitions
from ksi_agents.commands.definitions import documents_of
from ksi_cli import output
from ksi_cli.connection import connect, show_answer
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Client, KsiError
from ksi_daemon.protocol.errors import error_from
from ksi_daemon.protocol.names import did_you_mean

agent = typer.Typer(
    rich_markup_mode=None,
    help="Have agents run, ask them, and see to them.",
)
agent.add_typer(definitions.app)

SECTIONS: Final = get_args(e.Section)
MARGIN_S: Final = 30.0
PROMPT_WIDTH: Final = 60
STDIN: Final = "-"
PATIENCE_S: Final = 2.0


def suggested(incomplete: str) -> list[str]:
    """Suggest agents; what goes wrong is told when the command is run."""
    try:
        with Client(timeout_s=PATIENCE_S) as client:
            listed = client.request("agent:list", {"pattern": f"{incomplete}*"})
    except (KsiError, OSError):
        return []
    return [each["name"] for each in listed["agents"]]


Name = Annotated[
    str, typer.Argument(metavar="AGENT", help="See: ksi agent list", autocompletion=suggested)
]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[AGENT]…", help="Names, or globs: 'team-*'.", autocompletion=suggested),
]
LabelOptions = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="KEY=VALUE", help="With this label; may be repeated."),
]
IdleOption = Annotated[
    float | None,
    typer.Option("--idle", metavar="SECONDS", min=0.0, help="Not used for that long."),
]
Prompt = Annotated[
    list[str],
    typer.Argument(metavar="PROMPT…", help="What to say; - is what comes on stdin."),
]
MessageId = Annotated[
    str | None, typer.Option(metavar="ID", help="Makes it safe to repeat: once for an id.")
]
Lines = Annotated[
    int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
]


# -- looking at them ------------------------------------------------------------------------------


@agent.command("list")
def list_agents(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Which: * is any characters.")
    ] = "*",
    *,
    definition: Annotated[
        str | None, typer.Option(metavar="NAME", help="That run by this definition.")
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(metavar="PHASE", help=f"One of {', '.join(get_args(e.Phase))}."),
    ] = None,
    label: LabelOptions = None,
    parent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="That this one has spawned.")
    ] = None,
    all_agents: Annotated[
        bool, typer.Option("--all", "-a", help="Those that have ended, too.")
    ] = False,
    limit: Lines = 200,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where a list has ended.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the agents that there are, and what each is at."""
    ask = {
        "pattern": pattern,
        "definition": definition,
        "phase": [_phase(each) for each in phase or ()],
        "labels": labels_of(label),
        "parent": parent,
        "ended": all_agents,
        "limit": limit,
        "cursor": cursor,
    }
    show_answer("agent:list", ask, e.AgentListed, list_text, as_json=as_json)


def _phase(word: str) -> str:
    known = get_args(e.Phase)
    found = word.capitalize()
    if found not in known:
        raise UsageError(f"{word} is no phase{did_you_mean(found, known)}: {', '.join(known)}")
    return found


def list_text(listed: e.AgentListed) -> str:
    """Lay agents out."""
    if not listed.agents:
        return "there are no agents; have one: ksi agent spawn general"
    rows = [
        (
            each.name,
            f"{each.definition}@{each.version}",
            state_of(each),
            each.waiting or "",
            each.restarts or "",
            each.run_id or each.reason or "",
        )
        for each in listed.agents
    ]
    text = output.table(("NAME", "RUNS BY", "IS", "WAITING", "RESTARTS", ""), rows)
    return f"{text}\nmore: --cursor {listed.cursor}" if listed.cursor else text


def state_of(shown: e.Agent) -> str:
    """Say how an agent is, in a word or two."""
    if shown.desired == "paused" and shown.phase in ("Ready", "Busy"):
        return "Paused" if shown.phase == "Ready" else "Busy, then paused"
    return shown.phase


@agent.command()
def get(
    name: Name,
    *,
    show: Annotated[
        list[str] | None,
        typer.Option("--show", metavar="SECTION", help=f"Also {', '.join(SECTIONS)}; or all."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show an agent: what is wanted of it, what is so, and why."""
    wanted = list(dict.fromkeys(["conditions", *(show or ())]))
    for each in wanted:
        if each not in (*SECTIONS, "all"):
            raise UsageError(f"there is no section {each}{did_you_mean(each, SECTIONS)}")
    ask = {"name": name, "sections": SECTIONS if "all" in wanted else wanted}
    show_answer("agent:get", ask, e.AgentShown, get_text, as_json=as_json)


def get_text(shown: e.AgentShown) -> str:
    """Lay an agent out."""
    it = shown.agent
    pairs = [
        ("name", it.name),
        ("runs by", f"{it.definition}, version {it.version}"),
        ("is", state_of(it)),
        ("because", it.reason),
        ("conversation", it.conversation_id),
        ("works in", it.run_id),
        ("waiting", it.waiting or None),
        ("child of", it.parent),
        ("labels", ", ".join(f"{key}={value}" for key, value in it.labels.items())),
        ("restarts", it.restarts or None),
        ("starts again", _time(it.next_start_at)),
        ("since", _time(it.created_at)),
        ("ended", _time(it.ended_at)),
    ]
    parts = [output.fields(pairs), *_sections(shown)]
    return "\n\n".join(part for part in parts if part)


def _sections(shown: e.AgentShown) -> list[str]:
    parts = []
    if shown.conditions is not None:
        so = [(c.type, c.status, c.reason, c.message) for c in shown.conditions]
        parts.append(output.table(("CONDITION", "IS", "BECAUSE", ""), so))
    if shown.definition is not None:
        parts.append("definition:\n" + output.encode_json(shown.definition))
    if shown.mailbox is not None:
        mail = [(m.number, m.status, m.sender or "", _line(m.prompt)) for m in shown.mailbox]
        parts.append(output.table(("MESSAGE", "IS", "FROM", "PROMPT"), mail))
    if shown.usage is not None:
        parts.append(usage_text(shown.usage))
    if shown.children is not None:
        children = [(child.name, child.definition, state_of(child)) for child in shown.children]
        parts.append(output.table(("CHILD", "RUNS BY", "IS"), children))
    for title, words in (("channels", shown.channels), ("may call", shown.tools)):
        if words is not None:
            parts.append(f"{title}: {', '.join(words) or 'none'}")
    return parts


def usage_text(spent: e.Spent) -> str:
    """Say what an agent has taken."""
    text = (
        f"taken: {spent.requests} model calls, {spent.tool_calls} tool calls, {spent.tokens} "
        f"tokens, ${spent.cost_usd:.4f}"
    )
    if spent.reserved_usd:
        text += f", ${spent.reserved_usd:.4f} reserved"
    bounds = ", ".join(f"{key} {value}" for key, value in spent.limits.items())
    return f"{text}\nlimits: {bounds}" if bounds else text


@agent.command()
def logs(
    name: Name,
    *,
    limit: Lines = 50,
    before: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="What happened before this entry.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the agent has ended.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what happened to an agent, the newest last."""
    if follow:
        if before is not None:
            raise UsageError("--before is what was, and --follow is what comes: leave one out")
        _follow(name, limit, as_json=as_json)
        return
    ask = {"name": name, "limit": limit, "before": before}
    show_answer("agent:logs", ask, e.LogsListed, logs_text, as_json=as_json)


def _follow(name: str, lines: int, *, as_json: bool) -> None:
    from ksi_agents.commands.following import follow  # noqa: PLC0415  it brings asyncio

    def show(entry: e.LogEntry) -> None:
        output.show(entry, entry_text, as_json=as_json)
        sys.stdout.flush()

    follow(name, lines, show)


def entry_text(entry: e.LogEntry) -> str:
    """Lay out one thing that happened."""
    return f"{entry.number:>5}  {_time(entry.at)}  {entry.kind:10}  {entry.message}"


def logs_text(listed: e.LogsListed) -> str:
    """Lay out what happened."""
    rows = [
        (each.number, f"{_time(each.at)}", each.kind, each.message)
        for each in reversed(listed.entries)
    ]
    return output.table(("", "WHEN", "WHAT", ""), rows) if rows else "nothing happened to it"


# -- having them ----------------------------------------------------------------------------------


@agent.command()
def spawn(
    definition: Annotated[
        str | None,
        typer.Argument(metavar="[DEFINITION]", help="See: ksi agent definitions"),
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="By a file of its own.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; one is made unless given.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of the definition; the newest.")
    ] = None,
    label: LabelOptions = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Its first message.")
    ] = None,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with this conversation.")
    ] = None,
    wait_s: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0.0, max=3600.0, help="For its start."),
    ] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Have an agent run, by a definition or a file of its own."""
    if (definition is None) == (file is None):
        raise UsageError("name a definition (ksi agent definitions), or a file: --file FILE")
    ask = e.AgentSpawn(
        definition=definition,
        version=version,
        document=None if file is None else _document(file),
        name=name,
        labels=labels_of(label),
        conversation_id=conversation,
        prompt=prompt,
        wait_s=wait_s,
    )
    with connect(timeout_s=wait_s + MARGIN_S) as client:
        made = client.request("agent:spawn", ask, result_type=e.Agent)
    output.show(made, spawned_text, as_json=as_json)
    if made.phase == "Failed":
        raise typer.Exit(output.FAILED)


def _document(file: Path) -> e.Document:
    documents = documents_of([str(file)])
    if len(documents) != 1:
        raise UsageError(f"{file}: one file holds the definition of one agent here")
    return documents[0]


def spawned_text(made: e.Agent) -> str:
    """Say how a new agent is."""
    if made.phase == "Failed":
        return f"{made.name}  failed: {made.reason}; see: ksi agent get {made.name}"
    return f"{made.name}  {state_of(made)}; ask it: ksi agent ask {made.name} …"


# -- telling them things --------------------------------------------------------------------------


@agent.command()
def send(
    name: Name, prompt: Prompt, *, message_id: MessageId = None, as_json: JsonFlag = False
) -> None:
    """Put a message into an agent's mailbox."""
    ask = e.AgentSend(agent=name, prompt=said(prompt), message_id=message_id)
    show_answer("agent:send", ask, e.AgentSent, sent_text, as_json=as_json)


def sent_text(sent: e.AgentSent) -> str:
    """Say that a message is kept."""
    before = f", {sent.waiting} before it" if sent.waiting else ""
    return f"{sent.agent} has it: message {sent.number}, {sent.message_id}{before}"


@agent.command("ask")
def ask_agent(
    name: Name,
    prompt: Prompt,
    *,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.0, max=3600.0, help="How long to wait."),
    ] = 300.0,
    message_id: MessageId = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask an agent, and print its answer."""
    ask = e.AgentAsk(agent=name, prompt=said(prompt), timeout_s=timeout_s, message_id=message_id)
    with connect(timeout_s=timeout_s + MARGIN_S) as client:
        answer = client.request("agent:ask", ask, result_type=e.AgentAnswered)
    output.show(answer, answered_text, as_json=as_json)
    if answer.status == "succeeded":
        return
    if not as_json:
        output.note(f"ksi: {why_no_answer(answer)}")
    if answer.status in ("waiting", "given"):
        raise typer.Exit(output.TIMED_OUT)
    error = None if answer.error is None else error_from(answer.error)
    raise typer.Exit(output.FAILED if error is None else output.exit_code(error))


def answered_text(answer: e.AgentAnswered) -> str:
    """Return what an agent answered."""
    return answer.text


def why_no_answer(answer: e.AgentAnswered) -> str:
    """Say why there is no answer, or none yet."""
    if answer.error is not None:
        return answer.error.message
    if answer.status == "cancelled":
        return "the message was cancelled"
    again = f"ksi agent ask {answer.agent} --message-id {answer.message_id} …"
    return f"no answer yet (the message is {answer.status}); ask for it again: {again}"


@agent.command()
def publish(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="Its name.")],
    text: Prompt,
    *,
    message_id: MessageId = None,
    as_json: JsonFlag = False,
) -> None:
    """Say something to all who subscribe to a channel."""
    ask = e.AgentPublish(channel=channel, text=said(text), message_id=message_id)
    show_answer("agent:publish", ask, e.AgentPublished, published_text, as_json=as_json)


def published_text(published: e.AgentPublished) -> str:
    """Say who gets what was published."""
    gets = ", ".join(published.agents) or "nobody is subscribed"
    refused = ", ".join(published.refused)
    return f"{gets}\nrefused, with full mailboxes: {refused}" if refused else gets


@agent.command()
def subscribe(
    name: Name,
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="Its name.")],
    *,
    off: Annotated[bool, typer.Option("--off", help="No more of it.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Have an agent get what is published on a channel."""
    event = "agent:unsubscribe" if off else "agent:subscribe"
    ask = {"agent": name, "channel": channel}
    show_answer(event, ask, e.AgentSubscribed, subscribed_text, as_json=as_json)


def subscribed_text(subscribed: e.AgentSubscribed) -> str:
    """Say what an agent is subscribed to."""
    return f"{subscribed.agent}: {', '.join(subscribed.channels) or 'no channels'}"


def said(words: Sequence[str]) -> str:
    """Return what is said: the words, or what comes on stdin.

    Raises:
        UsageError: That is nothing.
    """
    text = " ".join(words)
    if text == STDIN:
        text = sys.stdin.read()
    if not text.strip():
        raise UsageError("say something: there is no text")
    return text


# -- changing them --------------------------------------------------------------------------------


@agent.command()
def pause(
    names: Names = None,
    *,
    label: LabelOptions = None,
    idle: IdleOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Have agents take no more messages for now.

    What they are at is finished, and what comes is kept.
    """
    _change("pause", which(names, label, idle), as_json=as_json)


@agent.command()
def resume(
    names: Names = None,
    *,
    label: LabelOptions = None,
    idle: IdleOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Have paused agents go on."""
    _change("resume", which(names, label, idle), as_json=as_json)


@agent.command()
def restart(
    names: Names = None,
    *,
    label: LabelOptions = None,
    idle: IdleOption = None,
    keep_version: Annotated[
        bool, typer.Option("--keep-version", help="By the version that they run by.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Start agents anew, by their newest definitions.

    Their mailboxes stay.
    """
    _change("restart", which(names, label, idle), as_json=as_json, keep_version=keep_version)


@agent.command()
def terminate(
    names: Names = None,
    *,
    label: LabelOptions = None,
    idle: IdleOption = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept.")] = "",
    children: Annotated[
        bool, typer.Option("--children/--no-children", help="Those that they have spawned, too.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """End agents for good, with what waits for them.

    What runs is cancelled; their conversations stay.
    """
    meant = which(names, label, idle)
    if not dry_run and not yes and not _is_exact(meant):
        _confirm(meant, children=children)
    _change("terminate", meant, as_json=as_json, reason=reason, children=children, dry_run=dry_run)


def _is_exact(meant: e.AgentSelect) -> bool:
    """Say whether agents are named, each of them."""
    return bool(meant.names) and not any(set("*?") & set(name) for name in meant.names)


def _confirm(meant: e.AgentSelect, *, children: bool) -> None:
    if not sys.stdin.isatty():
        raise UsageError("this may end many agents: see which with --dry-run, then add --yes")
    ask = {"which": meant, "children": children, "dry_run": True}
    with connect() as client:
        found = client.request("agent:terminate", ask, result_type=e.AgentsChanged)
    names = ", ".join(each.name for each in found.agents)
    if names:
        typer.confirm(f"end {names} for good?", abort=True, err=True)


def _change(verb: str, meant: e.AgentSelect, *, as_json: bool, **more: Any) -> None:
    ask = {"which": meant, **more}
    show_answer(f"agent:{verb}", ask, e.AgentsChanged, changed_text, as_json=as_json)


def changed_text(changed: e.AgentsChanged) -> str:
    """Say how the agents are that it was about."""
    if not changed.agents:
        return "no agent is meant"
    head = "it would be about:\n" if changed.is_dry_run else ""
    return head + "\n".join(f"{each.name}  {state_of(each)}" for each in changed.agents)


def which(
    names: Sequence[str] | None, labels: Sequence[str] | None, idle_s: float | None
) -> e.AgentSelect:
    """Return which agents are meant.

    Raises:
        UsageError: None are named.
    """
    if not names and not labels and idle_s is None:
        raise UsageError("which agents? Name them (ksi agent list), or say --label or --idle")
    return e.AgentSelect(names=tuple(names or ()), labels=labels_of(labels), idle_s=idle_s)


def labels_of(words: Sequence[str] | None) -> dict[str, str]:
    """Return labels of what was written.

    Raises:
        UsageError: One is not key=value.
    """
    labels = {}
    for word in words or ():
        key, separator, value = word.partition("=")
        if not key or not separator:
            raise UsageError(f"{word!r} is no label: write KEY=VALUE")
        labels[key] = value
    return labels


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= PROMPT_WIDTH else f"{text[: PROMPT_WIDTH - 1]}…"
