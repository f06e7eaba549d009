"""Finds the embedder that a setting, or a name in the store, stands for."""

from pathlib import Path
from typing import Final

from ksi_daemon.bus import Bus
from ksi_daemon.protocol import Context, InvalidData
from ksi_memory.embedding import local, remote
from ksi_memory.embedding.embedder import Embedder
from ksi_memory.embedding.hashed import HashedEmbedder

AUTO, NONE, TEST, PATH = "auto", "none", "test", "path:"
CACHE: Final = "embedders"
PROBE: Final = "How long is a vector?"
BACKGROUND: Final = Context("", origin="memory")


class Choice:
    """Finds embedders.

    Args:
        home: ``KSI_HOME``: there fetched models are kept, and paths begin.
        threads: Of a local model; 0: as many as there are processors.
        bus: Asks providers.
    """

    def __init__(self, home: Path, threads: int, bus: Bus) -> None:
        self._home = home
        self._threads = threads or None
        self._bus = bus

    async def find(self, spec: str) -> Embedder | None:
        """Return the embedder that a setting names; ``None`` for ``none``.

        Raises:
            InvalidData: The setting, or what it names, is wrong.
            KsiError: It can't be had just now.
        """
        if spec == NONE:
            return None
        if spec == TEST:
            return HashedEmbedder()
        if spec == AUTO:
            return await local.load_minilm(self._home / CACHE, self._threads)
        folder = self._folder(spec)
        if folder is not None:
            return await local.load_folder(folder, self._threads)
        if ":" in spec or "/" in spec:
            dimension = await remote.find_dimension(self._bus, spec, PROBE, BACKGROUND)
            return remote.RemoteEmbedder(spec, dimension, self._bus)
        raise InvalidData(
            f"memory.embedder is {spec!r}: give auto, none, path:FOLDER, provider:model or test"
        )

    async def find_again(self, name: str, dimension: int) -> Embedder | None:
        """Return the embedder that vectors are known by, if there still is that very one.

        Raises:
            KsiError: It can't be had just now.
        """
        if name == HashedEmbedder.name:
            return HashedEmbedder()
        if name == local.MINILM.rpartition("/")[2]:
            return await local.load_minilm(self._home / CACHE, self._threads)
        if name.startswith(PATH):
            folder = Path(name.removeprefix(PATH).rpartition("#")[0])
            found = await local.load_folder(folder, self._threads)
            return found if found.name == name else None
        if ":" in name or "/" in name:
            return remote.RemoteEmbedder(name, dimension, self._bus)
        return None

    def _folder(self, spec: str) -> Path | None:
        """Return the folder that a setting names, whether it is there or not."""
        if spec.startswith(PATH):
            return self._home / Path(spec.removeprefix(PATH)).expanduser()
        if spec.startswith(("/", "./", "../", "~")):
            return self._home / Path(spec).expanduser()
        return None
