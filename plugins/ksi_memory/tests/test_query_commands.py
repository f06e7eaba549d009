"""``ksi query``: what it shows, and its dialogue."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from ksi_client import AsyncClient
from ksi_memory.commands import dialogue
from ksi_memory.commands.dialogue import RemCompleter, answer, history_file, words_for
from ksi_memory.commands.query import Asking, Format, found_text, question_of
from ksi_memory.events import Edge, MemoryFound, NewItem
from ksi_memory.items.store import Items
from ksi_memory.settings import MemorySettings
from ksi_memory.tests.asking import Searching, asking_daemon
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins


@pytest.fixture
async def client(
    ksi_home: Path,
    database: Database,
    database_logins: Logins,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[AsyncClient]:
    """A client of a daemon that knows Anna and two documents."""
    items = Items(database, MemorySettings())
    edges = (Edge(to="Bob", relation="knows"),)
    await items.upsert(
        Whose("default"),
        "entities",
        [NewItem(key="Anna", title="Anna Schmidt", body="A landlady.", edges=edges)],
    )
    documents = [NewItem(key="rent.md", body="The rent is due."), NewItem(key="b.md", body="No")]
    await items.upsert(Whose("default"), "resources", documents)
    monkeypatch.setenv("KSI_HOME", str(ksi_home))
    async with asking_daemon(ksi_home, database_logins, Searching(items)) as connected:
        yield connected


def asking(client: AsyncClient, *given: Format, tenant: str | None = None) -> Asking:
    made = Asking(*given, tenant=tenant, explain=True)
    made.client = client
    return made


Shown = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (["LOOKUP anna"], "LOOKUP anna"),
        (["SEARCH", "the rent", "LIMIT", "5"], 'SEARCH "the rent" LIMIT 5'),
        (["LOOKUP", 'a "b" c'], 'LOOKUP "a \\"b\\" c"'),
        (["what", "is", "our", "rent?"], "what is our rent?"),
        (["SQL", "SELECT 1"], "SQL SELECT 1"),
        ([], ""),
    ],
)
def test_the_quotes_that_the_shell_took_are_put_back(words: list[str], question: str) -> None:
    assert question_of(words) == question


async def test_answers_are_shown_as_tables(client: AsyncClient, capsys: Shown) -> None:
    for text in (
        "LOOKUP anna",
        "TRAVERSE anna",
        "TIMELINE anna",
        "when is the rent due?",
        "SQL SELECT key, 7 AS n FROM entities",
        "LOOKUP nobody",
    ):
        await asking(client).answer(text)

    shown = capsys.readouterr()
    assert "Anna Schmidt" in shown.out
    assert "A landlady." in shown.out
    assert ["1", "Anna", "-knows-", "bob", "(nothing", "bears", "this", "key)"] in [
        line.split() for line in shown.out.splitlines()
    ]
    assert "The **rent** is **due**." in shown.out
    assert "[cos 0.500]" in shown.out
    assert "(1 row)" in shown.out
    assert "nothing was found" in shown.out
    assert "note: nothing bears the key 'nobody'" in shown.err


async def test_answers_are_shown_as_json_and_yaml(client: AsyncClient, capsys: Shown) -> None:
    await asking(client, Format.json).answer("LOOKUP anna")
    as_json = json.loads(capsys.readouterr().out)
    await asking(client, Format.yaml).answer("LOOKUP anna")
    as_yaml = yaml.safe_load(capsys.readouterr().out)

    assert as_json == as_yaml
    assert as_json["results"][0]["key"] == "Anna"


async def test_another_tenant_is_asked_by_name(client: AsyncClient, capsys: Shown) -> None:
    await asking(client, tenant="other").answer("LOOKUP anna")

    assert "nothing was found" in capsys.readouterr().out


async def test_the_dialogue_describes_times_and_goes_on_after_an_error(
    client: AsyncClient, capsys: Shown
) -> None:
    asked = asking(client)

    went_well = [
        await answer(asked, line)
        for line in ("\\d", "\\d moments", "\\timing", "LOOKUP anna", "LOOKUP a LIMIT", "", "\\x")
    ]

    shown = capsys.readouterr()
    assert went_well == [True, True, True, True, False, True, True]
    assert "what happened when" in shown.out
    assert "starts_at" in shown.out
    assert "timestamp with time zone" in shown.out
    assert "timing is on" in shown.out
    assert "time: " in shown.err
    assert "ksi: LOOKUP takes no LIMIT" in shown.err
    assert "there is no \\x" in shown.err
    with pytest.raises(dialogue.Left):
        await answer(asked, "\\q")


@pytest.mark.parametrize(
    ("text", "some", "none"),
    [
        ("loo", "LOOKUP", "LIMIT"),
        ("SEARCH rent li", "LIMIT", "DEPTH"),
        ("SEARCH rent FROM mo", "moments", "LIMIT"),
        ("search rent from moments, re", "resources", "LIMIT"),
        ("SEARCH rent FIELD t", "title", "moments"),
        ("TRAVERSE anna DIRECTION ", "both", "LIMIT"),
        ("TRAVERSE anna de", "DEPTH", "THRESHOLD"),
        ("\\d mo", "moments", "LIMIT"),
    ],
)
def test_commands_clauses_and_tables_are_completed(text: str, some: str, none: str) -> None:
    words = words_for(text)

    assert some in words
    assert none not in words


@pytest.mark.parametrize(
    ("text", "completed"),
    [("LOOKUP an", ["Anna"]), ("lookup x, RENT", ["rent.md"]), ("SEARCH an", [])],
)
async def test_keys_are_completed(client: AsyncClient, text: str, completed: list[str]) -> None:
    completer = RemCompleter(asking(client))

    found = [
        each.text async for each in completer.get_completions_async(Document(text), CompleteEvent())
    ]

    assert found == completed


async def test_the_editor_keeps_a_private_history_and_ctrl_c_clears_the_line(
    client: AsyncClient, capsys: Shown
) -> None:
    with (
        create_pipe_input() as keys,
        create_app_session(input=keys, output=DummyOutput()),
    ):
        keys.send_text("SEARCH what I regret\x03LOOKUP anna\r\x04")
        async with asyncio.timeout(20):
            await dialogue._edit(asking(client))

    shown = capsys.readouterr().out
    history = history_file()
    assert "A landlady." in shown
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "LOOKUP anna" in history.read_text(encoding="utf-8")
    assert "regret" not in history.read_text(encoding="utf-8")


def test_what_could_steer_a_terminal_stays_in_its_cell() -> None:
    found = MemoryFound(mode="sql", columns=("a", "b"), rows=(("x\ny", None), ({"k": 1}, 1.5)))

    assert found_text(found).splitlines()[1:3] == ["x y", '{"k":1}  1.5']
