"""Tells what uses the space: per plugin, per table, per tenant."""

from typing import Any, Final

from msgspec import Struct

from ksi_postgres.access import ADMIN

# What is read of one table to tell its tenants apart; of a larger one a sample is taken.
SAMPLE_BYTES: Final = 64 * 1024 * 1024
OWNERS: Final = {"dbos": "workflows"}


class TenantSize(Struct, frozen=True, kw_only=True):
    """What a tenant has in one table, or in all; ``bytes`` are those of its rows, as they are."""

    tenant: str
    rows: int
    bytes: int


class TableSize(Struct, frozen=True, kw_only=True):
    """What a table takes on disk, with its partitions.

    ``rows`` is an estimate where it has no tenants, and ``None`` where there is none yet;
    ``sampled`` says that its tenants were counted in a part of it.
    """

    plugin: str
    table: str
    rows: int | None
    heap_bytes: int
    index_bytes: int
    toast_bytes: int
    total_bytes: int
    sampled: bool = False
    tenants: tuple[TenantSize, ...] = ()


class PluginSize(Struct, frozen=True, kw_only=True):
    """What the tables of a plugin take on disk."""

    plugin: str
    tables: int
    total_bytes: int


class SizeReport(Struct, frozen=True, kw_only=True):
    """What uses the space of the database; ``other_bytes`` are Postgres' own catalogues."""

    database_bytes: int
    other_bytes: int
    plugins: tuple[PluginSize, ...]
    tables: tuple[TableSize, ...]
    tenants: tuple[TenantSize, ...]


async def measure(connection: Any) -> SizeReport:
    """Look at every table; the connection sees every tenant's rows."""
    tables = [await _table(connection, row) for row in await connection.fetch(ADMIN["tables"])]
    database = await connection.fetchrow(ADMIN["server"])
    total = sum(table.total_bytes for table in tables)
    return SizeReport(
        database_bytes=database["size_bytes"],
        other_bytes=max(0, database["size_bytes"] - total),
        plugins=_plugins(tables),
        tables=tuple(tables),
        tenants=_tenants(tables),
    )


async def _table(connection: Any, row: Any) -> TableSize:
    sample = min(1.0, SAMPLE_BYTES / max(1, row["heap_bytes"] + row["toast_bytes"]))
    tenants: list[Any] = []
    if row["has_tenants"]:
        query = await connection.fetchval(ADMIN["tenants_query"], row["id"], round(sample * 100, 4))
        tenants = await connection.fetch(query)
    return TableSize(
        plugin=plugin_of(row["schema"]),
        table=row["name"],
        rows=sum(tenant["rows"] for tenant in tenants) if tenants else row["rows"],
        heap_bytes=row["heap_bytes"],
        index_bytes=row["index_bytes"],
        toast_bytes=row["toast_bytes"],
        total_bytes=row["total_bytes"],
        sampled=bool(tenants) and sample < 1,
        tenants=tuple(TenantSize(**dict(tenant)) for tenant in tenants),
    )


def plugin_of(schema: str) -> str:
    """Return whose schema it is."""
    return OWNERS.get(schema, schema.removeprefix("ksi_"))


def _plugins(tables: list[TableSize]) -> tuple[PluginSize, ...]:
    names = {table.plugin for table in tables}
    own = {name: [table for table in tables if table.plugin == name] for name in names}
    sizes = [
        PluginSize(plugin=name, tables=len(its), total_bytes=sum(t.total_bytes for t in its))
        for name, its in own.items()
    ]
    return tuple(sorted(sizes, key=lambda size: (-size.total_bytes, size.plugin)))


def _tenants(tables: list[TableSize]) -> tuple[TenantSize, ...]:
    found: dict[str, tuple[int, int]] = {}
    for table in tables:
        for each in table.tenants:
            rows, size = found.get(each.tenant, (0, 0))
            found[each.tenant] = rows + each.rows, size + each.bytes
    sizes = [TenantSize(tenant=t, rows=rows, bytes=size) for t, (rows, size) in found.items()]
    return tuple(sorted(sizes, key=lambda size: (-size.bytes, size.tenant)))
