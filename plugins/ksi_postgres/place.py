"""Where the embedded Postgres has its files, whose they are, and who can reach them."""

import contextlib
import fcntl
import hashlib
import logging
import os
import pwd
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from ksi_daemon.protocol import Conflict, Denied, InvalidData
from ksi_daemon.protocol.paths import MAX_SOCKET_PATH_BYTES, SHORT_ROOT
from ksi_postgres.binaries import Binaries

log = logging.getLogger(__name__)

SUPERUSER: Final = "postgres"
ROLES: Final = (SUPERUSER, "ksi_app", "ksi_reader")
PORT: Final = 5432
SOCKET_NAME: Final = f".s.PGSQL.{PORT}"
# Where a server goes whose user can't reach the home: root's own is 0700 on most systems.
ELSEWHERE: Final = Path("/var/lib/ksi")
LINK: Final = "elsewhere"
ORIGIN: Final = "belongs-to"
# Postgres refuses to run as root. `postgres` is there where one is packaged and owns nothing but
# databases; `nobody` is there everywhere, but other services may run as it.
USUAL_USERS: Final = ("postgres", "nobody")


class User(msgspec.Struct, frozen=True):
    """Whom Postgres runs as."""

    uid: int
    gid: int


class Place:
    """The folders of one embedded server.

    As root, the folders themselves are root's and only what Postgres must write belongs to its
    user: nothing that root writes lies where that user could have put a link.

    Args:
        folder: Where it should be.
        run_as: The user of the server, where the daemon is root; the usual ones unless given.
        elsewhere: Where it is put if that user can't reach ``folder``.

    Raises:
        InvalidData: It can't be there; the message says what to do.
    """

    def __init__(self, folder: Path, run_as: str = "", elsewhere: Path = ELSEWHERE) -> None:
        self.asked = folder
        self.user = server_user(run_as)
        self.root = _resolve(folder, self.user, elsewhere)
        self.data = self.root / "data"
        self.config = self.root / "conf"
        self.log = self.root / "log"
        self.lock_file = self.root / "lock"
        self.passwords_file = self.root / "passwords.json"
        self.socket_folder = self._socket_folder()

    @property
    def foreign(self) -> bool:
        """Whether the server runs as another user than this process."""
        return self.user.uid != os.getuid()

    @property
    def socket(self) -> Path:
        """The socket that the server listens on."""
        return self.socket_folder / SOCKET_NAME

    def prepare(self) -> None:
        """Make the folders, or mend their modes.

        Raises:
            InvalidData: They can't be made.
        """
        try:
            passed_through = 0o711 if self.foreign else 0o700
            for parent in reversed(self.root.parents):
                if not parent.exists():
                    self._make(parent, passed_through)
            self._make(self.root, passed_through)
            if self.root != self.asked:
                self._link()
            self._make(self.log, 0o700)
            self._make(self.config, 0o750 if self.foreign else 0o700, gid=self.user.gid)
            self._make_socket_folder()
        except OSError as error:
            raise InvalidData(
                f"the embedded Postgres can't have its files here: {error}"
            ) from error

    def lock(self) -> int:
        """Make this process the one that runs this server; returns the handle, which holds it.

        Raises:
            Conflict: Another process does.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(self.lock_file, flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise Conflict(
                f"process {pid} runs a Postgres on {self.data}; one at a time: end it (if it is a "
                "daemon: ksi stop, with its KSI_HOME), or give this one another KSI_HOME"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        return handle

    def passwords(self) -> dict[str, str]:
        """Return the roles' passwords; empty if there are none yet.

        Raises:
            InvalidData: The file holds something else.
            Denied: It can't be read.
        """
        return read_passwords(self.passwords_file)

    def make_passwords(self, kept: Mapping[str, str]) -> dict[str, str]:
        """Return the passwords that are kept, and new ones for the roles that have none."""
        return {role: secrets.token_urlsafe(24) for role in ROLES} | dict(kept)

    def keep_passwords(self, passwords: Mapping[str, str]) -> None:
        """Write the passwords where the daemon's user alone can read them."""
        write_atomically(self.passwords_file, msgspec.json.encode(passwords), mode=0o600)

    def write_config(self, name: str, text: str) -> Path:
        """Write a file that the server reads and can't change."""
        file = self.config / name
        mode = 0o640 if self.foreign else 0o600
        write_atomically(file, text.encode(), mode=mode, gid=self.user.gid)
        return file

    def give(self, path: Path) -> None:
        """Let a folder or file, just made, belong to the server's user."""
        if self.foreign:
            os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)

    def reachable(self, binaries: Binaries) -> Binaries:
        """Return programs that the server's user can run: these, or a copy of them.

        Raises:
            InvalidData: They can't be copied.
        """
        blocked = first_blocked(binaries.folder / "postgres", self.user)
        if not self.foreign or blocked is None:
            return binaries
        copies = self.root / "binaries"
        made = Binaries(copies / binaries.version, binaries.version)
        if not made.root.exists():
            text = "its user can't reach the programs of Postgres: they are copied"
            log.info(text, extra={"blocked": str(blocked), "to": str(made.root)})
            try:
                self._make(copies, 0o711)
                _copy(binaries, made.root)
            except OSError as error:
                raise InvalidData(f"Postgres can't be copied to {copies}: {error}") from error
        _remove_others(copies, made.root)
        return made

    def _make(self, folder: Path, mode: int, gid: int | None = None) -> None:
        folder.mkdir(mode=mode, exist_ok=True)
        owner = folder.lstat().st_uid
        if owner != os.getuid():
            raise InvalidData(f"{folder} belongs to user {owner}, not to {os.getuid()}")
        if gid is not None and self.foreign:
            os.chown(folder, -1, gid)
        folder.chmod(mode)

    def _link(self) -> None:
        link = self.asked / LINK
        self.asked.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not link.is_symlink():
            # For whoever finds it there, and wonders whether anybody still needs it.
            origin = os.fsencode(self.asked) + b"\n"
            write_atomically(self.root / ORIGIN, origin, mode=0o600)
            link.symlink_to(self.root)
            text = "its user can't reach the folder for Postgres: it is put elsewhere"
            log.warning(text, extra={"folder": str(self.asked), "put": str(self.root)})

    def _socket_folder(self) -> Path:
        usual = self.root / "socket"
        if len(os.fsencode(usual / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES:
            return usual
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(SHORT_ROOT) / f"ksi-pg-{os.getuid()}-{digest}"

    def _make_socket_folder(self) -> None:
        """Make the folder, in which nobody else can have put anything."""
        with contextlib.suppress(FileExistsError):
            self.socket_folder.mkdir(mode=0o700)
            self.give(self.socket_folder)
        found = self.socket_folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {self.user.uid, os.getuid()}:
            raise InvalidData(f"{self.socket_folder} is somebody else's; remove it")
        self.socket_folder.chmod(0o700)
        self.give(self.socket_folder)


def server_user(run_as: str) -> User:
    """Say whom the server runs as.

    Raises:
        InvalidData: There is no such user, or it is root.
    """
    if os.getuid() != 0:
        return User(os.getuid(), os.getgid())
    for name in (run_as,) if run_as else USUAL_USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
            if entry.pw_uid == 0:
                raise InvalidData("postgres.run_as: Postgres refuses to run as root")
            return User(entry.pw_uid, entry.pw_gid)
    raise InvalidData(
        f"postgres.run_as: there is no user {run_as or ' or '.join(USUAL_USERS)!r}; Postgres "
        "refuses to run as root, so name one that has nothing else to do"
    )


def first_blocked(path: Path, user: User) -> Path | None:
    """Return the first folder above a path that a user can't pass through, or ``None``."""
    for parent in reversed(path.absolute().parents):
        with contextlib.suppress(FileNotFoundError):  # it will be made, and then be ours
            found = parent.stat()
            shift = 6 if found.st_uid == user.uid else 3 if found.st_gid == user.gid else 0
            if not found.st_mode >> shift & 1:
                return parent
    return None


def _resolve(folder: Path, user: User, elsewhere: Path) -> Path:
    """Return the folder that the server is in, or shall be in."""
    folder = folder.absolute()
    link = folder / LINK
    if link.is_symlink():
        target = link.readlink()
        if not target.is_dir():
            raise InvalidData(
                f"the database was in {target}, and that is gone; bring it back, or remove {link} "
                "to begin with an empty one"
            )
        return target
    # The folder itself will be ours to open; what is above it may be somebody else's.
    blocked = first_blocked(folder, user) if user.uid != os.getuid() else None
    if blocked is None:
        return folder
    if (folder / "data").exists():
        raise InvalidData(
            f"user {user.uid}, whom Postgres runs as, can't reach its data any more: {blocked} is "
            f"closed; open it for passing through: chmod o+x {blocked}"
        )
    if closed := first_blocked(elsewhere / "x", user):
        raise InvalidData(
            f"user {user.uid}, whom Postgres runs as, can reach neither {folder} ({blocked} is "
            f"closed) nor {elsewhere} ({closed} is); set postgres.data_folder to where it can"
        )
    # Never the folder of an earlier home at the same path: that one's database is not this one's.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return elsewhere / f"{digest}-{secrets.token_hex(4)}"


def read_passwords(file: Path) -> dict[str, str]:
    """Read the roles' passwords; empty if there are none yet.

    Raises:
        InvalidData: The file holds something else.
        Denied: It can't be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Denied(f"the passwords of the embedded Postgres can't be read: {error}") from error
    except msgspec.DecodeError:
        # Without its cause, which might quote from the file.
        raise InvalidData(f"{file} holds no passwords; restore it from a copy") from None


def write_atomically(file: Path, content: bytes, *, mode: int, gid: int | None = None) -> None:
    """Write a file that is there whole or not at all, also after the power went."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(handle, "wb") as stream:  # noqa: PTH123  a handle
            if gid is not None and os.getuid() == 0:
                os.fchown(handle, -1, gid)
            os.fchmod(handle, mode)
            stream.write(content)
            stream.flush()
            os.fsync(handle)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(binaries: Binaries, to: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=to.parent) as name:
        made = Path(name) / "root"
        for needed in binaries.needed():
            shutil.copytree(binaries.root / needed, made / needed, symlinks=True)
        for folder, _, files in os.walk(made):
            Path(folder).chmod(0o755)
            for file in files:
                path = Path(folder, file)
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        os.sync()  # it is known by its name alone from now on
        made.replace(to)


def _remove_others(copies: Path, kept: Path) -> None:
    """Remove the programs of earlier versions, and what a copy cut short has left."""
    for folder in copies.iterdir():
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
