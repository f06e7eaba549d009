"""Keeps conversations: what is asked of Postgres, one round trip each."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
from msgspec import Struct

from ksi_completion.events import Conversation, FoundMessage, NumberedMessage
from ksi_completion.messages import decode_parts
from ksi_daemon.event_system import current_context
from ksi_daemon.protocol import Conflict, Context, InvalidData, NotFound
from ksi_models.events import Role
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__, "conversation_queries.sql")
BEGUN: Final = re.compile(r"(\w+)\*")
LAST_NUMBER: Final = 2**63 - 1  # that Postgres knows
RANKED: Final = 1000  # of what a search finds; see search_messages


class Viewer(Struct, frozen=True):
    """Whose event it is, which bounds what it sees.

    A user has to do with his own conversations, what happens in a conversation with that one, and
    an agent that is in none with those that it leads. All others are not there for them.
    """

    tenant: str
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None

    @classmethod
    def of(cls, context: Context | None) -> "Viewer":
        """Return who sent an event."""
        if context is None:
            return cls("default")
        return cls(context.tenant, context.user, context.agent, context.conversation)

    @classmethod
    def current(cls) -> "Viewer":
        """Return who sent the event that is being handled."""
        return cls.of(current_context())

    @property
    def bounds(self) -> tuple[str, str | None, str | None, str | None]:
        """What every query begins with."""
        return self.tenant, self.user, self.agent, self.conversation


class Found(Struct, frozen=True, kw_only=True):
    """A conversation as its row has it."""

    id: str
    title: str
    model: str | None
    agent: str | None
    owner: str | None
    system: str | None
    tools: tuple[str, ...] | None
    settings: str | None
    messages: int
    turns: int
    last_message: int
    forked_from: str | None
    forked_at: int | None
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    running: str | None
    waiting: int
    kind: str | None

    @property
    def told(self) -> Conversation:
        """What is told of it."""
        return Conversation(
            conversation_id=self.id,
            title=self.title,
            messages=self.messages,
            turns=self.turns,
            created_at=self.created_at,
            updated_at=self.updated_at,
            model=self.model,
            agent=self.agent,
            user=self.owner,
            tools=self.tools,
            running_run_id=self.running,
            waiting_turns=self.waiting,
            archived_at=self.archived_at,
            forked_from=self.forked_from,
            forked_at=self.forked_at,
            kind=self.kind,
        )


class New(Struct, frozen=True, kw_only=True):
    """What a conversation begins with; ``settings`` is JSON."""

    id: str
    title: str = ""
    model: str | None = None
    agent: str | None = None
    owner: str | None = None
    system: str | None = None
    tools: tuple[str, ...] | None = None
    settings: str | None = None
    kind: str | None = None

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of its row, in order."""
        return (
            self.id,
            self.title,
            self.model,
            self.agent,
            self.owner,
            self.system,
            None if self.tools is None else list(self.tools),
            self.settings,
        )


class Row(Struct, frozen=True, kw_only=True):
    """A message as its row has it; ``parts`` is JSON."""

    number: int
    turn: int
    role: Role
    parts: str
    tokens: int
    created_at: datetime
    run: str | None = None
    model: str | None = None

    @property
    def told(self) -> NumberedMessage:
        """What is told of it."""
        return NumberedMessage(
            number=self.number,
            turn=self.turn,
            role=self.role,
            parts=decode_parts(self.parts),
            created_at=self.created_at,
            tokens=self.tokens,
            run_id=self.run,
            model=self.model,
        )


class Page(Struct, frozen=True):
    """Messages in order, and the number of the conversation's last one."""

    rows: list[Row]
    last: int


class Stored(Struct, frozen=True):
    """A message for a model; ``parts`` is JSON."""

    number: int
    turn: int
    role: Role
    parts: str
    tokens: int


class Window(Struct, frozen=True, kw_only=True):
    """The messages that may fit, by turn and number, and what stands for those before.

    ``summed_up_to`` is the last message that ``summary`` sums up, ``unsummed_tokens`` what neither
    is there nor summed up.
    """

    rows: list[Stored]
    summed_up_to: int
    summary: str | None
    summary_tokens: int
    unsummed_tokens: int


class LockTaken(Struct, frozen=True):
    """What came of taking a lock; ``verdict`` is ``ok``, ``running``, ``locked`` or ``lost``."""

    verdict: str
    owner: str | None
    locked_at: datetime | None
    expires_at: datetime | None


