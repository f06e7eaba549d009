"""Tests with a real model: a folder that ``KSI_TEST_EMBEDDER`` names, or none."""

import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_daemon.protocol import Context, InvalidData
from ksi_memory.embedding.choice import Choice
from ksi_memory.embedding.embedder import Embedder
from ksi_memory.embedding.service import Embedding
from ksi_memory.events import NewItem
from ksi_memory.items.store import Items
from ksi_memory.querying.search import Search
from ksi_memory.settings import MemorySettings
from ksi_memory.tests.searching import drain
from ksi_memory.whose import Whose
from ksi_postgres.database import Database

FOLDER = os.environ.get("KSI_TEST_EMBEDDER", "")  # read before the tests' environment is scrubbed
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="KSI_TEST_EMBEDDER names no folder of a model"),
    pytest.mark.skipif(
        importlib.util.find_spec("fastembed") is None, reason="fastembed is not installed"
    ),
]
ALL = Whose("default")


@pytest.fixture
def choice(tmp_path: Path) -> Choice:
    return Choice(tmp_path, 1, None)  # type: ignore[arg-type]  # nothing is sent


@pytest.fixture
async def embedder(choice: Choice) -> AsyncIterator[Embedder]:
    found = await choice.find(f"path:{FOLDER}")
    assert found is not None
    yield found
    await found.close()


def cos(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


async def test_what_means_the_same_is_near_without_a_common_word(embedder: Embedder) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten naps on a couch.", "Interest rates went up."]

    cat, kitten, rates = await embedder.embed(texts, Context(""))

    assert len(cat) == embedder.dimension
    assert cos(cat, cat) == pytest.approx(1, abs=1e-3)
    assert cos(cat, kitten) > 0.4 > cos(cat, rates)


async def test_the_order_of_texts_is_kept_whatever_their_length(embedder: Embedder) -> None:
    texts = [f"{'word ' * (number % 7 * 10)}number {number}" for number in range(70)]

    together = await embedder.embed(texts, Context(""))
    alone = [(await embedder.embed([text], Context("")))[0] for text in texts[:9]]

    for one, two in zip(together, alone, strict=False):
        assert cos(one, two) > 0.97  # an int8 model is a little different in company


@pytest.mark.parametrize("text", ["", " ", "🦄 مرحبا", "x" * 100_000, "\0", "a\ud800b"])
async def test_any_text_has_a_vector_or_is_refused(embedder: Embedder, text: str) -> None:
    try:
        made = await embedder.embed([text], Context(""))
    except Exception:  # noqa: BLE001  it is refused, and set aside
        return

    assert len(made[0]) == embedder.dimension


async def test_a_folder_is_found_again_by_what_its_vectors_are_known_by(
    choice: Choice, embedder: Embedder, tmp_path: Path
) -> None:
    again = await choice.find_again(embedder.name, embedder.dimension)
    other = await choice.find_again(embedder.name[:-1] + "!", embedder.dimension)

    assert again is not None
    assert again.name == embedder.name
    assert other is None
    (tmp_path / "config.json").write_text("{}")
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("no model")
    with pytest.raises(InvalidData):
        await choice.find(f"path:{tmp_path}")


async def test_the_search_finds_what_is_meant(database: Database, choice: Choice) -> None:
    settings = MemorySettings(embedder=f"path:{FOLDER}", question_timeout_s=30)
    embedding = Embedding(database, settings, choice)
    bodies = ("We adopted a puppy last week.", "The mortgage is paid off.", "She teaches violin.")
    items = Items(database, MemorySettings())
    await items.upsert(ALL, "moments", [NewItem(key=body[:9], body=body) for body in bodies])
    await drain(embedding)

    found = await Search(database, embedding).search(ALL, "Is there a dog in the family?")
    await embedding.close()

    assert found.results[0].body == bodies[0]
    assert (found.embedder or "").startswith(f"path:{FOLDER}#")
