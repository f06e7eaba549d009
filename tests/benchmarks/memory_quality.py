"""How well the memory finds what long conversations say: recall, rank and gain, part by part.

    python tests/benchmarks/memory_quality.py [FOLDER] [--embedder none|test|path:FOLDER]

FOLDER has JSON files in the format in which LoCoMo was published: a list of conversations, each
with sessions of turns and questions whose evidence is marked, by their category (1 several turns,
2 time, 3 common sense, 4 one turn, 5 adversarial: asked of the wrong person). Unless it is given,
three short conversations are used that were invented for this.
"""

import argparse
import asyncio
import math
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from memory_store import Local, embed_all, embedding_for, memory_database
from report import Figure

from ksi_memory.embedding.service import Embedding
from ksi_memory.events import NewItem
from ksi_memory.items.store import Items
from ksi_memory.language.dates import MONTHS
from ksi_memory.querying.hints import Question
from ksi_memory.querying.search import FEATURES, WEIGHTS, Search
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.settings import PostgresSettings

INVENTED: Final = Path(__file__).resolve().parent / "dialogues"
KINDS: Final = {1: "several", 2: "time", 3: "sense", 4: "one", 5: "adversarial"}
ANSWERABLE: Final = "answerable"
POOLED: Final = "pooled"
TABLE: Final = "moments"
DEPTH: Final = 1000  # all candidates: with their features they can be weighed anew
FEW: Final = 10  # from fewer candidates, as people ask
BATCH: Final = 1000

_DATE: Final = re.compile(
    r"(\d{1,2}):(\d{2})\s*([ap]m)\s+on\s+(\d{1,2})\s+(\w+),?\s+(\d{4})", re.IGNORECASE
)
_TURN: Final = re.compile(r"D(\d+):(\d+)")


class Asked(msgspec.Struct, frozen=True):
    """A question, its kind, and the turns that answer it."""

    text: str
    kind: str
    evidence: frozenset[str]


class Dialogue(msgspec.Struct, frozen=True):
    """A conversation and the questions about it."""

    name: str
    turns: tuple[NewItem, ...]
    questions: tuple[Asked, ...]


class Ranked(msgspec.Struct, frozen=True):
    """A question, and the features of what was found for it, by key."""

    asked: Asked
    dialogue: str
    found: tuple[tuple[str, str, dict[str, float]], ...]  # key, id, features


# -- conversations --------------------------------------------------------------------------------


