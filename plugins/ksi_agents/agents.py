"""Keeps agents in Postgres, and tells who they are: one function, one round trip for each."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_agents.definition import Definition
from ksi_agents.events import Agent, Condition, LogEntry, Mail
from ksi_daemon.protocol import Context, ErrorBody
from ksi_postgres.database import Database
from ksi_postgres.news import News
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__, "life_queries.sql")
MAX_KNOWN: Final = 2000
MAX_BLUEPRINTS: Final = 500
FORGOTTEN_AT_ONCE: Final = 1000
CHANGED: Final = "agent-changed"
ENDED: Final = ("Completed", "Terminated")


class Kept(Struct, frozen=True, kw_only=True):
    """An agent as it is kept; see ``sql/agents``."""

    tenant: str
    name: str
    id: str
    definition: str
    version: int
    digest: str
    is_inline: bool
    owner: str | None
    parent: str | None
    parent_run: str | None
    conversation: str
    labels: dict[str, str]
    desired: Any
    phase: Any
    reason: str
    conditions: dict[str, Any]
    starts: int
    restarts: int
    next_start_at: datetime | None
    at_work: int | None
    run: str | None
    waiting: int
    created_at: datetime
    ended_at: datetime | None

    @property
    def context(self) -> Context:
        """In whose name something is done about it."""
        return Context(
            "",
            tenant=self.tenant,
            user=self.owner,
            agent=self.name,
            conversation=self.conversation,
            run=self.parent_run,
        )


class Given(Struct, frozen=True, kw_only=True):
    """The message that an agent is given."""

    number: int
    message_id: str
    prompt: str
    context: Context


class Going(Struct, frozen=True):
    """How an agent goes on: as it is now, and the message that it is given, if there is one."""

    agent: Kept
    given: Given | None = None


class Posted(Struct, frozen=True, kw_only=True):
    """What became of a message on its way into a mailbox."""

    verdict: str
    to: str
    going: Going | None
    number: int = 0
    status: Any = "waiting"
    run: str | None = None
    error: ErrorBody | None = None


class Spawn(Struct, frozen=True, kw_only=True):
    """An agent that is to be."""

    context: Context
    name: str
    id: str
    definition: Definition
    version: int
    is_inline: bool
    conversation: str
    labels: dict[str, str]
    is_errand: bool
    request_id: str | None
    request_digest: str | None
    prompt: str | None


class Known(Struct, frozen=True):
    """Who an agent is, as far as its turns are concerned."""

    id: str
    name: str
    definition: str
    version: int
    digest: str
    owner: str | None
    parent: str | None
    parent_run: str | None
    is_inline: bool


class Agents:
    """The agents of all tenants.

    Args:
        database: Keeps them.
        news: Tells other daemons of those that have changed.
    """

    def __init__(self, database: Database, news: News) -> None:
        self._database = database
        self._news = news
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._blueprints: OrderedDict[tuple[str, str], Definition] = OrderedDict()
        news.on(CHANGED, self._forget)
        news.on_missed(self._known.clear)

    # -- who they are ---------------------------------------------------------------------------

    async def who(self, tenant: str, name: str) -> Known | None:
        """Return who an agent is, from memory where that is possible; ``None`` if there is none.

        One that has ended is none.
        """
        known = self._known.get((tenant, name))
        if known is None:
            kept = await self.find(Context("", tenant=tenant), name)
            return None if kept is None or kept.ended_at is not None else self._know(kept)
        self._known.move_to_end((tenant, name))
        return known

    async def awaiting_events(self) -> list[Kept]:
        """Return those of all tenants that some event is to wake."""
        rows = await self._database.fetch(SQL["awaiting_events"])
        return [kept_of(row) for row in rows]

    async def definition_of(self, agent: Known | Kept, tenant: str) -> Definition:
        """Return what an agent runs by, whatever became of its definition since."""
        key = (tenant, agent.digest)
        found = self._blueprints.get(key)
        if found is not None:
            self._blueprints.move_to_end(key)
            return found
        text = await self._database.fetchval(SQL["blueprint"], *key)
        definition = msgspec.json.decode(text, type=Definition)
        self._keep_blueprint(key, definition)
        return definition

    def _know(self, kept: Kept) -> Known:
        known = Known(
            kept.id,
            kept.name,
            kept.definition,
            kept.version,
            kept.digest,
            kept.owner,
            kept.parent,
            kept.parent_run,
            kept.is_inline,
        )
        self._known[kept.tenant, kept.name] = known
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return known

    def _keep_blueprint(self, key: tuple[str, str], definition: Definition) -> None:
        self._blueprints[key] = definition
        if len(self._blueprints) > MAX_BLUEPRINTS:
            self._blueprints.popitem(last=False)

    def _forget(self, about: str) -> None:
        tenant, _, name = about.rpartition("/")
        self._known.pop((tenant, name), None)

    def _changed(self, kept: Kept) -> None:
        """Have every daemon look anew who an agent is."""
        about = f"{kept.tenant}/{kept.name}"
        self._forget(about)
        self._news.tell(CHANGED, about)

    def _going(self, row: Any) -> Going:
        """Return how an agent goes on; whoever gives it a message knows who it is."""
        kept = kept_of(row)
        if kept.ended_at is None:
            self._know(kept)
        else:
            self._forget(f"{kept.tenant}/{kept.name}")
        if row["mail_number"] is None:
            return Going(kept)
        context = msgspec.json.decode(row["context"], type=Context)
        given = Given(
            number=row["mail_number"],
            message_id=row["message_id"],
            prompt=row["prompt"],
            context=context,
        )
        return Going(kept, given)

    # -- their life -----------------------------------------------------------------------------

    async def spawn(self, spawn: Spawn, max_agents: int) -> tuple[str, Kept | None]:
        """Have a new agent, or say why not."""
        context, text = spawn.context, encoded(spawn.definition)
        digest, restart = digest_of(text), spawn.definition.restart
        row = await self._database.fetchrow(
            SQL["spawn"],
            context.tenant,
            context.user,
            spawn.name,
            spawn.id,
            spawn.definition.name,
            spawn.version,
            digest,
            text,
            spawn.is_inline,
            context.agent,
            context.run,
            spawn.conversation,
            encoded(spawn.labels),
            restart.policy,
            restart.max_restarts,
            restart.window_s,
            restart.delay_s,
            restart.max_delay_s,
            spawn.is_errand,
            spawn.request_id,
            spawn.request_digest,
            spawn.prompt,
            encoded(sent_in(context)),
            max_agents,
        )
        assert row is not None
        kept = None if row["id"] is None else kept_of(row)
        if row["verdict"] == "new" and kept is not None:
            self._keep_blueprint((kept.tenant, digest), spawn.definition)
            self._changed(kept)
        return row["verdict"], kept

    async def begin_start(self, agent: Kept) -> Kept | None:
        """Note that an agent is being started, unless another start has overtaken this one."""
        row = await self._database.fetchrow(
            SQL["begin_start"], agent.tenant, agent.id, agent.starts
        )
        return None if row is None else kept_of(row)

    async def end_start(
        self, agent: Kept, why_not: str | None, message: str, probed: str
    ) -> Going | None:
        """End a start: well, or with why it has failed."""
        row = await self._database.fetchrow(
            SQL["end_start"], agent.tenant, agent.id, agent.starts, why_not, message, probed
        )
        return None if row is None or row["id"] is None else self._going(row)

    async def restart(
        self, agent: Kept, definition: Definition, version: int, *, is_errand: bool
    ) -> Kept | None:
        """Have an agent started anew."""
        text, restart = encoded(definition), definition.restart
        row = await self._database.fetchrow(
            SQL["restart"],
            agent.tenant,
            agent.id,
            definition.name,
            version,
            digest_of(text),
            text,
            restart.policy,
            restart.max_restarts,
            restart.window_s,
            restart.delay_s,
            restart.max_delay_s,
            is_errand,
        )
        if row is None:
            return None
        kept = kept_of(row)
        self._changed(kept)
        return kept

    async def chosen(
        self,
        context: Context,
        patterns: Sequence[str],
        labels: dict[str, str],
        idle_s: float | None,
        *,
        with_children: bool,
        with_ended: bool,
    ) -> list[Kept]:
        """Return the agents that are meant; an agent means its own descendants alone."""
        rows = await self._database.fetch(
            SQL["chosen"],
            context.tenant,
            context.user,
            context.agent,
            [like_of(pattern) for pattern in patterns],
            encoded(labels),
            idle_s,
            with_children,
            with_ended,
        )
        return [kept_of(row) for row in rows]

    async def pause(self, tenant: str, ids: list[str]) -> list[Kept]:
        """Have agents take no more messages."""
        return [kept_of(row) for row in await self._database.fetch(SQL["pause"], tenant, ids)]

    async def resume(self, agent: Kept) -> Going:
        """Have an agent go on."""
        row = await self._database.fetchrow(SQL["resume"], agent.tenant, agent.id)
        return self._going(row)

    async def terminate(self, tenant: str, ids: list[str], why: str) -> list[Kept]:
        """End agents for good; what they are at is not cancelled by that."""
        rows = await self._database.fetch(SQL["terminate"], tenant, ids, why)
        ended = [kept_of(row) for row in rows]
        for each in ended:
            self._changed(each)
        return ended

    async def due(self, *, at_start: bool, limit: int) -> list[Going]:
        """Return agents that somebody is to look after, which is whoever asks."""
        rows = await self._database.fetch(SQL["due"], at_start, limit)
        return [self._going(row) for row in rows]

    # -- their mailboxes ------------------------------------------------------------------------

    async def post(
        self,
        context: Context,
        name: str,
        message_id: str,
        prompt: str,
        *,
        is_awaited: bool,
        asker: str | None,
        max_mailbox: int,
    ) -> Posted:
        """Put a message into a mailbox."""
        row = await self._database.fetchrow(
            SQL["post"],
            context.tenant,
            context.user,
            name,
            message_id,
            prompt,
            encoded(sent_in(context)),
            context.agent,
            None,
            is_awaited,
            asker,
            max_mailbox,
        )
        assert row is not None
        if row["id"] is None:
            return Posted(verdict=row["verdict"], to=name, going=None)
        return Posted(
            verdict=row["verdict"],
            to=name,
            going=self._going(row),
            number=row["mail_number"] or 0,
            status=row["mail_status"],
            run=row["mail_run"],
            error=read_error(row["error"]),
        )

    async def end_mail(
        self,
        tenant: str,
        agent_id: str,
        number: int,
        status: str,
        error: ErrorBody | None,
        run: str | None,
        kept: int,
    ) -> tuple[str | None, Going] | None:
        """End the message that an agent is at; return who waits for it elsewhere."""
        row = await self._database.fetchrow(
            SQL["end_mail"],
            tenant,
            agent_id,
            number,
            status,
            None if error is None else encoded(error),
            run,
            None if error is None else error.message,
            kept,
        )
        assert row is not None
        if row["verdict"] != "ended":
            return None
        going = self._going(row)
        if going.agent.ended_at is not None:
            self._changed(going.agent)
        return row["of_asker"], going

    async def end_wait(self, tenant: str, agent_id: str, number: int) -> None:
        """Note that a message's sender waits for it no more."""
        await self._database.execute(SQL["end_wait"], tenant, agent_id, number)

    async def note_runs(self, runs: Sequence[tuple[str, str, int, str]]) -> None:
        """Note the runs of messages that are worked at."""
        columns = [list(column) for column in zip(*runs, strict=True)]
        await self._database.execute(SQL["note_runs"], *columns)

    async def mailbox(self, agent: Kept, limit: int) -> list[Mail]:
        """Return an agent's newest messages, in their order."""
        rows = await self._database.fetch(SQL["list_mail"], agent.tenant, agent.id, limit)
        return [mail_of(row) for row in rows]

    async def mail(self, tenant: str, agent_id: str, number: int) -> tuple[Mail, Given] | None:
        """Return a message, and how it is given."""
        row = await self._database.fetchrow(SQL["find_mail"], tenant, agent_id, number)
        if row is None:
            return None
        given = Given(
            number=number,
            message_id=row["message_id"],
            prompt=row["prompt"],
            context=msgspec.json.decode(row["context"], type=Context),
        )
        return mail_of(row), given

    # -- channels -------------------------------------------------------------------------------

    async def subscribe(self, agent: Kept, channel: str, *, wanted: bool) -> tuple[str, ...]:
        """Subscribe an agent to a channel, or end that; return its channels."""
        return tuple(
            await self._database.fetchval(SQL["subscribe"], agent.tenant, agent.id, channel, wanted)
        )

    async def channels(self, agent: Kept) -> tuple[str, ...]:
        """Return the channels that an agent is subscribed to."""
        return tuple(await self._database.fetchval(SQL["channels"], agent.tenant, agent.id))

    async def publish(
        self, context: Context, channel: str, message_id: str, prompt: str, max_mailbox: int
    ) -> list[Posted]:
        """Put a message into the mailboxes of all who are subscribed."""
        rows = await self._database.fetch(
            SQL["publish"],
            context.tenant,
            context.user,
            channel,
            message_id,
            prompt,
            encoded(sent_in(context)),
            context.agent,
            max_mailbox,
        )
        return [
            Posted(verdict=row["verdict"], to=row["to_name"], going=self._going(row))
            for row in rows
        ]

    # -- looking at them ------------------------------------------------------------------------

    async def find(self, context: Context, name: str) -> Kept | None:
        """Return an agent, where the sender may see it."""
        row = await self._database.fetchrow(SQL["find"], context.tenant, context.user, name)
        return None if row is None else kept_of(row)

    async def list(
        self,
        context: Context,
        *,
        pattern: str = "*",
        definition: str | None = None,
        phases: Sequence[str] = (),
        labels: dict[str, str] | None = None,
        parent: str | None = None,
        ended: bool = False,
        after: str | None = None,
        limit: int = 1000,
    ) -> list[Kept]:
        """Return agents by name."""
        rows = await self._database.fetch(
            SQL["list"],
            context.tenant,
            context.user,
            like_of(pattern),
            definition,
            list(phases),
            encoded(labels or {}),
            parent,
            ended,
            after,
            limit,
        )
        return [kept_of(row) for row in rows]

    async def entries(self, agent: Kept, before: int | None, limit: int) -> tuple[LogEntry, ...]:
        """Return what happened to an agent, the newest first."""
        rows = await self._database.fetch(
            SQL["list_entries"], agent.tenant, agent.id, before, limit
        )
        return tuple(
            LogEntry(
                number=row["number"],
                at=row["at"],
                kind=row["kind"],
                message=row["message"],
                run_id=row["run"],
            )
            for row in rows
        )

    async def forget_past(self, older_than_s: float) -> None:
        """Forget agents that have ended long ago, and what nobody runs by any more."""
        await self._database.execute(SQL["forget_ended"], older_than_s, FORGOTTEN_AT_ONCE)
        await self._database.execute(SQL["forget_blueprints"], FORGOTTEN_AT_ONCE)


