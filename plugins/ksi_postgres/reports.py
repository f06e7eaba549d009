"""Says in text what the commands of the store report."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ksi_cli import output
from ksi_postgres.sizes import SizeReport
from ksi_postgres.verification import Damage

LARGEST_TABLES: Final = 20
LARGEST_TENANTS: Final = 20


class PluginSchema(Struct, frozen=True, kw_only=True):
    """How far a plugin's schema is; ``pending`` are migrations that this version would apply."""

    plugin: str
    applied: int
    pending: tuple[str, ...] = ()


class StatusReport(Struct, frozen=True, kw_only=True):
    """Where the store is and how it is; ``run_by`` says who runs the Postgres."""

    where: str
    embedded: bool
    run_by: str
    version: str
    up_since: str
    size_bytes: int
    connections: int
    max_connections: int
    schema: tuple[PluginSchema, ...]
    problems: tuple[str, ...] = ()


class MigrateReport(Struct, frozen=True, kw_only=True):
    """Which migrations were applied, by plugin."""

    applied: dict[str, tuple[str, ...]]


class BackupReport(Struct, frozen=True, kw_only=True):
    """A backup that was written."""

    file: str
    bytes: int


class RestoreReport(Struct, frozen=True, kw_only=True):
    """A backup that was restored; ``kept_as`` names the database that was there before."""

    file: str
    database: str
    kept_as: str | None
    migrations_applied: dict[str, tuple[str, ...]]


class VerifyReport(Struct, frozen=True, kw_only=True):
    """What was checked, and what is not as it should be."""

    migrations: int
    tables: int
    indexes: int
    damage: tuple[Damage, ...]
    skipped: str = ""


def status_text(report: StatusReport) -> str:
    """Write how the store is."""
    facts = output.fields(
        (
            ("where", report.where),
            ("run by", report.run_by),
            ("version", f"PostgreSQL {report.version}"),
            ("up since", report.up_since),
            ("size", size_of(report.size_bytes)),
            ("connections", f"{report.connections} of {report.max_connections}"),
        )
    )
    rows = [(s.plugin, s.applied, ", ".join(s.pending) or "-") for s in report.schema]
    problems = [f"! {problem}" for problem in report.problems]
    return "\n".join(
        (facts, "", output.table(("PLUGIN", "MIGRATIONS", "PENDING"), rows), *problems)
    )


def migrate_text(report: MigrateReport) -> str:
    """Write what was applied."""
    return migrations_text(report.applied) or "the schema is that of this version already"


def migrations_text(applied: dict[str, tuple[str, ...]]) -> str:
    """Write one line for each plugin that had migrations."""
    return "\n".join(f"{plugin}: applied {', '.join(names)}" for plugin, names in applied.items())


def backup_text(report: BackupReport) -> str:
    """Write where the backup is."""
    return f"wrote {report.file} ({size_of(report.bytes)})"


def restore_text(report: RestoreReport) -> str:
    """Write what was restored, and where the earlier database is."""
    kept = f"\nthe database before it is kept as {report.kept_as}" if report.kept_as else ""
    applied = migrations_text(report.migrations_applied)
    return f"restored {report.file}{kept}" + (f"\n{applied}" if applied else "")


def verify_text(report: VerifyReport) -> str:
    """Write what was checked and what is wrong."""
    looked_at = f"{report.tables} tables and {report.indexes} indexes"
    counts = f"{report.migrations} migrations, {looked_at} checked"
    found = [f"! {damage.what}: {damage.problem}" for damage in report.damage]
    skipped = [f"not checked: {report.skipped}"] if report.skipped else []
    return "\n".join((counts, *(found or ["nothing is wrong with them"]), *skipped))


def size_text(report: SizeReport) -> str:
    """Write what uses the space, the largest first."""
    plugins = [(size_of(p.total_bytes), str(p.tables), p.plugin) for p in report.plugins]
    plugins.append((size_of(report.other_bytes), "", "(Postgres' own catalogues)"))
    tables = [
        (size_of(t.total_bytes), size_of(t.heap_bytes), size_of(t.index_bytes),
         size_of(t.toast_bytes), "?" if t.rows is None else t.rows, f"{t.plugin}.{t.table}")
        for t in report.tables[:LARGEST_TABLES]
    ]  # fmt: skip
    tenants = [(size_of(t.bytes), t.rows, t.tenant) for t in report.tenants[:LARGEST_TENANTS]]
    parts = [
        f"the database takes {size_of(report.database_bytes)}",
        output.table(("SIZE", "TABLES", "PLUGIN"), plugins),
        output.table(("SIZE", "HEAP", "INDEXES", "TOAST", "ROWS", "TABLE"), tables),
        _rest(len(report.tables), LARGEST_TABLES, "tables"),
        output.table(("ROWS' SIZE", "ROWS", "TENANT"), tenants) if tenants else "",
        _rest(len(report.tenants), LARGEST_TENANTS, "tenants"),
        _sampled(t.table for t in report.tables if t.sampled),
    ]
    return "\n\n".join(part for part in parts if part)


def _rest(count: int, shown: int, what: str) -> str:
    return f"and {count - shown} smaller {what}: --json shows all" if count > shown else ""


def _sampled(tables: Iterable[str]) -> str:
    names = ", ".join(tables)
    return f"the tenants of these were counted in a sample: {names}" if names else ""


def size_of(count: int) -> str:
    """Write a number of bytes as people say it."""
    size, units = float(count), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if size < 1000 or unit == units[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