def read(folder: Path) -> list[Dialogue]:
    """Read the conversations of a folder."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    if not files:
        raise SystemExit(f"{folder} has no JSON files")
    return [
        _dialogue(sample, f"{file.stem}-{number}")
        for file in files
        for number, sample in enumerate(msgspec.json.decode(file.read_bytes()))
    ]


def _dialogue(sample: Mapping[str, Any], name: str) -> Dialogue:
    name = str(sample.get("sample_id", name))
    turns = tuple(_turns(name, sample["conversation"]))
    known = {turn.key for turn in turns}
    questions = []
    for each in sample["qa"]:
        parts = _TURN.findall(" ".join(map(str, each.get("evidence") or ())))
        evidence = frozenset(f"{name} D{int(s)}:{int(t)}" for s, t in parts) & known
        if evidence:
            questions.append(Asked(str(each["question"]), KINDS[each["category"]], evidence))
    return Dialogue(name, turns, tuple(questions))


def _turns(name: str, conversation: Mapping[str, Any]) -> Iterator[NewItem]:
    for session, turns in conversation.items():
        number = re.fullmatch(r"session_(\d+)", session)
        if number is None or not isinstance(turns, list):
            continue
        at = _read_date(conversation.get(f"{session}_date_time", ""))
        for place, turn in enumerate(turns):
            shown = turn.get("blip_caption")
            text = str(turn.get("text", ""))
            yield NewItem(
                key=f"{name} {turn['dia_id']}",
                body=f"{text} [shows a picture: {shown}]" if shown else text,
                persons=(str(turn["speaker"]),),
                session=f"{name} {session}",
                place=place,
                starts_at=at,
            )


def _read_date(text: str) -> datetime | None:
    match = _DATE.search(text)
    if match is None:
        return None
    hour, minute, half, day, month, year = match.groups()
    return datetime(
        int(year),
        MONTHS[month.lower()],
        int(day),
        int(hour) % 12 + (12 if half.lower() == "pm" else 0),
        int(minute),
        tzinfo=UTC,
    )


# -- searching ------------------------------------------------------------------------------------


class WithNames(Search):
    """Leaves the name in what is embedded."""

    async def understood(
        self, whose: Whose, question: str, tables: Sequence[str], as_of: datetime | None
    ) -> Question:
        """Take a question apart, and embed all of it."""
        asked = await super().understood(whose, question, tables, as_of)
        return msgspec.structs.replace(asked, embedded=asked.text)


async def _load(database: Database, tenant: str, dialogues: Iterable[Dialogue]) -> None:
    items = Items(database, MemorySettings())
    for dialogue in dialogues:
        for first in range(0, len(dialogue.turns), BATCH):
            batch = dialogue.turns[first : first + BATCH]
            told = await items.upsert(Whose(tenant), TABLE, batch)
            if told.refused:
                raise SystemExit(f"{dialogue.name}: {told.refused[0]}")


async def _ranked(
    search: Search, dialogues: Sequence[Dialogue], pooled: bool, limit: int = DEPTH
) -> list[Ranked]:
    made = []
    for dialogue in dialogues:
        whose = Whose(POOLED if pooled else dialogue.name)
        for asked in dialogue.questions:
            found = await search.search(whose, asked.text, tables=[TABLE], limit=limit)
            hits = tuple((hit.key, str(hit.id), hit.features) for hit in found.results)
            made.append(Ranked(asked, dialogue.name, hits))
    return made


# -- judging --------------------------------------------------------------------------------------


def order(ranked: Ranked, weights: Mapping[str, float]) -> list[str]:
    """Return the keys of what was found, the best first, by other weights."""
    scored = [
        (-sum(features[name] * weight for name, weight in weights.items()), number, key)
        for key, number, features in ranked.found
    ]
    return [key for _, _, key in sorted(scored)]


def fused(ranked: Ranked) -> list[str]:
    """Return the keys by the ranks that they have by words and by meaning: the usual way."""
    scores: dict[str, float] = {}
    for feature in ("lex", "cos"):
        best = sorted(ranked.found, key=lambda each: (-each[2][feature], each[1]))
        for rank, (key, _, _) in enumerate(best, start=1):
            scores[key] = scores.get(key, 0.0) + 1 / (60 + rank)
    return sorted(scores, key=lambda key: (-scores[key], key))


def recall(evidence: frozenset[str], keys: Sequence[str], k: int) -> float:
    """Return which share of the evidence is among the first k."""
    return len(evidence & set(keys[:k])) / len(evidence)


def reciprocal(evidence: frozenset[str], keys: Sequence[str]) -> float:
    """Return one by the rank of the first evidence."""
    return next((1 / rank for rank, key in enumerate(keys, 1) if key in evidence), 0.0)


def gain(evidence: frozenset[str], keys: Sequence[str], k: int) -> float:
    """Return the discounted gain of the first k, as a share of the best possible."""
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(evidence), k) + 1))
    had = sum(1 / math.log2(rank + 1) for rank, key in enumerate(keys[:k], 1) if key in evidence)
    return had / ideal


MEASURES: Final = {
    "recall@5": lambda e, keys: recall(e, keys, 5),
    "recall@10": lambda e, keys: recall(e, keys, 10),
    "recall@50": lambda e, keys: recall(e, keys, 50),
    "MRR": reciprocal,
    "nDCG@10": lambda e, keys: gain(e, keys, 10),
}


def by_kind(orders: Iterable[tuple[Asked, list[str]]]) -> dict[str, dict[str, float]]:
    """Return the mean of each measure, in percent, by kind of question."""
    values: dict[str, dict[str, list[float]]] = {}
    for asked, keys in orders:
        kinds = [asked.kind] if asked.kind == KINDS[5] else [asked.kind, ANSWERABLE]
        for kind in kinds:
            for name, measure in MEASURES.items():
                value = measure(asked.evidence, keys)
                values.setdefault(kind, {}).setdefault(name, []).append(value)
    return {
        kind: {name: 100 * statistics.fmean(each) for name, each in measures.items()}
        | {"questions": float(len(measures["MRR"]))}
        for kind, measures in values.items()
    }


ALL: Final = dict(zip(FEATURES, WEIGHTS, strict=True))


def _without(*names: str) -> dict[str, float]:
    return {name: weight for name, weight in ALL.items() if name not in names}


PARTS: Final = {
    "the whole pipeline": ALL,
    "without vectors": _without("cos", "max_cos"),
    "without words": _without("lex", "max_lex"),
    "without the session": _without("max_cos", "max_lex"),
    "without the person": _without("person"),
    "without times": _without("time", "span", "near"),
    "words alone": {"lex": 1.0},
    "vectors alone": {"cos": 1.0},
}


# -- the report -----------------------------------------------------------------------------------


async def judged(dialogues: Sequence[Dialogue], spec: str) -> tuple[str, list[list[str]]]:
    """Load conversations, ask all questions, and return the lines of a table."""
    async with memory_database(PostgresSettings()) as (database, _):
        choice = Local()
        embedding = embedding_for(database, spec, choice)
        for dialogue in dialogues:
            await _load(database, dialogue.name, [dialogue])
            alone = [msgspec.structs.replace(turn, place=None) for turn in dialogue.turns]
            await _load(
                database,
                f"{dialogue.name} alone",
                [msgspec.structs.replace(dialogue, turns=tuple(alone))],
            )
        await _load(database, POOLED, dialogues)
        await embed_all(embedding)
        lines = await _lines(database, embedding, dialogues)
        used = embedding.why_none or (await embedding.answering()).embedder.name  # type: ignore[union-attr]  # one of them is there
        await embedding.close()
    return used, lines


async def _lines(
    database: Database, embedding: Embedding, dialogues: Sequence[Dialogue]
) -> list[list[str]]:
    search = Search(database, embedding)
    each = await _ranked(search, dialogues, pooled=False)
    alone = [
        msgspec.structs.replace(dialogue, name=f"{dialogue.name} alone") for dialogue in dialogues
    ]
    lines = []
    for name, weights in PARTS.items():
        lines += _told(name, [(r.asked, order(r, weights)) for r in each])
    named = await _ranked(WithNames(database, embedding), dialogues, pooled=False)
    lines += _told("with names embedded", [(r.asked, order(r, ALL)) for r in named])
    lonely = await _ranked(search, alone, pooled=False)
    lines += _told("without neighbours", [(r.asked, order(r, ALL)) for r in lonely])
    plain = await _ranked(WithNames(database, embedding), alone, pooled=False)
    lines += _told("two ranks fused, and no more", [(r.asked, fused(r)) for r in plain])
    pooled = await _ranked(search, dialogues, pooled=True)
    lines += _told("the whole pipeline, pooled", [(r.asked, order(r, ALL)) for r in pooled])
    few = await _ranked(search, dialogues, pooled=True, limit=FEW)
    lines += _told(
        f"the whole pipeline, pooled, {FEW} asked for", [(r.asked, order(r, ALL)) for r in few]
    )
    return lines


def _told(name: str, orders: Sequence[tuple[Asked, list[str]]]) -> list[list[str]]:
    told = by_kind(orders)
    kinds = (
        [ANSWERABLE, *KINDS.values()] if name.startswith("the whole") else [ANSWERABLE, KINDS[5]]
    )
    return [
        [name, kind, f"{told[kind]['questions']:.0f}"]
        + [f"{told[kind][measure]:.1f}" for measure in MEASURES]
        for kind in kinds
        if kind in told
    ]


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure the invented conversations with the embedder for tests."""
    _, lines = asyncio.run(judged(read(INVENTED), "test"))
    for line in lines:
        if line[1] == ANSWERABLE and (not quick or line[0].startswith("the whole")):
            yield Figure(f"recall@10, {line[0]}", "–", f"{line[4]} %", None, f"{line[2]} questions")


def main() -> int:
    """Print the table of a folder's conversations."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=INVENTED)
    parser.add_argument("--embedder", default="test", help="as memory.embedder")
    options = parser.parse_args()
    dialogues = read(options.folder)
    used, lines = asyncio.run(judged(dialogues, options.embedder))
    turns = sum(len(dialogue.turns) for dialogue in dialogues)
    print(f"{len(dialogues)} conversations of {turns} turns; vectors: {used}\n")
    header = ["what", "kind of question", "questions", *MEASURES]
    rows = [header, ["---"] * len(header), *lines]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
