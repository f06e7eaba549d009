import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_models.events import Message, TextDelta, TextPart, ToolResultPart, Usage
from ksi_models.provider import Question
from ksi_models.providers.extractive import MAX_PASSAGE_CHARACTERS, WHO, Extractive, answer_to
from ksi_models.providers.ranking import words_of
from ksi_models.tests.questions import ask, assistant, failing, question, said, user

TALK = (
    user("My sister Anna was born in Oslo in 1984. She plays the cello."),
    assistant("How nice! The cello is a string instrument with four strings."),
    user("Our server is called hugin and is deployed every Tuesday at noon."),
    assistant("I will keep that in mind."),
    user("Die Rechnung der Druckerei beträgt 420 Euro und ist bis Freitag fällig."),
    assistant("Verstanden."),
    Message("tool", (ToolResultPart("1", "weather", "It rains in Bergen, 9 degrees."),)),
    user("我喜欢在北京的胡同里散步。"),
)


def about(text: str, *messages: Message, system: str | None = None) -> Question:
    return question(*(messages or TALK), user(text), model="extractive", system=system)


@pytest.mark.parametrize(
    ("asked", "quoted", "source"),
    [
        ("Where was my sister born?", "born in Oslo in 1984", "message 1 (user)"),
        ("what instrument does Anna play", "She plays the cello", "message 1 (user)"),
        ("How many strings does a cello have?", "four strings", "message 2 (assistant)"),
        ("When is the server deployed?", "every Tuesday", "message 3 (user)"),
        ("Wie hoch ist die Rechnung der Druckerei?", "420 Euro", "message 5 (user)"),
        ("bis wann ist die rechnung fällig", "bis Freitag", "message 5 (user)"),
        ("Does it rain in Bergen?", "It rains in Bergen", "message 7 (result of weather)"),
        ("我喜欢在哪里散步", "北京的胡同", "message 8 (user)"),
    ],
)
def test_it_quotes_what_was_said_and_where(asked: str, quoted: str, source: str) -> None:
    text = answer_to(about(asked))

    assert text.startswith(WHO)
    assert quoted in text.split("— ")[0]
    assert f"— {source}" in text


@pytest.mark.parametrize(
    "asked",
    [
        "What is the capital of France?",
        "Who wrote Hamlet?",
        "Explain quantum computing",
        "How do I cook rice?",
        "Where was Mozart born?",
        "How many planets are there?",
        "What is the server's IP address and its operating system?",
        "Wie wird das Wetter morgen in Berlin?",
        "Wer hat die Glühbirne erfunden?",
        "Quelle est la capitale de la France?",
        "¿Quién escribió el Quijote?",
        "东京的天气怎么样",
        "Hello",
        "and then?",
        "please tell me more about it",
        "?",
        "",
        "🙂",
    ],
)
def test_it_quotes_nothing_that_is_about_something_else(asked: str) -> None:
    text = answer_to(about(asked))

    assert ">" not in text
    assert "Nothing in that is about your question" in text
    assert "no language model" in text


def test_it_never_answers_a_question_with_a_question() -> None:
    talk = (user("What is the date of the Ariane launch?"), assistant("I don't know."))

    text = answer_to(about("date of the Ariane launch", *talk))

    assert ">" not in text


def test_it_never_quotes_itself() -> None:
    first = answer_to(about("Where was my sister born?"))
    talk = (*TALK, user("Where was my sister born?"), assistant(first))

    assert answer_to(about("Where was my sister born?", *talk)).count("Oslo") == 1


def test_it_quotes_what_was_looked_up_and_no_instructions() -> None:
    system = (
        "You are a helpful assistant for gardeners.\n\n"
        '<context title="Roses &amp; more" sources="diary.md">\n'
        "The roses were planted in March.\n</context>\n\n"
        "<summary>\nThe hedge was cut by Ben.\n</summary>"
    )

    remembered = answer_to(about("When were the roses planted?", system=system))
    summed_up = answer_to(about("Who cut the hedge?", system=system))
    instructed = answer_to(about("Who helps gardeners?", system=system))

    assert "> The roses were planted in March.\n— Roses & more (diary.md)" in remembered
    assert "> The hedge was cut by Ben.\n— the summary" in summed_up
    assert ">" not in instructed


def test_a_long_passage_is_shortened() -> None:
    text = answer_to(about("zebra", user("zebra " * 500), assistant("ok")))

    assert len(text) < 2 * MAX_PASSAGE_CHARACTERS


async def test_it_streams_and_costs_nothing() -> None:
    deltas, end = await ask(Extractive(), about("Where was my sister born?"))

    assert len(deltas) > 1
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == said(end)
    assert end.usage == Usage()


async def test_there_is_only_one_of_them() -> None:
    assert (await failing(Extractive(), question(model="other"))).kind == "not_found"


@given(st.lists(st.text(max_size=200), max_size=6), st.text(max_size=100))
def test_any_text_is_answered_by_what_was_said(texts: list[str], asked: str) -> None:
    messages = [Message("user", (TextPart(text),)) for text in texts]

    text = answer_to(question(*messages, user(asked), model="extractive"))

    assert text.startswith(WHO)
    assert text == answer_to(question(*messages, user(asked), model="extractive"))


def test_words_are_compared_without_their_endings_and_accents() -> None:
    assert words_of("deployed deploying deploys") == ["deploy"] * 3
    assert words_of("Café CAFE") == ["cafe", "cafe"]


def test_it_quotes_a_file_that_came_with_the_question_by_its_name() -> None:
    file = "house.md:\n````\nThe roof is of slate.\n\n```\nKeys hang beside the door.\n```\n````"
    asked = Message("user", (TextPart("Where are the keys?"), TextPart(file)))

    told = answer_to(question(asked, model="extractive"))

    assert "> Keys hang beside the door." in told
    assert "— house.md" in told
    assert "slate" not in told