def no_conversation(conversation: str) -> NotFound:
    """Make the error that says that a conversation is not there, or is not the sender's."""
    return NotFound(
        f"there is no conversation {conversation!r}: see conversation:list (ksi conversation list)"
    )


class Conversations:
    """The conversations of all tenants, by functions that take the tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, tenant: str, new: New) -> bool:
        """Make a conversation, and say whether there was none of that id."""
        made: bool = await self._database.fetchval(SQL["create"], tenant, *new.values, new.kind)
        return made

    async def find(self, viewer: Viewer, conversation: str) -> Found:
        """Return a conversation.

        Raises:
            NotFound: There is none of that id, or it is not the sender's.
        """
        row = await self._database.fetchrow(SQL["find"], *viewer.bounds, conversation)
        if row is None:
            raise no_conversation(conversation)
        return _found(row)

    async def recent(
        self,
        viewer: Viewer,
        *,
        agent: str | None,
        user: str | None,
        archived: bool,
        kind: str | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Found]:
        """Return conversations, the one that was used last first, from a place on."""
        at, conversation = before or (None, None)
        rows = await self._database.fetch(
            SQL["list"], *viewer.bounds, agent, user, archived, at, conversation, kind, limit
        )
        return [_found(row) for row in rows]

    async def rename(self, viewer: Viewer, conversation: str, title: str) -> None:
        """Give a conversation another title.

        Raises:
            NotFound: There is none of that id, or it is not the sender's.
        """
        if not await self._database.fetchval(SQL["rename"], *viewer.bounds, conversation, title):
            raise no_conversation(conversation)

    async def archive(self, viewer: Viewer, conversation: str, archived: bool) -> None:
        """Put a conversation away, or take it out again.

        Raises:
            NotFound: There is none of that id, or it is not the sender's.
        """
        done = await self._database.fetchval(SQL["archive"], *viewer.bounds, conversation, archived)
        if not done:
            raise no_conversation(conversation)

    async def delete(self, viewer: Viewer, conversation: str) -> int:
        """Delete a conversation and return how many messages it had.

        Raises:
            NotFound: There is none of that id, or it is not the sender's.
            Conflict: A turn of it waits or runs, or it is locked.
        """
        row = await self._database.fetchrow(SQL["delete"], *viewer.bounds, conversation)
        verdict = "not_found" if row is None else row["verdict"]
        if row is None or verdict == "not_found":
            raise no_conversation(conversation)
        if verdict == "at_work":
            raise Conflict(
                f"the conversation {conversation!r} is at work: wait for its turns, or cancel them "
                "with completion:cancel (ksi turn cancel)",
                details={"kind": "at_work"},
            )
        if verdict == "locked":
            raise Conflict(
                f"the conversation {conversation!r} is locked: see conversation:locks "
                "(ksi conversation locks)",
                details={"kind": "locked"},
            )
        return int(row["gone"])

    # -- messages -------------------------------------------------------------------------------

    async def read(
        self,
        viewer: Viewer,
        conversation: str,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int,
        max_bytes: int,
        last: bool = False,
    ) -> Page:
        """Return the first messages between two numbers, or the last of them.

        Raises:
            NotFound: There is no such conversation, or it is not the sender's.
        """
        rows = await self._database.fetch(
            SQL["read"],
            *viewer.bounds,
            conversation,
            None if after is None else min(after, LAST_NUMBER),
            None if before is None else min(before, LAST_NUMBER),
            limit,
            max_bytes,
            last,
        )
        if not rows:
            raise no_conversation(conversation)
        found = [_row(row) for row in rows if row["number"] is not None]
        return Page(found, rows[0]["last_message"])

    async def fork(
        self, viewer: Viewer, conversation: str, up_to: int, new_id: str, title: str | None
    ) -> None:
        """Copy a conversation up to a message.

        Raises:
            NotFound: There is no such conversation, or it is not the sender's.
            Conflict: There is one of the new id.
        """
        verdict = await self._database.fetchval(
            SQL["fork"], *viewer.bounds, conversation, up_to, new_id, title
        )
        if verdict == "not_found":
            raise no_conversation(conversation)
        if verdict == "taken":
            raise taken(new_id)

    async def bring_in(self, tenant: str, new: New, rows: Sequence[Row], bodies: list[str]) -> None:
        """Make a conversation with messages, which are numbered in their order.

        Raises:
            Conflict: There is one of that id.
        """
        made = await self._database.fetchval(
            SQL["import"],
            tenant,
            *new.values,
            [row.turn for row in rows],
            [row.role for row in rows],
            [row.parts for row in rows],
            bodies,
            [row.tokens for row in rows],
            [row.model for row in rows],
            [row.created_at for row in rows],
        )
        if not made:
            raise taken(new.id)

    async def search(
        self, viewer: Viewer, text: str, conversation: str | None, limit: int
    ) -> tuple[FoundMessage, ...]:
        """Return messages by their words, the best match first.

        Raises:
            InvalidData: The text has no word that is to be there.
        """
        text = text.replace("\0", " ")
        begun = BEGUN.findall(text)
        try:
            rows = await self._database.fetch(
                SQL["search"],
                *viewer.bounds,
                conversation,
                BEGUN.sub(" ", text),
                begun,
                limit,
                RANKED,
            )
        except asyncpg.InvalidParameterValueError as error:
            raise InvalidData(
                "the search needs a word that is to be found, besides those that are not",
                details={"path": "$.text"},
            ) from error
        return tuple(
            FoundMessage(
                conversation_id=row["conversation"],
                title=row["title"],
                number=row["number"],
                role=row["role"],
                snippet=row["snippet"],
                score=row["score"],
                created_at=row["created_at"],
            )
            for row in rows
        )

    # -- what a model is sent -------------------------------------------------------------------

    async def window(
        self,
        tenant: str,
        conversation: str,
        *,
        turn: int | None,
        max_tokens: int,
        max_each: int,
        limit: int,
    ) -> Window:
        """Return the newest messages that may fit; all of a turn, or from the last user's on."""
        rows = await self._database.fetch(
            SQL["window"], tenant, conversation, turn, max_tokens, max_each, limit
        )
        head, *others = rows
        return Window(
            rows=[
                Stored(row["number"], row["turn"], row["role"], row["parts"], row["tokens"])
                for row in others
            ],
            summed_up_to=head["turn"],
            summary=head["parts"],
            summary_tokens=head["tokens"],
            unsummed_tokens=head["unsummed"],
        )

    async def summary(self, tenant: str, conversation: str, up_to: int) -> str | None:
        """Return what sums up a conversation up to a message."""
        text: str | None = await self._database.fetchval(
            SQL["summary"], tenant, conversation, up_to
        )
        return text

    async def save_summary(
        self, tenant: str, conversation: str, up_to: int, text: str, tokens: int, model: str
    ) -> None:
        """Keep what sums up a conversation up to a message; one that is there stays."""
        await self._database.execute(
            SQL["save_summary"], tenant, conversation, up_to, text, tokens, model
        )

    # -- locks ----------------------------------------------------------------------------------

    async def take_lock(
        self,
        viewer: Viewer,
        conversation: str,
        *,
        lock_id: str,
        owner: str,
        ttl_s: float,
        prolonged: bool,
    ) -> LockTaken:
        """Take a lock, or prolong it; a turn that runs goes on, and the verdict says so.

        Raises:
            NotFound: There is no such conversation, or it is not the sender's.
        """
        row = await self._database.fetchrow(
            SQL["take_lock"],
            *viewer.bounds,
            conversation,
            lock_id,
            owner,
            timedelta(seconds=ttl_s),
            prolonged,
        )
        if row is None or row["verdict"] == "not_found":
            raise no_conversation(conversation)
        return LockTaken(*row)

    async def give_lock_back(
        self, viewer: Viewer, conversation: str, lock_id: str | None, *, force: bool
    ) -> str:
        """Give a lock back, and return ``ok``, ``none`` or ``another``.

        Raises:
            NotFound: There is no such conversation, or it is not the sender's.
        """
        verdict: str = await self._database.fetchval(
            SQL["give_lock_back"], *viewer.bounds, conversation, lock_id, force
        )
        if verdict == "not_found":
            raise no_conversation(conversation)
        return verdict

    async def locks(self, viewer: Viewer, limit: int) -> list[Any]:
        """Return the locks that hold."""
        return await self._database.fetch(SQL["list_locks"], *viewer.bounds, limit)


def taken(conversation: str) -> Conflict:
    """Make the error that says that an id is in use."""
    return Conflict(f"there is a conversation {conversation!r} already: choose another new_id")


def _found(row: Any) -> Found:
    fields = dict(row)
    fields["tools"] = None if row["tools"] is None else tuple(row["tools"])
    return Found(**fields)


def _row(row: Any) -> Row:
    return Row(
        number=row["number"],
        turn=row["turn"],
        role=row["role"],
        parts=row["parts"],
        tokens=row["tokens"],
        created_at=row["created_at"],
        run=row["run"],
        model=row["model"],
    )
