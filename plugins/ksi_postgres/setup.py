"""Makes a database ready: checks it, makes roles, extensions and schemas, ties the reader."""

import base64
import hashlib
import hmac
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
from msgspec import Struct

from ksi_daemon.protocol import Denied, InvalidData
from ksi_postgres.errors import told_of
from ksi_postgres.migrations import SQL

log = logging.getLogger(__name__)

MIN_VERSION: Final = 160000
ATTEMPTS: Final = 5
# Many would slow the guessing of a password that a person chose. Ours are of 192 random bits, and
# each connection would pay some milliseconds.
SCRAM_ITERATIONS: Final = 1


class Standing(Struct, frozen=True, kw_only=True):
    """What a login may do in the database, once that is ready.

    Attributes:
        role: What the daemon's own queries have to become first; ``None`` if they need not.
        reader_problem: Why queries of people and agents are off; ``None`` where they may run.
        version: Of Postgres, as people write it.
    """

    role: str | None
    reader_problem: str | None
    version: str


async def prepare(connection: asyncpg.Connection) -> Standing:
    """Make what is missing, as far as this login may; a second call changes nothing.

    Raises:
        InvalidData: Postgres is too old, or lacks an extension.
        Denied: The login lacks a right; the message has the command that mends it.
    """
    survey = await connection.fetchrow(SQL["survey"])
    assert survey is not None
    if survey["version"] < MIN_VERSION:
        raise InvalidData(f"Postgres 16 or later is needed; this is {survey['version_text']}")
    await _make_roles(connection, survey)
    await _make_extensions(connection, survey)
    roles = await connection.fetchrow(SQL["survey_roles"])
    assert roles is not None
    _refuse_strong_roles(roles)
    if not (roles["may_own"] and roles["owner_sees_readers"]) or not (
        roles["acts_as_app"] or survey["is_superuser"]
    ):
        await _try(connection, "join_roles", _mending(survey["login"]))
    database, login = _quoted(survey["database"]), _quoted(survey["login"])
    mending = f"GRANT ALL ON DATABASE {database} TO {login} WITH GRANT OPTION;"
    if not roles["database_is_open"]:
        await _try(connection, "open_database", mending)
    if survey["missing_schemas"] or not survey["has_migrations"]:
        await _try(connection, "create_schemas", mending)
    problem = None if roles["reader_is_tied"] else await _tie_reader(connection, survey)
    needs_role = survey["sees_all"] or roles["acts_as_owner"]
    return Standing(
        role="ksi_app" if needs_role else None,
        reader_problem=problem,
        version=survey["version_text"],
    )


async def _make_roles(
    connection: asyncpg.Connection, survey: Mapping[str, Any] | asyncpg.Record
) -> None:
    if not survey["missing_roles"]:
        return
    if not survey["may_create_roles"]:
        names = ", ".join(survey["missing_roles"])
        commands = " ".join(f"CREATE ROLE {name};" for name in survey["missing_roles"])
        raise Denied(
            f"the login {survey['login']} may not make the roles {names}; "
            f"as a superuser: {commands} {_mending(survey['login'])}"
        )
    await connection.execute(SQL["create_roles"])


async def _make_extensions(
    connection: asyncpg.Connection, survey: Mapping[str, Any] | asyncpg.Record
) -> None:
    if survey["absent_extensions"]:
        names = ", ".join(survey["absent_extensions"])
        raise InvalidData(
            f"this Postgres lacks the extensions {names}: install pgvector and the contrib modules "
            "on its server (on Debian: postgresql-NN-pgvector, postgresql-contrib)"
        )
    if survey["missing_extensions"]:
        commands = " ".join(f"CREATE EXTENSION {name};" for name in survey["missing_extensions"])
        await _try(connection, "create_extensions", commands)


def _refuse_strong_roles(roles: Mapping[str, Any] | asyncpg.Record) -> None:
    """Refuse roles that somebody made with rights that go through the walls."""
    commands = [
        f"ALTER ROLE {role} NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION;"
        for role in roles["strong_roles"]
    ]
    commands += [f"REVOKE {membership};" for membership in roles["memberships"]]
    if commands:
        raise Denied(
            "the roles of the daemon may do more than they should; as a superuser: "
            + " ".join(commands)
        )


async def _tie_reader(
    connection: asyncpg.Connection, survey: Mapping[str, Any] | asyncpg.Record
) -> str | None:
    """Revoke from everybody what the reader must not do; return why that was not possible."""
    if not survey["is_superuser"]:
        return (
            "the login may not revoke functions with effects from PUBLIC: "
            "run `ksi db migrate` once with a superuser's KSI_DATABASE_URL"
        )
    await _try(connection, "tie_reader", "run `ksi db migrate` as a superuser")
    await _try(connection, "bound_reader", "run `ksi db migrate` as a superuser")
    return None


async def _try(connection: asyncpg.Connection, query: str, mending: str) -> None:
    """Run one of our scripts; another database of the cluster may do so at the same moment."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with connection.transaction():
                await connection.execute(SQL["lock_migrations"])
                await connection.execute(SQL[query])
        except asyncpg.InsufficientPrivilegeError as error:
            message = f"the database can't be made ready: {told_of(error)}; as a superuser: "
            raise Denied(message + mending) from error
        except (asyncpg.InternalServerError, asyncpg.UniqueViolationError) as error:
            # "tuple concurrently updated": roles are of the cluster, the lock is of the database
            if attempt == ATTEMPTS:
                raise
            log.info("trying again", extra={"step": query, "error": told_of(error)})
        else:
            return


def _mending(login: str) -> str:
    name = _quoted(login)
    return (
        f"GRANT ksi_owner TO {name} WITH INHERIT FALSE, SET TRUE; GRANT ksi_app TO {name}; "
        "GRANT ksi_reader TO ksi_owner;"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# -- passwords -----------------------------------------------------------------------------------


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return what Postgres keeps of a password (RFC 5802), so that it needs not be sent.

    Args:
        password: In ASCII, so that it is its own SASLprep.
        salt: 16 random bytes unless given.
    """
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, SCRAM_ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = base64.b64encode(hashlib.sha256(client).digest()).decode()
    server = base64.b64encode(hmac.digest(salted, b"Server Key", "sha256")).decode()
    salted_with = base64.b64encode(salt).decode()
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salted_with}${stored}:{server}"


async def set_passwords(connection: asyncpg.Connection, passwords: Mapping[str, str]) -> None:
    """Let roles log in with these passwords, which don't cross the connection."""
    async with connection.transaction():
        for role, password in passwords.items():
            await connection.execute(
                "SELECT set_config('ksi.role', $1, true), set_config('ksi.verifier', $2, true)",
                role,
                scram_verifier(password),
            )
            await connection.execute(SQL["set_password"])