# -- of rows -------------------------------------------------------------------------------------


def kept_of(row: Any) -> Kept:
    """Return an agent of its row."""
    fields = {name: row[name] for name in Kept.__struct_fields__}
    for name in ("labels", "conditions"):
        fields[name] = msgspec.json.decode(fields[name])
    return Kept(**fields)


def agent_of(kept: Kept) -> Agent:
    """Return an agent as it is shown."""
    return Agent(
        name=kept.name,
        definition=kept.definition,
        version=kept.version,
        desired=kept.desired,
        phase=kept.phase,
        reason=kept.reason,
        conversation_id=kept.conversation,
        parent=kept.parent,
        parent_run=kept.parent_run,
        labels=kept.labels,
        waiting=kept.waiting,
        run_id=kept.run,
        restarts=kept.restarts,
        next_start_at=kept.next_start_at,
        created_at=kept.created_at,
        ended_at=kept.ended_at,
    )


def conditions_of(kept: Kept) -> tuple[Condition, ...]:
    """Return what is so of an agent."""
    return tuple(
        msgspec.convert({"type": name, **fields}, Condition)
        for name, fields in sorted(kept.conditions.items())
    )


def mail_of(row: Any) -> Mail:
    """Return a message of its row."""
    return Mail(
        message_id=row["message_id"],
        number=row["number"],
        status=row["status"],
        prompt=row["prompt"],
        sender=row["sender"],
        channel=row["channel"],
        run_id=row["run"],
        error=read_error(row["error"]),
        accepted_at=row["accepted_at"],
        ended_at=row["ended_at"],
    )


def read_error(text: str | None) -> ErrorBody | None:
    """Return what something failed with."""
    return None if text is None else msgspec.json.decode(text, type=ErrorBody)


def encoded(value: Any) -> str:
    """Return a value as JSON, the same for the same value."""
    return msgspec.json.encode(value, order="deterministic").decode()


def digest_of(text: str) -> str:
    """Return what tells a text from others."""
    return hashlib.sha256(text.encode()).hexdigest()


def like_of(glob: str) -> str:
    """Return a glob as LIKE has it."""
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def sent_in(context: Context) -> Context:
    """Return what is kept of the context in which a message was sent: who caused it."""
    return Context("", tenant=context.tenant, run=context.run, principal=context.principal)
