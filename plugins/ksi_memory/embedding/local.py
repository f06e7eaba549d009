"""Embedders that run here: a folder with an ONNX model and its tokenizer, or MiniLM by its name."""

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ksi_daemon.protocol import Context, InvalidData, Unavailable

log = logging.getLogger(__name__)

Result = TypeVar("Result")
MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_MEGABYTES: Final = 90
MODEL: Final = "model.onnx"
NEEDED: Final = (MODEL, "tokenizer.json", "config.json")
BATCH: Final = 32  # texts that a model sees at once: more of them only take memory
THREADS: Final = 2  # one for what waits, one for who asks


class LocalEmbedder:
    """A model in this process.

    Args:
        name: What its vectors are known by.
        model: Fastembed's object.
        dimension: How many numbers a vector has.
    """

    is_billed = False

    def __init__(self, name: str, model: Any, dimension: int) -> None:
        self.name = name
        self.dimension = dimension
        self._model = model
        self._threads = ThreadPoolExecutor(THREADS, "embedder")

    async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
        """Turn texts into vectors, in a thread."""
        return await self._in_thread(lambda: self._embed(list(texts)))

    def _embed(self, texts: list[str]) -> list[list[float]]:
        # Texts of one length are embedded together: the others would be filled up with nothing.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        made = self._model.embed([texts[place] for place in order], batch_size=BATCH)
        vectors: list[list[float]] = [[]] * len(texts)
        for place, vector in zip(order, made, strict=True):
            vectors[place] = vector.tolist()
        return vectors

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _fastembed() -> Any:
    try:
        import fastembed  # noqa: PLC0415  half a second, and not everybody has it
    except ImportError as error:
        raise Unavailable(
            "local embedders need fastembed: pip install 'ksi[embed]'", details={"extra": "embed"}
        ) from error
    from loguru import logger  # noqa: PLC0415  it comes with fastembed

    logger.disable("fastembed")  # it writes to stderr what is told here by its exceptions
    return fastembed


def _load_folder(folder: Path, threads: int | None) -> LocalEmbedder:
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise InvalidData(
            f"{folder} is no folder of an embedder: {', '.join(missing)} is missing; name one with "
            "an ONNX model and its tokenizer (memory.embedder)"
        )
    fastembed = _fastembed()
    from fastembed.common.model_description import (  # noqa: PLC0415  as above
        ModelSource,
        PoolingType,
    )

    digest = _digest(folder / MODEL)
    known_as = f"local/{digest}"
    dimension = _dimension(folder)
    if known_as not in {each["model"] for each in fastembed.TextEmbedding.list_supported_models()}:
        fastembed.TextEmbedding.add_custom_model(
            model=known_as,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(url="http://unused.invalid"),
            dim=dimension,
            model_file=MODEL,
        )
    model = fastembed.TextEmbedding(known_as, specific_model_path=str(folder), threads=threads)
    return LocalEmbedder(f"path:{folder}#{digest}", model, dimension)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:12]


def _dimension(folder: Path) -> int:
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    size = config.get("hidden_size", config.get("dim"))
    if not isinstance(size, int):
        raise InvalidData(f"{folder}/config.json does not say the model's hidden_size")
    return size


async def load_folder(folder: Path, threads: int | None) -> LocalEmbedder:
    """Load the model that is in a folder.

    Raises:
        InvalidData: There is none, or it can't be read.
        Unavailable: Fastembed is not installed.
    """
    return await _apart(lambda: _loaded(lambda: _load_folder(folder, threads), str(folder)))


async def _apart(load: Callable[[], LocalEmbedder]) -> LocalEmbedder:
    """Load in a thread that nobody waits for who doesn't want the model any more.

    Without a network it takes most of a minute until the library gives up.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[LocalEmbedder] = loop.create_future()

    def tell(settle: Callable[[Any], None], result: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lambda: None if loaded.done() else settle(result))

    def run() -> None:
        try:
            embedder = load()
        except Exception as error:  # noqa: BLE001  it is raised where it is waited for
            tell(loaded.set_exception, error)
        else:
            tell(loaded.set_result, embedder)

    threading.Thread(target=run, name="load embedder", daemon=True).start()
    return await loaded


def _loaded(load: Callable[[], LocalEmbedder], what: str) -> LocalEmbedder:
    try:
        return load()
    except (InvalidData, Unavailable):
        raise
    except Exception as error:  # whatever onnxruntime and the tokenizer raise
        raise InvalidData(f"the embedder {what} can't be loaded: {error}") from error


async def load_minilm(folder: Path, threads: int | None) -> LocalEmbedder:
    """Load MiniLM; fetch it where it is not there.

    Raises:
        Unavailable: Fastembed is not installed, or the model can't be fetched.
    """
    return await _apart(lambda: _load_minilm(folder, threads))


def _load_minilm(folder: Path, threads: int | None) -> LocalEmbedder:
    fastembed = _fastembed()

    def load(*, only_here: bool) -> LocalEmbedder:
        model = fastembed.TextEmbedding(
            MINILM, cache_dir=str(folder), threads=threads, local_files_only=only_here
        )
        return LocalEmbedder(MINILM.rpartition("/")[2], model, 384)

    try:
        return load(only_here=True)
    except Exception as error:  # noqa: BLE001  hubs raise whatever they like
        log.debug("the embedder is not here yet", extra={"why": str(error)})
    log.info(
        "fetching the embedder, once",
        extra={"model": MINILM, "megabytes": MINILM_MEGABYTES, "place": str(folder)},
    )
    try:
        return load(only_here=False)
    except Exception as error:  # as above
        raise Unavailable(
            f"{MINILM} is not in {folder} and can't be fetched; name a folder that has a model "
            '(memory.embedder = "path:FOLDER"), a provider\'s ("provider:model"), or "none"'
        ) from error
