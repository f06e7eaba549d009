"""Knows what agents are: the definitions of each tenant, from memory where they were asked for."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec

from ksi_agents.applying import Applying, Outcome
from ksi_agents.definition import Definition
from ksi_agents.definition_checks import Checks
from ksi_agents.definition_store import DefinitionStore
from ksi_agents.documents import read_document
from ksi_agents.events import AgentApplied, Document, Problem
from ksi_agents.fields import faults_of
from ksi_agents.inheritance import extended
from ksi_agents.settings import AgentsSettings
from ksi_agents.standing import VERSION, Standing
from ksi_daemon.bus import Bus
from ksi_daemon.protocol import InvalidData, NotFound
from ksi_daemon.protocol.names import did_you_mean, nearest
from ksi_postgres.database import Database
from ksi_postgres.news import News

__all__ = ["Definitions", "Found", "told"]

WORD: Final = "definitions"
MAX_NAMED: Final = 1000
MAX_REMEMBERED: Final = 20_000
MAX_REMEMBERED_CHARACTERS: Final = 64 * 1024 * 1024


class Found(NamedTuple):
    """A definition with what it extends, and its version."""

    definition: Definition
    version: int


class Definitions:
    """The definitions: those that tenants apply, and before them those that stand always.

    Args:
        database: Keeps them.
        news: Tells other daemons when some have changed.
        settings: Bounds, and the profiles.
        bus: Asks for models and tools.

    Attributes:
        standing: Those that every tenant has.
        store: Those that were applied.
    """

    def __init__(self, database: Database, news: News, settings: AgentsSettings, bus: Bus) -> None:
        self.standing = Standing()
        self.store = DefinitionStore(database)
        self._checks = Checks(bus, settings)
        self._applying = Applying(self.store, self.standing, settings)
        self._news = news
        self._remembered: dict[str, dict[tuple[str, int | None], Found | None]] = {}
        self._all: dict[str, tuple[Definition, ...]] = {}
        self._count = self._characters = self._changes = 0
        news.on(WORD, self._forget)
        news.on_missed(self._forget_all)

    # -- found ----------------------------------------------------------------------------------

    async def find(self, tenant: str, name: str, version: int | None = None) -> Found | None:
        """Return a definition with what it extends: a version of it, or the newest.

        ``None`` where nobody defined that name, or the version isn't kept. A definition that was
        removed is still found by its version. From memory it takes microseconds.
        """
        known = self._remembered.get(tenant)
        if known is not None and (name, version) in known:
            return known[name, version]
        before = self._changes
        row = await self.store.find(tenant, name, version)
        found: Found | None
        if row is not None:
            found = Found(msgspec.json.decode(row[1], type=Definition), row[0])
        else:
            standing = self.standing.find(name, version)
            found = None if standing is None else Found(standing.definition, VERSION)
        if before == self._changes:  # what was read is not older than what was told of meanwhile
            self._remember(tenant, (name, version), found, 0 if row is None else len(row[1]))
        return found

    def _remember(
        self, tenant: str, key: tuple[str, int | None], found: Found | None, characters: int
    ) -> None:
        self._count += 1
        self._characters += characters
        if self._count > MAX_REMEMBERED or self._characters > MAX_REMEMBERED_CHARACTERS:
            self._remembered.clear()
            self._count, self._characters = 1, characters
        self._remembered.setdefault(tenant, {})[key] = found

    def _forget(self, tenant: str) -> None:
        self._changes += 1
        self._all.pop(tenant, None)
        self._count -= len(self._remembered.pop(tenant, ()))

    def _forget_all(self) -> None:
        self._changes += 1
        self._all.clear()
        self._remembered.clear()
        self._count = self._characters = 0

    async def all(self, tenant: str) -> tuple[Definition, ...]:
        """Return the newest definitions by name, without their prompts and schemas.

        They are at most a thousand: those that stand always, and the first of the others.
        """
        known = self._all.get(tenant)
        if known is not None:
            return known
        before = self._changes
        page = await self.store.page(tenant, "%", "", MAX_NAMED)
        applied = {kept.name: msgspec.convert(kept.resolved, Definition) for kept, _ in page}
        standing = {each.definition.name: each.definition for each in self.standing.all()}
        found = sorted({**standing, **applied}.values(), key=lambda each: each.name)
        shown = tuple(
            msgspec.structs.replace(each, prompt="", input=None, output=None)
            for each in found[:MAX_NAMED]
        )
        if before == self._changes:
            self._all[tenant] = shown
        return shown

    # -- offered --------------------------------------------------------------------------------

    @contextmanager
    def offered(self, *definitions: Definition, provider: str) -> Iterator[None]:
        """Have more definitions that every tenant has, for as long as a block.

        Raises:
            InvalidData: One is not sound.
            Conflict: There is one of its name.
        """
        try:
            with self.standing.offered(*definitions, provider=provider):
                self._forget_all()
                yield
        finally:
            self._forget_all()

    # -- changed --------------------------------------------------------------------------------

    async def read(self, tenant: str, document: Document) -> Definition:
        """Return the definition of a document, with what it extends; it is not kept.

        Raises:
            InvalidData: There is not one, or it is not sound; the message says what, and where.
        """
        found, problems = await asyncio.to_thread(read_document, document)
        problems += await self._checks.problems(found, with_warnings=False)
        for problem in problems:
            raise InvalidData(told(problem), details={"path": problem.field})
        if len(found) != 1:
            raise InvalidData(f"{document.path} holds {len(found)} definitions and not one")
        (parsed,) = found
        base = parsed.given.get("extends")
        if base is None:
            return msgspec.convert(parsed.given, Definition)
        under = await self._resolved(tenant, base)
        if under is None:
            problem = parsed.problem(f"there is no definition {base!r}", "extends")
            raise InvalidData(told(problem), details={"path": problem.field})
        resolved = extended(parsed.given, under)
        for fault in faults_of(resolved):
            problem = parsed.problem(f"with what it extends: {fault.message}", *fault.path)
            raise InvalidData(told(problem), details={"path": problem.field})
        return msgspec.convert(resolved, Definition)

    async def _resolved(self, tenant: str, name: str) -> dict[str, Any] | None:
        row = await self.store.find(tenant, name, None)
        if row is not None:
            return msgspec.json.decode(row[1], type=dict[str, Any])
        standing = self.standing.find(name)
        return None if standing is None else standing.resolved

    async def apply(
        self,
        tenant: str,
        documents: tuple[Document, ...],
        set_name: str,
        by: str,
        *,
        prune: bool = False,
        dry_run: bool = False,
    ) -> AgentApplied:
        """Keep definitions: all of them, or where one is wrong, none."""
        outcome = await self._apply(tenant, documents, set_name, by, prune=prune, dry_run=dry_run)
        return AgentApplied(applied=outcome.applied, problems=outcome.problems)

    async def validate(
        self, tenant: str, documents: tuple[Document, ...]
    ) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
        """Return what is wrong with documents, and which agents they define."""
        outcome = await self._apply(tenant, documents, "", "", dry_run=True)
        return outcome.problems, tuple(each.name for each in outcome.parsed)

    async def _apply(
        self,
        tenant: str,
        documents: tuple[Document, ...],
        set_name: str,
        by: str,
        *,
        prune: bool = False,
        dry_run: bool = False,
    ) -> Outcome:
        read = await asyncio.to_thread(lambda: [read_document(each) for each in documents])
        parsed = [each for some, _ in read for each in some]
        problems = [each for _, some in read for each in some]
        problems += await self._checks.problems(parsed)
        outcome = await self._applying.apply(
            tenant, parsed, problems, set_name, by, prune=prune, dry_run=dry_run
        )
        if outcome.is_kept:
            self._changed(tenant)
        return outcome

    async def roll_back(self, tenant: str, name: str, version: int | None, by: str) -> AgentApplied:
        """Make an earlier version the newest; without one the version before.

        Raises:
            NotFound: There is none.
        """
        document = await self._earlier(tenant, name, version)
        return await self.apply(tenant, (document,), await self.store.set_of(tenant, name), by)

    async def _earlier(self, tenant: str, name: str, version: int | None) -> Document:
        if version is None:
            kept = await self.store.history(tenant, name, 2)
            earlier = [each.version for each in kept if not each.is_current]
            version = earlier[0] if earlier else VERSION
        found = await self.store.version(tenant, name, version)
        if found is not None:
            return Document(text=found.text, path=f"{name}@{version}", format=found.format)
        standing = self.standing.find(name, version)
        if standing is None:
            raise await self.not_found(tenant, name, version)
        parsed = standing.parsed
        return Document(text=parsed.text, path=f"{name}@{version}", format=parsed.format)

    async def not_found(self, tenant: str, name: str, version: int | None) -> NotFound:
        """Return the error for a definition, or a version of it, that there is none of."""
        if version is not None and await self.find(tenant, name) is not None:
            message = f"no version {version} of {name!r} is kept; see agent:history"
            return NotFound(f"{message} (ksi agent history {name})", details={"kind": "version"})
        page = await self.store.page(tenant, "%", "", MAX_NAMED)
        known = [*(kept.name for kept, _ in page), *self.standing]
        return NotFound(
            f"there is no definition {name!r}{did_you_mean(name, known)}",
            details={"kind": "definition", "nearest": nearest(name, known)},
        )

    async def remove(self, tenant: str, names: tuple[str, ...], by: str) -> tuple[str, ...]:
        """Remove applied definitions, and return which there were.

        Raises:
            InvalidData: One stands always.
            Conflict: Another extends one of them.
        """
        removed = await self._applying.remove(tenant, names, by)
        self._changed(tenant)
        return removed

    def _changed(self, tenant: str) -> None:
        """Have every daemon forget what it remembers of a tenant."""
        self._forget(tenant)
        self._news.tell(WORD, tenant)


def told(problem: Problem) -> str:
    """Write a problem as one line: file, line, field, what is wrong."""
    where = problem.path if problem.line is None else f"{problem.path}:{problem.line}"
    field = f"{problem.field}: " if problem.field else ""
    return f"{where}: {field}{problem.message}"
