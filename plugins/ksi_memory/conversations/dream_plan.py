"""Says what a dream makes of the recent past: what to write, strengthen, merge and propose.

Nothing is written here, and nothing is asked: the same past makes the same dream. What a dream has
made before, of the same things, it does not make again.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from ksi_memory.conversations.store import Pair
from ksi_memory.events import Dreamed, Edge, Item, NewItem, Origin, Source
from ksi_memory.items.ids import folded, item_id
from ksi_memory.language import extracts, junk, rules
from ksi_memory.language.extracts import Said

DAY: Final = "dream"
SUMS_UP: Final = "sums_up"
ASSOCIATES: Final = "associates"
LEAST_MOMENTS: Final = 2  # of a day that is summed up
LEAST_MENTIONS: Final = 2  # together, of an association
LEAST_CHANGE: Final = 0.05  # of a strength or a confidence, to be written down
MENTIONS_TO_BE_STRONG: Final = 3.0  # as strength 1 - 1/e
ALIKE: Final = 0.8  # of two texts' words, and they say the same
LEAST_WORDS: Final = 3  # of what is compared
LEAST_CONVERSATIONS: Final = 3  # of a topic that is a pattern
LEAST_DAYS: Final = 2
LEAST_WEEKS: Final = 3  # of a time that is a pattern
MAX_SOURCES: Final = 10
MAX_TEXT: Final = 200
_NEGATIONS: Final = junk.word_set("not no never don't doesn't isn't can't won't cannot without n't")
_DAYTIMES: Final = ((5, "night"), (12, "morning"), (18, "afternoon"), (24, "evening"))
_WEEKDAYS: Final = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip


class Action(Struct, frozen=True, kw_only=True):
    """One thing that a dream does.

    Attributes:
        told: It, as it is told.
        item: What is written.
        origin: As whose word.
        ends: The ids of what it stands for from then on.
    """

    told: Dreamed
    item: NewItem
    origin: Origin = "derived"
    ends: tuple[str, ...] = ()


class Past(Struct, frozen=True, kw_only=True):
    """What a dream goes over, all of one owner.

    Attributes:
        owner: The user; empty: what belongs to everybody.
        at: When it is dreamt.
        moments: Recent ones, and those that patterns are seen in.
        since: What is recent.
        facts: What might say the same twice, of any age.
        entities: Known people and things.
        associations: As they stand.
        patterns: As they stand.
        pairs: What is mentioned together.
        days: Digests of days, as they stand.
    """

    owner: str
    at: datetime
    since: datetime
    moments: Sequence[Item] = ()
    facts: Sequence[Item] = ()
    entities: Sequence[Item] = ()
    associations: Sequence[Item] = ()
    patterns: Sequence[Item] = ()
    pairs: Sequence[Pair] = ()
    days: Sequence[Item] = ()
    forgotten: frozenset[UUID] = frozenset()


def ids_of(past: Past) -> list[UUID]:
    """Return the ids of all that a dream of this past may write, to ask which were forgotten."""
    keys = [("moments", day_key(day)) for day in _by_day(past)]
    keys += [("associations", pair_key(pair.one, pair.other)) for pair in past.pairs]
    keys += [("patterns", each.key) for each in _seen(past)]
    return [item_id(table, key, past.owner) for table, key in keys]


def dream_of(past: Past, moment_tokens: int) -> list[Action]:
    """Return what a dream of this past does."""
    actions = [
        *_days(past, moment_tokens),
        *_associations(past),
        *_merges(past, "facts", past.facts),
        *_merges(past, "entities", past.entities),
        *_patterns(past),
    ]
    return [
        each
        for each in actions
        if each.ends or item_id(each.told.table, each.item.key, past.owner) not in past.forgotten
    ]


def _source(item: Item) -> Source:
    return Source(kind="item", item=item.id, version=item.version)


def _rests_on(sources: Iterable[Source]) -> tuple[str, ...]:
    return tuple(
        each.item if each.item is not None else f"message {each.message} of {each.conversation_id}"
        for each in sources
    )


def _is_made_of(known: Item | None, sources: Sequence[Source]) -> bool:
    """Say whether an item was made of just these things."""
    if known is None:
        return False
    made = {(each.item, each.version) for each in known.sources if each.item is not None}
    return made == {(each.item, each.version) for each in sources if each.item is not None}


def _told(did: Any, table: str, key: str, text: str, sources: Iterable[Source]) -> Dreamed:
    return Dreamed(did=did, table=table, key=key, text=text[:MAX_TEXT], rests_on=_rests_on(sources))


# -- days -----------------------------------------------------------------------------------------


def beginning_of(day: date) -> datetime:
    """Return when a day begins."""
    return datetime.combine(day, time(), UTC)


def day_key(day: date) -> str:
    """Return the key of a day's digest."""
    return f"day:{day.isoformat()}"


