"""Checks a database for damage: every table, every index, and the walls between tenants."""

from collections.abc import Callable
from typing import Any, Final

import asyncpg
from msgspec import Struct

from ksi_postgres.access import ADMIN
from ksi_postgres.errors import told_of
from ksi_postgres.queries import load_queries

QUERIES: Final = load_queries("ksi_postgres")
CHECKS: Final = {"btree": ADMIN["check_btree"], "gin": ADMIN["check_gin"]}


class Damage(Struct, frozen=True, kw_only=True):
    """Something that is not as it should be; ``what`` is a table, an index or a migration."""

    what: str
    problem: str


class Checked(Struct, frozen=True, kw_only=True):
    """What was looked at, and what is wrong with it."""

    tables: int
    indexes: int
    damage: tuple[Damage, ...]
    skipped: str = ""


async def check_files(connection: Any, tell: Callable[[str], None]) -> Checked:
    """Read every page of every table and index, Postgres' own included.

    The functions that do it are lent by an extension, in a transaction that is rolled back.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(ADMIN["install_amcheck"])
        await connection.execute(ADMIN["find_amcheck"])
        return await _check(connection, tell)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFileError) as error:
        skipped = f"tables and indexes need a superuser and the extension amcheck: {told_of(error)}"
        return Checked(tables=0, indexes=0, damage=(), skipped=skipped)
    finally:
        await transaction.rollback()


async def _check(connection: Any, tell: Callable[[str], None]) -> Checked:
    damage: list[Damage] = []
    heaps = await connection.fetch(ADMIN["heaps"])
    tell(f"checking {len(heaps)} tables")
    for heap in heaps:
        damage += await _check_one(connection, ADMIN["check_heap"], heap)
    indexes = await connection.fetch(ADMIN["indexes"])
    tell(f"checking {len(indexes)} indexes")
    for index in indexes:
        damage += await _check_one(connection, CHECKS[index["kind"]], index)
    return Checked(tables=len(heaps), indexes=len(indexes), damage=tuple(damage))


async def _check_one(connection: Any, query: str, checked: Any) -> list[Damage]:
    try:
        async with connection.transaction():  # a savepoint: what is damaged is an error
            found = await connection.fetch(query, checked["id"])
    except asyncpg.UndefinedTableError:
        return []  # it was dropped or made anew since it was listed
    except asyncpg.PostgresError as error:
        if not await connection.fetchval(ADMIN["is_there"], checked["id"]):
            return []
        return [Damage(what=checked["name"], problem=told_of(error))]
    problems = [row["problem"] for row in found if "problem" in row]  # an index' answer is empty
    return [Damage(what=checked["name"], problem=problem) for problem in problems]


async def check_walls(connection: Any) -> list[Damage]:
    """List what in the plugins' schemas stands outside of the walls between tenants."""
    damage = []
    for row in await connection.fetch(ADMIN["plugins"]):
        breaches = await connection.fetch(QUERIES["breaches"], row["plugin"])
        damage += [Damage(what=f"ksi_{row['plugin']}", problem=b["problem"]) for b in breaches]
    return damage
