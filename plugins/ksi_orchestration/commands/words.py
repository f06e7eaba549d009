"""How orchestrations are told to people: in lines, in tables, as Markdown."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from ksi_cli import output, turns
from ksi_orchestration import events as e

PERSON: Final = "person"
TOPIC_WIDTH: Final = 40
ENDED: Final = ("succeeded", "failed", "stopped")
_WHY: Final = {
    "turns": "it had as many turns as it may have",
    "time": "its time was up",
    "cost": "its budget was spent",
}


def speaker(said: e.Utterance | e.TurnBegan) -> str:
    """Name who speaks."""
    return "you" if said.member == PERSON else said.member


def place(said: e.Utterance | e.TurnBegan) -> str:
    """Say who a speaker is and where it stands."""
    where = at(said.stage, said.round)
    if said.item:  # what it is about says more than which one it is
        where = f"{said.stage} · {turns.one_line(said.item, 60)}"
    parts = [said.agent or "", where]
    return " · ".join(part for part in parts if part)


def at(stage: str, number: int) -> str:
    """Say which stage it is, and which round of it after the first."""
    return f"{stage}, round {number}" if number > 1 else stage


def took(said: e.Utterance) -> str:
    """Say what a turn took."""
    if said.run_id is None or said.error is not None:
        return ""
    cost = "cost unknown" if said.cost_usd is None else turns.dollars(said.cost_usd)
    return " · ".join(filter(None, (said.model, f"{turns.count(said.tokens)} tokens", cost)))


def failed(said: e.Utterance) -> str:
    """Say why somebody could not answer."""
    message = "" if said.error is None else turns.one_line(said.error.message, 300)
    return f"{speaker(said)} could not answer: {message}"


def spent(it: e.Orchestration) -> str:
    """Say what an orchestration has taken."""
    cost = turns.dollars(it.cost_usd) + ("" if it.is_cost_known else " and what is not known")
    return f"{turns.plural(it.turns, 'turn')} · {turns.count(it.tokens)} tokens · {cost}"


def standing(it: e.Orchestration) -> str:
    """Say how an orchestration stands, in a line."""
    parts: list[str] = [it.status]
    if it.reason and it.reason not in ("done", it.status):
        parts.append(_WHY.get(it.reason, it.reason))
    if it.status not in ENDED and it.stage:
        parts.append(at(it.stage, it.round))
    parts.append(spent(it))
    if it.created_at is not None and it.ended_at is not None:
        parts.append(output.duration((it.ended_at - it.created_at).total_seconds()))
    return " · ".join(parts)


def list_text(listed: e.OrchestrationsListed) -> str:
    """Lay orchestrations out."""
    if not listed.orchestrations:
        return "there are no orchestrations; have one: ksi orchestrate TOPIC"
    rows = [
        (
            it.id,
            it.pattern,
            it.status,
            f"{it.turns}",
            turns.dollars(it.cost_usd),
            turns.one_line(it.topic, TOPIC_WIDTH),
        )
        for it in listed.orchestrations
    ]
    text = output.table(("ID", "PATTERN", "IS", "TURNS", "COST", "TOPIC"), rows)
    return f"{text}\nmore: --cursor {listed.cursor}" if listed.cursor else text


def status_text(told: e.StatusTold) -> str:
    """Lay an orchestration and its members out."""
    it = told.orchestration
    pairs = [
        ("id", it.id),
        ("pattern", it.pattern),
        ("topic", turns.one_line(it.topic, 300)),
        ("is", standing(it)),
        ("error", None if it.error is None else it.error.message),
        ("run", it.run_id),
        ("since", None if it.created_at is None else _time(it.created_at)),
        ("ended", None if it.ended_at is None else _time(it.ended_at)),
    ]
    rows = [
        (
            member.name,
            member.agent,
            member.model or "",
            str(member.turns),
            turns.dollars(member.cost_usd),
            f"speaks: {member.run_id}" if member.run_id else "",
        )
        for member in told.members
    ]
    parts = [
        output.fields(pairs),
        output.table(("MEMBER", "AGENT", "MODEL", "TURNS", "COST", ""), rows),
    ]
    if it.result:
        parts.append(f"result:\n{turns.plain(it.result)}")
    return "\n\n".join(parts)


def transcript_text(said: Iterable[e.Utterance]) -> str:
    """Lay out what was said."""
    return "\n\n".join(utterance_text(each) for each in said) or "nothing was said yet"


def utterance_text(said: e.Utterance) -> str:
    """Lay out what one has said."""
    head = f"{speaker(said)} ({place(said)})"
    if said.error is not None:
        return f"{head}\n{failed(said)}"
    return f"{head}\n{turns.plain(said.text).strip()}"


def document(told: e.StatusTold, said: Sequence[e.Utterance]) -> str:
    """Write an orchestration down as Markdown."""
    it = told.orchestration
    members = [
        f"- **{member.name}**: {member.agent}" + (f", {member.model}" if member.model else "")
        for member in told.members
    ]
    parts = [
        f"# {turns.one_line(it.topic, 300)}",
        f"A {it.pattern} · {standing(it)}",
        "\n".join(members),
        *(_section(each) for each in said),
    ]
    if it.result and not (said and said[-1].text == it.result):
        parts.append(f"## Result\n\n{turns.plain(it.result).strip()}")
    return "\n\n".join(parts) + "\n"


def _section(said: e.Utterance) -> str:
    text = f"*{failed(said)}*" if said.error is not None else turns.plain(said.text).strip()
    return f"## {speaker(said)} ({place(said)})\n\n{text}"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
