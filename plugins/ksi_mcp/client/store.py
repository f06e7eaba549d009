"""Keeps servers that were added, and what is known of servers' tools, in Postgres."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from ksi_mcp.client.tools.definitions import Definition, KnownTool
from ksi_mcp.events import McpServer
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
Key: TypeAlias = tuple[str, str]  # a tenant, and a server's name
Known: TypeAlias = dict[str, KnownTool]


class Store:
    """The servers of all tenants.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def servers(self) -> dict[Key, McpServer]:
        """Return those that were added, whosever."""
        rows = await self._database.fetch(SQL["servers"])
        return {(row["tenant"], row["name"]): _server(row["given"]) for row in rows}

    async def server(self, key: Key) -> McpServer | None:
        """Return one that was added."""
        given = await self._database.fetchval(SQL["server"], *key)
        return None if given is None else _server(given)

    async def known(self) -> Mapping[Key, Known]:
        """Return what is known of the tools of all servers."""
        found: defaultdict[Key, Known] = defaultdict(dict)
        for row in await self._database.fetch(SQL["known"]):
            found[row["tenant"], row["server"]][row["name"]] = _tool(row)
        return found

    async def known_of(self, key: Key) -> Known:
        """Return what is known of a server's tools."""
        rows = await self._database.fetch(SQL["known_of"], *key)
        return {row["name"]: _tool(row) for row in rows}

    async def add(self, key: Key, server: McpServer, max_servers: int) -> str:
        """Enter a server; returns ``ok``, ``taken`` or ``too_many``."""
        verdict: str = await self._database.fetchval(SQL["add"], *key, _given(server), max_servers)
        return verdict

    async def remove(self, key: Key) -> bool:
        """Take a server back; says whether there was such a one."""
        return bool(await self._database.fetchval(SQL["remove"], *key))

    async def keep(self, key: Key, tools: Iterable[KnownTool], server: McpServer | None) -> None:
        """Keep what is known of a server's tools.

        Args:
            key: Whose it is, and its name.
            tools: They.
            server: What was added under that name: another that has it now is none of theirs.
        """
        rows = list(tools)
        given = None if server is None else _given(server)
        await self._database.execute(
            SQL["keep"],
            *key,
            given,
            [each.name for each in rows],
            [_text(each.accepted) for each in rows],
            [_text(each.pending) for each in rows],
            [each.is_there for each in rows],
        )


def _given(server: McpServer) -> str:
    return msgspec.json.encode(server).decode()


def _server(text: str) -> McpServer:
    return msgspec.json.decode(text, type=McpServer)


def _tool(row: Any) -> KnownTool:
    return KnownTool(
        name=row["name"],
        accepted=_definition(row["accepted"]),
        pending=_definition(row["pending"]),
        is_there=row["is_there"],
    )


def _definition(text: str | None) -> Definition | None:
    return None if text is None else msgspec.json.decode(text, type=Definition)


def _text(definition: Definition | None) -> str | None:
    return None if definition is None else msgspec.json.encode(definition).decode()
