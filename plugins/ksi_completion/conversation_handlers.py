"""Answers ``conversation:*``."""

import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Final

import msgspec

from ksi_completion import events as e
from ksi_completion import transfer
from ksi_completion.conversations import Conversations, Found, New, Row, Viewer, no_conversation
from ksi_completion.locks import Locks
from ksi_completion.messages import decode_parts, digest_of
from ksi_completion.settings import CompletionSettings
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, current_context, event_handler
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import Conflict, Context, Denied, InvalidData, KsiError, NotFound
from ksi_models.events import Message, ModelSettings, ToolCallPart, ToolResultPart
from ksi_tools.events import ToolPermissions, ToolPermit, ToolPermitted

MAX_PAGE_BYTES: Final = 1024 * 1024  # of a page of messages; a frame has 4 MiB unless set
MAX_RANGE_BYTES: Final = 64 * 1024 * 1024  # of what a model is handed by numbers
MAX_RANGE: Final = 100_000


class ConversationHandlers:
    """What is asked of conversations.

    Args:
        store: Keeps them.
        locks: Keeps their turns from starting.
        bus: Reaches the tools, to which a conversation's globs are told.
        settings: The plugin's.
    """

    def __init__(
        self,
        store: Conversations,
        locks: Locks,
        bus: Bus,
        settings: CompletionSettings,
    ) -> None:
        self._store = store
        self._locks = locks
        self._bus = bus
        self._settings = settings

    # -- as a whole -----------------------------------------------------------------------------

    @event_handler("conversation:create", scope="chat:write")
    async def create(self, request: e.ConversationCreate) -> e.Conversation:
        """Make a conversation; one of that id is left as it is."""
        viewer = Viewer.current()
        new = New(
            id=request.conversation_id or new_id(),
            title=clean(request.title or ""),
            model=request.model,
            agent=own_agent(request.agent),
            owner=viewer.user,
            system=clean(request.system) if request.system is not None else None,
            tools=request.tools,
            settings=encoded(request.settings),
            kind=request.kind,
        )
        if await self._store.create(viewer.tenant, new):
            viewer = Viewer(viewer.tenant, viewer.user)  # its maker sees what it has made
            await self._permit_or_undo(viewer, new)
        return (await self._store.find(viewer, new.id)).told

    @event_handler("conversation:get", scope="chat:read")
    async def get(self, request: e.ConversationGet) -> e.Conversation:
        """Tell what is known of a conversation."""
        return (await self._store.find(Viewer.current(), request.conversation_id)).told

    @event_handler("conversation:list", scope="chat:read")
    async def list_all(self, request: e.ConversationList) -> e.ConversationListed:
        """List conversations, the one that was used last first."""
        found = await self._store.recent(
            Viewer.current(),
            agent=request.agent,
            user=request.user,
            archived=request.archived,
            kind=request.kind,
            before=None if request.cursor is None else decode_cursor(request.cursor),
            limit=request.limit + 1,
        )
        page = found[: request.limit]
        return e.ConversationListed(
            conversations=tuple(each.told for each in page),
            cursor=encode_cursor(page[-1]) if len(found) > len(page) else None,
        )

    @event_handler("conversation:rename", scope="chat:write")
    async def rename(self, request: e.ConversationRename) -> e.Conversation:
        """Give a conversation another title."""
        viewer = Viewer.current()
        await self._store.rename(viewer, request.conversation_id, clean(request.title))
        return (await self._store.find(viewer, request.conversation_id)).told

    @event_handler("conversation:archive", scope="chat:write")
    async def archive(self, request: e.ConversationArchive) -> e.Conversation:
        """Put a conversation away, or take it out again."""
        viewer = Viewer.current()
        await self._store.archive(viewer, request.conversation_id, request.archived)
        return (await self._store.find(viewer, request.conversation_id)).told

    @event_handler("conversation:delete", scope="chat:write")
    async def delete(self, request: e.ConversationDelete) -> e.ConversationDeleted:
        """Delete a conversation with its messages and turns, and what may be called in it."""
        viewer = Viewer.current()
        gone = await self._store.delete(viewer, request.conversation_id)
        return e.ConversationDeleted(conversation_id=request.conversation_id, messages=gone)

    # -- messages -------------------------------------------------------------------------------

    @event_handler("conversation:history", scope="chat:read")
    async def history(self, request: e.ConversationHistory) -> e.ConversationRead:
        """Read messages by their numbers; without any, the last ones."""
        page = await self._store.read(
            Viewer.current(),
            request.conversation_id,
            after=request.after,
            before=request.before,
            limit=request.limit,
            max_bytes=MAX_PAGE_BYTES,
            last=request.after is None,
        )
        rows = page.rows
        return e.ConversationRead(
            conversation_id=request.conversation_id,
            messages=tuple(row.told for row in rows),
            after=rows[-1].number if rows and rows[-1].number < page.last else None,
            before=rows[0].number if rows and rows[0].number > 1 else None,
        )

    @event_handler("conversation:messages", scope="chat:read")
    async def messages(self, request: e.ConversationMessages) -> e.ConversationFetched:
        """Fetch the messages of a range for a model."""
        count = request.last - request.first + 1
        if not 1 <= count <= MAX_RANGE:
            raise InvalidData(
                f"a range has from 1 to {MAX_RANGE} messages, the first of them first",
                details={"path": "$.last"},
            )
        page = await self._store.read(
            Viewer.current(),
            request.conversation_id,
            after=request.first - 1,
            before=request.last + 1,
            limit=count,
            max_bytes=MAX_RANGE_BYTES,
        )
        if len(page.rows) < count:
            raise NotFound(
                f"the conversation {request.conversation_id!r} has no such messages, or they are "
                f"more than {MAX_RANGE_BYTES} bytes: its last is {page.last}"
            )
        digest = digest_of((row.role, row.parts) for row in page.rows)
        if request.sha256 not in (None, digest):
            raise Conflict(
                "the messages are not those any more that the hash was made of",
                details={"kind": "changed"},
            )
        return e.ConversationFetched(
            messages=tuple(Message(row.role, decode_parts(row.parts)) for row in page.rows),
            sha256=digest,
        )

    @event_handler("conversation:search", scope="chat:read")
    async def search(self, request: e.ConversationSearch) -> e.ConversationFound:
        """Find messages by their words; one that ends with ``*`` is a beginning."""
        viewer = Viewer.current()
        found = await self._store.search(
            viewer, request.text, request.conversation_id, request.limit
        )
        return e.ConversationFound(found=found)

    # -- copies ---------------------------------------------------------------------------------

    @event_handler("conversation:fork", scope="chat:write")
    async def fork(self, request: e.ConversationFork) -> e.Conversation:
        """Make a copy of a conversation up to a message; of tool calls, with their results."""
        viewer = Viewer.current()
        source = await self._store.find(viewer, request.conversation_id)
        if request.at is not None and request.at > source.last_message:
            raise InvalidData(
                f"the last message of {source.id!r} is {source.last_message}",
                details={"path": "$.at"},
            )
        at = source.last_message if request.at is None else request.at
        forked = request.new_id or new_id()
        title = None if request.title is None else clean(request.title)
        cut = await self._whole(viewer, source.id, at)
        await self._store.fork(viewer, source.id, cut, forked, title)
        maker = Viewer(viewer.tenant, viewer.user)
        try:
            await self._permit_like(source, forked)
        except KsiError:
            await self._store.delete(maker, forked)
            raise
        return (await self._store.find(maker, forked)).told

    async def _whole(self, viewer: Viewer, conversation: str, at: int) -> int:
        """Return the last message up to ``at`` after which no call waits for its result."""
        results: set[str] = set()
        before = at + 1
        while before > 1:
            page = await self._store.read(
                viewer,
                conversation,
                before=before,
                limit=50,
                max_bytes=MAX_PAGE_BYTES,
                last=True,
            )
            for row in reversed(page.rows):
                if row.role != "tool":
                    return at if called(row) <= results else row.number - 1
                results |= answered(row)
            before = page.rows[0].number if page.rows else 1
        return at

    @event_handler("conversation:export", scope="chat:read")
    async def export(self, request: e.ConversationExport) -> AsyncIterator[e.ExportedText]:
        """Write a conversation down, in pieces."""
        viewer = Viewer.current()
        found = await self._store.find(viewer, request.conversation_id)
        writer = transfer.WRITERS[request.format](found)
        yield e.ExportedText(text=writer.begin())
        after = 0
        while after < found.last_message:
            page = await self._store.read(
                viewer,
                found.id,
                after=after,
                before=found.last_message + 1,
                limit=500,
                max_bytes=MAX_PAGE_BYTES // 4,
            )
            if not page.rows:  # it was deleted and made again meanwhile
                raise no_conversation(found.id)
            for text in transfer.pieces("".join(map(writer.message, page.rows))):
                yield e.ExportedText(text=text)
            after = page.rows[-1].number
        yield e.ExportedText(text=writer.end())

    @event_handler("conversation:import", scope="chat:write")
    async def bring_in(self, request: e.ConversationImport) -> e.Conversation:
        """Make a conversation of what was written as JSON: all of it, or nothing."""
        viewer = Viewer.current()
        document = transfer.read_document(request.document)
        limit = self._settings.max_import_messages
        if len(document.messages) > limit:
            raise InvalidData(
                f"a document may have {limit} messages (completion.max_import_messages)",
                details={"path": "$.document.messages"},
            )
        rows, bodies = transfer.rows_of(document)
        size = sum(len(row.parts) for row in rows)
        if size > self._settings.max_import_bytes:
            raise InvalidData(
                f"a document's messages may have {self._settings.max_import_bytes} bytes "
                "(completion.max_import_bytes)",
                details={"path": "$.document.messages"},
            )
        about = document.conversation
        new = New(
            id=request.new_id or new_id(),
            title=clean(about.title),
            model=about.model,
            agent=own_agent(about.agent),
            owner=viewer.user,
            system=None if about.system is None else clean(about.system),
            tools=about.tools,
            settings=encoded(about.settings),
        )
        await self._store.bring_in(viewer.tenant, new, rows, bodies)
        maker = Viewer(viewer.tenant, viewer.user)
        await self._permit_or_undo(maker, new)
        return (await self._store.find(maker, new.id)).told

    # -- locks ----------------------------------------------------------------------------------

    @event_handler("conversation:lock", scope="chat:write", timeout_s=3700.0)
    async def lock(self, request: e.ConversationLock) -> e.Lock:
        """Keep a conversation's turns from starting."""
        return await self._locks.take(Viewer.current(), request)

    @event_handler("conversation:unlock", scope="chat:write")
    async def unlock(self, request: e.ConversationUnlock) -> e.ConversationUnlocked:
        """Give a lock back."""
        viewer = Viewer.current()
        if request.force and viewer.agent is not None:
            raise Denied("an agent gives back its own locks alone: name the lock_id")
        was_locked = await self._locks.give_back(viewer, request)
        return e.ConversationUnlocked(
            conversation_id=request.conversation_id, was_locked=was_locked
        )

    @event_handler("conversation:locks", scope="chat:read")
    async def locks(self, request: e.ConversationLocks) -> e.LocksListed:
        """List the locks that hold."""
        return e.LocksListed(locks=await self._locks.held(Viewer.current(), request.limit))

    # -- what may be called in it ---------------------------------------------------------------

    async def _permit_or_undo(self, maker: Viewer, new: New) -> None:
        try:
            await self._permit(new.id, new.tools)
        except KsiError:
            await self._store.delete(maker, new.id)
            raise

    async def _permit(self, conversation: str, tools: tuple[str, ...] | None) -> None:
        """Let a conversation call what it was made with; no more than its maker may call."""
        context = current_context() or Context("")
        if tools is None:
            return
        parent = None
        if context.agent is not None:
            parent = f"agent:{context.agent}"
        elif context.conversation is not None:
            parent = f"conversation:{context.conversation}"
        elif is_bearers(context):
            return  # such a one can't hand on more than what all may call
        permit = ToolPermit(subject=f"conversation:{conversation}", allow=tools, parent=parent)
        with suppress(NotFound):  # nobody has tools
            await self._bus.request("tool:permit", permit)

    async def _permit_like(self, source: Found, forked: str) -> None:
        """Let a copy call what its original may, and nothing else, whoever copies it."""
        tenant = Viewer.current().tenant
        with acting_as(Context("", tenant=tenant)), suppress(NotFound):  # nobody has tools
            permitted = await self._bus.request(
                "tool:permissions",
                ToolPermissions(subject=f"conversation:{source.id}"),
                result_type=ToolPermitted,
            )
            if (permitted.allow, permitted.deny, permitted.parent) != (None, (), None):
                request = ToolPermit(
                    subject=f"conversation:{forked}",
                    allow=permitted.allow,
                    deny=permitted.deny,
                    parent=permitted.parent,
                )
                await self._bus.request("tool:permit", request)