def _by_day(past: Past) -> dict[date, list[Item]]:
    """Return the moments of each day that is over, and that is looked at as a whole."""
    days: dict[date, list[Item]] = defaultdict(list)
    for each in past.moments:
        if each.starts_at is None or each.category in (DAY, "date"):
            continue
        day = each.starts_at.astimezone(UTC).date()
        if past.since <= beginning_of(day) and day < past.at.date():
            days[day].append(each)
    return {day: some for day, some in sorted(days.items()) if len(some) >= LEAST_MOMENTS}


def _days(past: Past, moment_tokens: int) -> Iterable[Action]:
    known = {each.key: each for each in past.days}
    for day, of_day in _by_day(past).items():
        moments = sorted(of_day, key=lambda each: (each.starts_at or past.at, each.id))
        key, sources = day_key(day), [_source(each) for each in moments]
        if _is_made_of(known.get(key), sources):
            continue
        said = [line for each in moments for line in said_of(each, past.at)]
        quotes = extracts.quotes_of(said, moment_tokens)
        if not quotes:
            continue
        texts = [each.text for each in said]
        topics = rules.topics_of(texts)
        persons = dict.fromkeys(person for each in moments for person in each.persons)
        body = extracts.body_of(quotes)
        item = NewItem(
            key=key,
            owner=past.owner,
            title=", ".join([day.isoformat(), *topics[:4]]),
            body=body,
            category=DAY,
            attributes={
                "type": DAY,
                "topics": topics,
                "emotions": rules.moods_of(texts),
                "moments": [each.key for each in moments],
            },
            persons=tuple(persons),
            starts_at=beginning_of(day),
            ends_at=beginning_of(day) + timedelta(days=1),
            edges=tuple(Edge(to=each.key, relation=SUMS_UP) for each in moments),
            sources=tuple(sources),
        )
        yield Action(told=_told("wrote", "moments", key, body, sources), item=item)


def said_of(moment: Item, at: datetime) -> list[Said]:
    """Return the lines of a moment's text as what was said."""
    lines = []
    for line in moment.body.splitlines():
        role, colon, text = line.partition(": ")
        is_role = bool(colon) and role in ("User", "Assistant")
        lines.append(
            Said(0, role.lower() if is_role else "assistant", text if is_role else line,
                 moment.starts_at or at)
        )  # fmt: skip
    return lines


# -- what goes together ---------------------------------------------------------------------------


def pair_key(one: str, other: str) -> str:
    """Return the key of an association."""
    return f"{one} & {other}"


def strength_of(weight: float) -> float:
    """Return how strong an association is: in [0, 1], by mentions that fade."""
    return round(1.0 - math.exp(-weight / MENTIONS_TO_BE_STRONG), 2)


