"""A plugin that answers for conversations alone, and ways to fill them."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg

from ksi_completion import tokens
from ksi_completion.conversation_handlers import ConversationHandlers
from ksi_completion.conversations import Conversations
from ksi_completion.locks import Locks
from ksi_completion.messages import body_of, encode_parts
from ksi_completion.settings import CompletionSettings
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_models.events import Part, TextPart, ToolCallPart, ToolResultPart
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

Said = tuple[str, Sequence[Part] | str]


class Started:
    """The turns that were to be started."""

    def __init__(self) -> None:
        self.places: list[tuple[str, str]] = []
        self.locks: Locks | None = None

    async def start_next(self, tenant: str, conversation: str) -> None:
        self.places.append((tenant, conversation))


def postgres() -> EntryPoint:
    (found,) = installed_plugins("postgres")
    return found


def conversing(started: Started, settings: CompletionSettings | None = None) -> EntryPoint:
    """Make the plugin."""

    async def lifespan(plugin: Plugin) -> AsyncIterator[None]:
        database = plugin.service(Database)
        store = Conversations(database)
        locks = Locks(store, started.start_next)
        started.locks = locks
        await locks.listen(database)
        plugin.start_task("locks", locks.run_expiry)
        plugin.add(ConversationHandlers(store, locks, plugin.bus, settings or CompletionSettings()))
        yield
        locks.unlisten(database)

    return module_plugin(
        "conversing",
        ksi_plugin=hookimpl(lambda: PluginInfo(requires=("postgres",))),
        ksi_lifespan=hookimpl(lifespan),
    )


def text(words: str) -> tuple[Part, ...]:
    return (TextPart(words),)


def calls(*ids: str) -> tuple[Part, ...]:
    return tuple(ToolCallPart(each, "look", "{}") for each in ids)


def results(*ids: str, content: str = "found") -> tuple[Part, ...]:
    return tuple(ToolResultPart(each, "look", content) for each in ids)


async def say(
    logins: Logins, conversation: str, *said: Said, tenant: str = "default", turn: int | None = None
) -> None:
    """Write messages past everything; each of a user's begins a turn."""
    connection = await asyncpg.connect(logins.admin)
    try:
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO ksi_completion.conversation (tenant, id) VALUES ($1, $2) "
                "ON CONFLICT DO NOTHING",
                tenant,
                conversation,
            )
            last = await connection.fetchrow(
                "SELECT last_message, last_turn FROM ksi_completion.conversation "
                "WHERE tenant = $1 AND id = $2",
                tenant,
                conversation,
            )
            number, current = last
            rows: list[tuple[Any, ...]] = []
            for role, what in said:
                parts = text(what) if isinstance(what, str) else tuple(what)
                number += 1
                current = turn or current + (role == "user")
                rows.append(
                    (
                        tenant,
                        conversation,
                        number,
                        current,
                        role,
                        encode_parts(parts),
                        body_of(parts),
                        tokens.of_parts(parts),
                    )
                )
            await connection.executemany(
                "INSERT INTO ksi_completion.message "
                "(tenant, conversation, number, turn, role, parts, body, tokens) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                rows,
            )
            await connection.execute(
                "UPDATE ksi_completion.conversation SET last_message = $3, last_turn = $4, "
                "messages = messages + $5, updated_at = clock_timestamp() "
                "WHERE tenant = $1 AND id = $2",
                tenant,
                conversation,
                number,
                current,
                len(said),
            )
    finally:
        await connection.close()


async def run_sql(logins: Logins, sql: str, *arguments: Any) -> list[Any]:
    """Run a statement past the walls."""
    connection = await asyncpg.connect(logins.admin)
    try:
        return list(await connection.fetch(sql, *arguments))
    finally:
        await connection.close()


async def open_turn(
    logins: Logins, conversation: str, number: int, status: str = "running", tenant: str = "default"
) -> None:
    """Have a turn in a conversation, in some state."""
    await run_sql(
        logins,
        "INSERT INTO ksi_completion.turn (tenant, conversation, number, run, request_id, status, "
        "digest, options, context) VALUES ($1, $2, $3, $4, $4, $5, '', '{}', '{}')",
        tenant,
        conversation,
        number,
        f"run-{tenant}-{conversation}-{number}",
        status,
    )


async def end_turn(logins: Logins, conversation: str, number: int) -> None:
    """Have a turn end."""
    await run_sql(
        logins,
        "UPDATE ksi_completion.turn SET status = 'succeeded' "
        "WHERE conversation = $1 AND number = $2",
        conversation,
        number,
    )