def called(row: Row) -> set[str]:
    """Return the ids of what a message calls."""
    if row.role != "assistant":
        return set()
    return {part.id for part in decode_parts(row.parts) if isinstance(part, ToolCallPart)}


def answered(row: Row) -> set[str]:
    """Return the ids of the calls whose results a message has."""
    return {part.id for part in decode_parts(row.parts) if isinstance(part, ToolResultPart)}


def new_id() -> str:
    """Make an id for a conversation."""
    return f"c-{uuid.uuid4().hex}"


def clean(text: str) -> str:
    """Return a text as Postgres can hold it."""
    return text.replace("\0", "")


def encoded(settings: ModelSettings | None) -> str | None:
    """Return settings as they are stored."""
    return None if settings is None else msgspec.json.encode(settings).decode()


def own_agent(agent: str | None) -> str | None:
    """Return the agent that leads a new conversation: an agent's event names its own alone.

    Raises:
        Denied: It names another.
    """
    context = current_context()
    if context is None or context.agent is None or agent == context.agent:
        return agent
    if agent is None:
        return context.agent
    raise Denied(f"this is {context.agent!r}: a conversation of {agent!r} is not its to make")


def encode_cursor(last: Found) -> str:
    """Return where the next page begins."""
    return f"{last.updated_at.isoformat()} {last.id}"


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Return what `encode_cursor` was given.

    Raises:
        InvalidData: It is no cursor.
    """
    at, _, conversation = cursor.partition(" ")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError as error:
        raise no_cursor() from error
    if moment.tzinfo is None or not conversation or "\0" in conversation:
        raise no_cursor()
    return moment, conversation


def no_cursor() -> InvalidData:
    """Make the error for a cursor that no page had."""
    message = "this is no cursor: give back the one that the page before had"
    return InvalidData(message, details={"path": "$.cursor"})