def _associations(past: Past) -> Iterable[Action]:
    names = {folded(each.key): each for each in past.entities}
    known = {each.key: each for each in past.associations}
    for pair in past.pairs:
        one, other = names.get(pair.one), names.get(pair.other)
        key = pair_key(pair.one, pair.other)
        before = known.get(key)
        if one is None or other is None or (before is None and pair.mentions < LEAST_MENTIONS):
            continue
        strength, was = strength_of(pair.weight), _number(before, "strength")
        if before is not None and abs(strength - was) < LEAST_CHANGE:
            continue
        sources = [_source(one), _source(other)]
        sources += [
            Source(kind="message", conversation_id=conversation, message=message)
            for conversation, message in pair.places
        ]
        title = f"{one.title or one.key} and {other.title or other.key}"
        item = NewItem(
            key=key,
            owner=past.owner,
            title=title,
            body=f"{title} are mentioned together.",
            category="together",
            attributes={"strength": strength, "mentions": pair.mentions},
            starts_at=pair.last_at,
            edges=(
                Edge(to=one.key, relation=ASSOCIATES, weight=strength),
                Edge(to=other.key, relation=ASSOCIATES, weight=strength),
            ),
            sources=tuple(sources),
        )
        did = "weakened" if strength < was else "strengthened"
        text = f"{title}: {was:.2f} → {strength:.2f}"
        yield Action(told=_told(did, "associations", key, text, sources), item=item)


def _number(item: Item | None, name: str) -> float:
    value = None if item is None else item.attributes.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


# -- what says the same ---------------------------------------------------------------------------


def _merges(past: Past, table: str, items: Sequence[Item]) -> Iterable[Action]:
    free = [each for each in items if each.origin != "given" and not each.is_pinned]
    free.sort(key=lambda each: (each.origin != "said", -each.valid_from.timestamp(), each.id))
    compared = {each.id: _words(each, table) for each in free}
    gone: set[str] = set()
    for kept, others in _alike(free, compared):
        if kept.id in gone or any(each.id in gone for each in others):
            continue
        gone.update(each.id for each in others)
        sources = [*kept.sources, _source(kept), *map(_source, others)]
        merged = sorted({*_merged(kept), *(each.key for each in others)})
        item = NewItem(
            key=kept.key,
            owner=past.owner,
            attributes={**kept.attributes, "merged": merged},
            sources=tuple(dict.fromkeys(sources)),
        )
        names = ", ".join(each.key for each in others)
        rests_on = [_source(kept), *map(_source, others)]
        yield Action(
            told=_told("merged", table, kept.key, f"{names} → {kept.key}: {kept.body}", rests_on),
            item=item,
            origin=kept.origin,
            ends=tuple(each.id for each in others),
        )


def _merged(item: Item) -> list[str]:
    merged = item.attributes.get("merged")
    return [str(each) for each in merged] if isinstance(merged, list) else []


def _words(item: Item, table: str) -> frozenset[str]:
    """Return what an item is compared by: its text's words, an entity's name's."""
    text = item.key if table == "entities" else item.body
    return frozenset(junk.folded(text).split())


def _alike(
    items: Sequence[Item], compared: dict[str, frozenset[str]]
) -> Iterable[tuple[Item, list[Item]]]:
    """Yield each item with those behind it that say the same, of those that share a word."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        for word in compared[item.id]:
            places[word].append(number)
    for number, item in enumerate(items):
        words = compared[item.id]
        if not words:
            continue
        rarest = sorted(words, key=lambda word: len(places[word]))
        # Of words that overlap by so much, one of the rarest few is in both.
        looked_at = rarest[: len(words) - math.ceil(ALIKE * len(words)) + 1]
        near = sorted({n for word in looked_at for n in places[word] if n > number})
        same = [items[n] for n in near if _say_the_same(item, items[n], compared)]
        if same:
            yield item, same


def _say_the_same(one: Item, other: Item, compared: dict[str, frozenset[str]]) -> bool:
    if one.category != other.category or one.table != other.table:
        return False
    a, b = compared[one.id], compared[other.id]
    if one.table == "entities":
        return a == b
    if min(len(a), len(b)) < LEAST_WORDS or len(a & b) < ALIKE * len(a | b):
        return False
    changed = a ^ b
    return not (
        any(any(letter.isdigit() for letter in word) for word in changed)
        or changed & _NEGATIONS
        or _names(one.body) != _names(other.body)
        or _opposes(one, other)
    )


def _names(text: str) -> frozenset[str]:
    """Return the names in a text: two that differ in one of them don't say the same."""
    return frozenset(junk.folded(each) for each in re.findall(r"(?<=\s)[A-Z][\w'’-]+", text))


