"""What a dream makes of the past: the same of the same, and nothing of what it has made before."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from ksi_memory.conversations import dream_plan
from ksi_memory.conversations.dream_plan import Action, Past, dream_of
from ksi_memory.conversations.store import Pair
from ksi_memory.events import Item, Source
from ksi_memory.items.ids import item_id

NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)
_numbers = iter(range(1, 10_000))


def item(table: str, key: str, body: str = "", **fields: Any) -> Item:
    kept: dict[str, Any] = {"origin": "derived", "valid_from": NOW, "version": 1}
    kept |= {"id": str(UUID(int=next(_numbers))), "table": table, "key": key, "body": body}
    return Item(**(kept | fields))


def moment(key: str, day: int, body: str, *, hour: int = 9, **attributes: Any) -> Item:
    at = datetime(2026, 3, day, hour, tzinfo=UTC)
    return item(
        "moments", key, body, category="session_chunk", session=key.partition("#")[0],
        starts_at=at, ends_at=at + timedelta(minutes=5), attributes=attributes,
    )  # fmt: skip


def past(**fields: Any) -> Past:
    kept: dict[str, Any] = {"owner": "anna", "at": NOW, "since": NOW - timedelta(days=7)}
    return Past(**(kept | fields))


def dreamt(before: Past) -> list[Action]:
    return dream_of(before, 300)


def made(action: Action, version: int = 1) -> Item:
    """Return what an action has written, as it stands afterwards."""
    kept = msgspec.to_builtins(action.item)
    kept |= {
        "id": str(item_id(action.told.table, action.item.key, "anna")),
        "table": action.told.table,
        "version": version,
        "origin": action.origin,
        "valid_from": NOW,
    }
    return msgspec.convert({k: v for k, v in kept.items() if v is not None}, Item)


APPLES = (
    "User: We decided to plant three apple trees in the garden.\nAssistant: Plant them in March."
)
GLASS = "User: Clara wants a greenhouse for her tomatoes next to the garden."


def test_a_day_that_is_over_is_summed_up_from_its_moments() -> None:
    first, second = moment("c1#1", 18, APPLES), moment("c2#1", 18, GLASS, hour=15)
    before = past(moments=[second, first])

    (action,) = dreamt(before)

    assert action.told.did == "wrote"
    assert action.item.key == "day:2026-03-18"
    assert "three apple trees" in str(action.item.body)
    assert "greenhouse" in str(action.item.body)
    assert action.told.rests_on == (first.id, second.id)
    assert dreamt(msgspec.structs.replace(before, days=[made(action)])) == []


def test_a_day_that_has_changed_is_summed_up_anew() -> None:
    first, second = moment("c1#1", 18, APPLES), moment("c2#1", 18, GLASS)
    (action,) = dreamt(past(moments=[first, second]))

    changed = msgspec.structs.replace(second, version=2)

    assert len(dreamt(past(moments=[first, changed], days=[made(action)]))) == 1


def test_a_day_of_which_a_part_is_long_ago_is_left() -> None:
    some = [moment("c1#1", 13, APPLES, hour=14), moment("c2#1", 13, GLASS, hour=15)]
    before = past(moments=some)

    assert dreamt(before) == []  # since noon of that day: there may be more of the morning
    assert len(dreamt(msgspec.structs.replace(before, since=NOW - timedelta(days=8)))) == 1


def test_today_and_days_with_one_moment_are_left() -> None:
    some = [moment("c1#1", 20, APPLES), moment("c2#1", 20, GLASS), moment("c3#1", 17, GLASS)]

    assert dreamt(past(moments=some)) == []


def test_what_is_mentioned_together_becomes_an_association() -> None:
    clara, garden = item("entities", "Clara"), item("entities", "Garden")
    pair = Pair("clara", "garden", 3, 3.0, NOW, (("c1", 5), ("c1", 3)))
    before = past(entities=[clara, garden], pairs=[pair])

    (action,) = dreamt(before)

    assert action.told.did == "strengthened"
    assert action.item.attributes == {"strength": 0.63, "mentions": 3}
    assert [(each.to, each.weight) for each in action.item.edges or ()] == [
        ("Clara", 0.63),
        ("Garden", 0.63),
    ]
    assert Source(kind="message", conversation_id="c1", message=5) in action.item.sources
    assert dreamt(msgspec.structs.replace(before, associations=[made(action)])) == []


def test_an_association_fades() -> None:
    clara, garden = item("entities", "Clara"), item("entities", "Garden")
    strong = Pair("clara", "garden", 3, 3.0, NOW, ())
    (action,) = dreamt(past(entities=[clara, garden], pairs=[strong]))
    weak = Pair("clara", "garden", 3, 0.5, NOW, ())

    (faded,) = dreamt(past(entities=[clara, garden], pairs=[weak], associations=[made(action)]))

    assert faded.told.did == "weakened"
    assert faded.item.attributes is not None
    assert faded.item.attributes["strength"] == dream_plan.strength_of(0.5)


def test_one_mention_and_unknown_names_make_no_association() -> None:
    clara, garden = item("entities", "Clara"), item("entities", "Garden")

    once = past(entities=[clara, garden], pairs=[Pair("clara", "garden", 1, 1.0, NOW, ())])
    gone = past(entities=[clara], pairs=[Pair("clara", "garden", 5, 5.0, NOW, ())])

    assert dreamt(once) == []
    assert dreamt(gone) == []


def test_notes_that_say_the_same_are_merged_and_nothing_is_lost() -> None:
    said = item(
        "facts", "note:key", "The spare key is under the third pot.", category="note",
        origin="said", sources=(Source(kind="message", conversation_id="c1", message=1),),
    )  # fmt: skip
    other = item("facts", "note:keys", "the spare key is under the third pot", category="note")
    before = past(facts=[other, said])

    (action,) = dreamt(before)

    assert action.told.did == "merged"
    assert action.item.key == "note:key"
    assert action.origin == "said"
    assert action.ends == (other.id,)
    assert said.sources[0] in action.item.sources
    assert Source(kind="item", item=other.id, version=1) in action.item.sources
    assert dreamt(msgspec.structs.replace(before, facts=[said])) == []


def test_what_only_looks_the_same_is_not_merged() -> None:
    pairs = [
        ("The rent is 800 euros a month now.", "The rent is 900 euros a month now."),
        ("Clara eats meat and fish every day.", "Clara never eats meat and fish every day."),
        ("The trip goes to Porto in the spring.", "The trip goes to Lisbon in the spring."),
        ("Tea.", "tea"),
    ]
    for one, other in pairs:
        notes = [
            item("facts", "note:a", one, category="note"),
            item("facts", "note:b", other, category="note"),
        ]

        assert dreamt(past(facts=notes)) == [], one


def test_what_a_person_wrote_or_pinned_is_not_merged() -> None:
    text = "The spare key is under the third pot."
    given = item("facts", "note:a", text, category="note", origin="given")
    pinned = item("facts", "note:b", text, category="note", is_pinned=True)
    free = item("facts", "note:c", text, category="note")

    assert dreamt(past(facts=[given, pinned, free])) == []


def test_names_in_another_order_are_one_entity() -> None:
    one = item("entities", "Jonas Weber", category="person", origin="said")
    other = item("entities", "Weber, Jonas", category="person")

    (action,) = dreamt(past(entities=[one, other]))

    assert (action.item.key, action.ends) == ("Jonas Weber", (other.id,))


def test_a_topic_of_several_conversations_is_a_pattern() -> None:
    some = [moment(f"c{day}#1", day, "", topics=["garden"]) for day in (2, 4, 9)]
    before = past(moments=some)

    (action,) = dreamt(before)

    assert action.told.did == "proposed"
    assert action.item.key == "topic:garden"
    assert action.item.attributes is not None
    assert action.item.attributes["confidence"] == 0.5
    assert set(action.told.rests_on) == {each.id for each in some}
    assert dreamt(msgspec.structs.replace(before, patterns=[made(action)])) == []


def test_two_conversations_or_one_day_are_no_pattern() -> None:
    two = [moment(f"c{day}#1", day, "", topics=["garden"]) for day in (2, 4)]
    one_day = [moment(f"c{n}#1", 2, "", hour=n, topics=["garden"]) for n in (1, 8, 13)]

    assert dreamt(past(moments=two)) == []
    assert dreamt(past(moments=one_day)) == []


def test_a_pattern_that_is_seen_less_is_weakened() -> None:
    days = (2, 3, 4, 5, 6)
    some = [moment(f"c{day}#1", day, "", hour=day, topics=["garden"]) for day in days]
    (action,) = dreamt(past(moments=some))

    (weaker,) = dreamt(past(moments=some[:2], patterns=[made(action)]))

    assert weaker.told.did == "weakened"


def test_a_time_of_several_weeks_is_a_pattern() -> None:
    some = [moment(f"c{day}#1", day, "") for day in (2, 9, 16)]

    (action,) = dreamt(past(moments=some))

    assert action.item.key == "time:monday-morning"


def test_what_was_forgotten_is_not_dreamt_again() -> None:
    some = [moment(f"c{day}#1", day, "", topics=["garden"]) for day in (2, 4, 9)]
    before = past(moments=some)
    gone = frozenset({item_id("patterns", "topic:garden", "anna")})

    assert item_id("patterns", "topic:garden", "anna") in dream_plan.ids_of(before)
    assert dreamt(msgspec.structs.replace(before, forgotten=gone)) == []
