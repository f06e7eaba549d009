"""Says as whom the daemon connects to Postgres, and for what."""

from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from msgspec import Struct

from ksi_daemon.protocol import InvalidData

DATABASE: Final = "ksi"
OWNER: Final = "ksi_owner"
APP: Final = "ksi_app"
READER: Final = "ksi_reader"
SECRETS: Final = frozenset({"password", "sslpassword"})


class Logins(Struct, frozen=True, kw_only=True):
    """URLs that contain passwords; never log one.

    Attributes:
        app: For the daemon's own queries; may lead to a pooler.
        direct: The same, but never to a pooler: a session of this login is its own.
        admin: For migrations: may become ``ksi_owner``. Never a pooler.
        reader: For the queries of people and agents; ``None`` where there is no such login.
    """

    app: str
    direct: str
    admin: str
    reader: str | None = None

    def __repr__(self) -> str:
        return "Logins(…)"


def socket_url(
    user: str, password: str, *, host: str, port: int = 5432, database: str = DATABASE
) -> str:
    """Make the URL of a server that listens on a Unix socket in the directory ``host``."""
    place = urlencode({"host": host, "port": port})
    return f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@/{database}?{place}"


def check_url(url: str, setting: str) -> str:
    """Return the URL of a setting.

    Raises:
        InvalidData: It is no URL of Postgres.
    """
    wanted = "postgresql://user:password@host:port/database"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  reading it is what checks it
    except ValueError:
        # What urllib says of it has a part of the password in it.
        raise InvalidData(
            f"{setting} is no URL of the form {wanted}; in a password, write / as %2F, # as %23, "
            "? as %3F, @ as %40 and % as %25"
        ) from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise InvalidData(f"{setting} must have the form {wanted}")
    if any(name in SECRETS for name, _ in parse_qsl(parts.query)):
        raise InvalidData(f"{setting}: the password stands before the @, not behind the ?")
    return url


def with_database(url: str, database: str) -> str:
    """Return the URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(database, safe='')}"))


def split_password(url: str) -> tuple[str, str]:
    """Return the URL without its password, and the password: for programs that take it apart."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    rest = [each for each in parts.query.split("&") if each.partition("=")[0] not in SECRETS]
    bare = parts._replace(netloc=f"{name}@{host}" if user else host, query="&".join(rest))
    return urlunsplit(bare), unquote(password)


def shown(url: str) -> str:
    """Return the URL as it may be shown."""
    return split_password(url)[0]