def _opposes(one: Item, other: Item) -> bool:
    """Say whether two facts give different values to one attribute."""
    a, b = one.attributes.get("attribute"), other.attributes.get("attribute")
    return a is not None and a == b


# -- patterns -------------------------------------------------------------------------------------


class Seen(Struct, frozen=True):
    """What recurs: how often, and in which moments."""

    key: str
    type: str
    text: str
    count: int
    is_enough: bool
    moments: tuple[Item, ...]


def confidence_of(count: int) -> float:
    """Return how sure a pattern is that was seen so often."""
    return round(count / (count + 3), 2)


def _seen(past: Past) -> list[Seen]:
    chunks = [each for each in past.moments if each.starts_at and each.category != DAY]
    return [*_topics(chunks), *_times(chunks)]


def _topics(chunks: Sequence[Item]) -> Iterable[Seen]:
    by_topic: dict[str, list[Item]] = defaultdict(list)
    for each in chunks:
        topics = each.attributes.get("topics")
        for topic in dict.fromkeys(topics if isinstance(topics, list) else ()):
            by_topic[str(topic)].append(each)
    for topic, moments in sorted(by_topic.items()):
        conversations = {each.session for each in moments if each.session}
        days = {each.starts_at.date() for each in moments if each.starts_at}
        is_enough = len(conversations) >= LEAST_CONVERSATIONS and len(days) >= LEAST_DAYS
        text = f"The user often talks about {topic}."
        yield Seen(f"topic:{topic}", "topic", text, len(conversations), is_enough, tuple(moments))


def _times(chunks: Sequence[Item]) -> Iterable[Seen]:
    by_time: dict[tuple[int, str], list[Item]] = defaultdict(list)
    for each in chunks:
        assert each.starts_at is not None
        at = each.starts_at
        part = next(name for until, name in _DAYTIMES if at.hour < until)
        by_time[at.weekday(), part].append(each)
    for (weekday, part), moments in sorted(by_time.items()):
        weeks = {each.starts_at.isocalendar()[:2] for each in moments if each.starts_at}
        name = f"{_WEEKDAYS[weekday]} {part}"
        yield Seen(
            f"time:{name.lower().replace(' ', '-')}",
            "time",
            f"The user is often here on a {name} (UTC).",
            len(weeks),
            len(weeks) >= LEAST_WEEKS,
            tuple(moments),
        )


def _patterns(past: Past) -> Iterable[Action]:
    known = {each.key: each for each in past.patterns if each.origin == "derived"}
    for seen in _seen(past):
        before = known.get(seen.key)
        if before is None and not seen.is_enough:
            continue
        confidence, was = confidence_of(seen.count), _number(before, "confidence")
        newest = sorted(
            seen.moments, key=lambda each: (each.starts_at or past.at, each.id), reverse=True
        )[:MAX_SOURCES]
        sources = [_source(each) for each in newest]
        if before is not None and (
            abs(confidence - was) < LEAST_CHANGE or _is_made_of(before, sources)
        ):
            continue
        last = newest[0].ends_at or newest[0].starts_at
        first = min(each.starts_at for each in seen.moments if each.starts_at)
        item = NewItem(
            key=seen.key,
            owner=past.owner,
            title=seen.type,
            body=seen.text,
            category=seen.type,
            attributes={
                "type": seen.type,
                "description": seen.text,
                "confidence": confidence,
                "seen": seen.count,
                "last_seen": None if last is None else last.isoformat(),
            },
            starts_at=first,
            ends_at=last,
            sources=tuple(sources),
        )
        did = "proposed" if before is None else "weakened" if confidence < was else "strengthened"
        text = f"{seen.text} ({was:.2f} → {confidence:.2f})"
        yield Action(told=_told(did, "patterns", seen.key, text, sources), item=item)
