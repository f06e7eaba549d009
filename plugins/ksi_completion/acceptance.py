"""Accepts turns: checks what is asked, has it recorded, and sees to it that it begins."""

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Self

import msgspec

from ksi_completion import tokens
from ksi_completion.context import MAX_PROMPT_CHARACTERS
from ksi_completion.events import (
    AgentProfile,
    CompletionAccepted,
    CompletionAgent,
    CompletionAsync,
)
from ksi_completion.messages import body_of
from ksi_completion.outputs import check_schema
from ksi_completion.profiles import Profiles
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import Asked, Next, Said, Store, next_of
from ksi_completion.work import TurnOptions
from ksi_daemon.event_system import acting_as
from ksi_daemon.principals import TOKEN_PREFIX, is_bearers
from ksi_daemon.protocol import (
    Busy,
    Conflict,
    Context,
    Denied,
    InvalidData,
    KsiError,
    NotFound,
)
from ksi_models.events import Message, TextPart, ToolSchema
from ksi_postgres.news import News
from ksi_tools.events import CLIENT_TOOL, ToolPermit

log = logging.getLogger(__name__)

TITLE_CHARACTERS: Final = 60
MAX_CLIENT_TOOLS_BYTES: Final = 256 * 1024
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_HANDOVERS: Final = 64

Start = Callable[[str, Context], Awaitable[None]]


class Acceptance:
    """Takes turns on, and hands those that may begin to the engine.

    Args:
        settings: The plugin's.
        store: Records them.
        profiles: Knows who the agents are.
        news: Tells of turns that are asked for within another.
        start: Starts the run of a turn.

    Attributes:
        expected: The turns that are about to begin here.
    """

    def __init__(
        self,
        settings: CompletionSettings,
        store: Store,
        profiles: Profiles,
        news: News,
        start: Start,
    ) -> None:
        self._settings = settings
        self._store = store
        self._profiles = profiles
        self._news = news
        self._start = start
        self._tasks: asyncio.TaskGroup | None = None
        self.expected: set[str] = set()  # runs that are about to begin here
        self._handovers = asyncio.Semaphore(MAX_HANDOVERS)

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        await tasks.__aexit__(None, None, None)

    async def accept(self, request: CompletionAsync, context: Context) -> CompletionAccepted:
        """Record a turn; it begins at once where no other one is open in its conversation.

        Raises:
            InvalidData: There is nothing in it to answer, or no answer could fit its schema.
            Conflict: The request's id is another's, or the conversation is archived.
            NotFound: The conversation is another user's.
            Busy: Too many turns wait, or too many wait for one another.
            Unavailable: Who its agent is can't be told just now.
        """
        settings = self._settings
        agent = request.agent or context.agent
        profile = None
        if agent is not None:
            profile = await self._profiles.find(
                CompletionAgent(agent=agent, prompt=prompt_of(request)[:MAX_PROMPT_CHARACTERS])
            )
        asked = self._asked(request, context, profile)
        row = await self._store.accept(asked, settings.max_waiting_turns, settings.max_depth)
        self._check(row["verdict"], asked)
        ready = next_of(row)
        if ready is not None:
            self.begin(ready)
        if asked.parent is not None:
            self._news.tell("child", asked.parent)
        return CompletionAccepted(
            request_id=asked.request_id,
            run_id=row["run_id"],
            conversation_id=row["conversation_id"],
            turn=row["turn_number"],
            status=row["turn_status"],
        )

    def begin(self, ready: Next) -> None:
        """Hand a turn to the engine, without waiting; the sweep does it where this fails."""
        if self._tasks is not None:
            self.expected.add(ready.run)
            self._tasks.create_task(self._hand_over(ready), name=f"begin {ready.run}")

    async def _hand_over(self, ready: Next) -> None:
        async with self._handovers:
            try:
                with acting_as(ready.context):
                    await self._start(ready.run, ready.context)
            except KsiError as error:
                self.expected.discard(ready.run)
                log.warning(
                    "a turn could not be begun; it is tried again",
                    extra={"run": ready.run, "error": error.message},
                )

    def _asked(
        self, request: CompletionAsync, context: Context, profile: AgentProfile | None
    ) -> Asked:
        messages = self._messages(request)
        _check_bounds(request, context)
        check_schema(request.output_schema)
        check_client_tools(request.client_tools)
        agent = profile.agent if profile is not None else request.agent or context.agent
        bound = context.conversation if is_bound(context) else None
        conversation = request.conversation_id or bound or secrets.token_hex(8)
        plain = msgspec.structs.replace(
            request, prompt=None, messages=(), request_id=None, conversation_id=None
        )
        options = TurnOptions(
            asked=plain,
            permit=_permit_of(request, conversation, context),
            agent_version=profile.version if profile is not None else None,
            parent_run=context.run,
        )
        schema = request.output_schema
        if schema is None and profile is not None:
            schema = profile.output_schema
        of_turn = msgspec.structs.replace(
            context, agent=agent, conversation=conversation, run=None, parent=None
        )
        return Asked(
            conversation=conversation,
            run=run_of(context.tenant, secrets.token_hex(12)),
            request_id=request.request_id or secrets.token_hex(12),
            digest=digest_of(request),
            user=context.user,
            agent=agent,
            title=title_of(prompt_of(request)),
            model=request.model,
            system=request.system,
            tools=request.tools,
            settings=None
            if request.settings is None
            else msgspec.json.encode(request.settings).decode(),
            options=msgspec.json.encode(options).decode(),
            has_output=schema is not None,
            context=of_turn,
            parent=context.run,
            only_agent=context.agent if is_bound(context) else None,
            depth=profile.limits.depth if profile is not None else None,
            messages=tuple(map(said, messages)),
        )

    def _messages(self, request: CompletionAsync) -> tuple[Message, ...]:
        if (request.prompt is None) == (not request.messages):
            raise InvalidData("a turn has either a prompt, or messages")
        if request.prompt is not None:
            return (Message("user", (TextPart(request.prompt),)),)
        limit = self._settings.max_messages
        if len(request.messages) > limit:
            raise InvalidData(f"a turn takes {limit} messages at most (completion.max_messages)")
        if request.messages[-1].role != "user" or not request.messages[-1].parts:
            raise InvalidData("the last message must be the user's, and say something")
        return request.messages

    def _check(self, verdict: str, asked: Asked) -> None:
        settings = self._settings
        if verdict == "other":
            raise Conflict(f"the request_id {asked.request_id} was that of another request")
        if verdict == "archived":
            raise Conflict(
                f"the conversation {asked.conversation} is archived: take it out again first "
                "(conversation:archive with archived=false; ksi conversation archive --undo)"
            )
        if verdict == "denied":
            raise NotFound(f"there is no conversation {asked.conversation}")
        if verdict == "full":
            raise Busy(
                f"{settings.max_waiting_turns} turns wait in the conversation "
                f"{asked.conversation} (completion.max_waiting_turns)",
                retry_after_s=5.0,
            )
        if verdict == "deep":
            raise Busy(
                f"as many turns as may wait for one another already (completion.max_depth: "
                f"{settings.max_depth}, or an agent's limits.depth): answer without asking another "
                "agent",
                details={"kind": "depth", "setting": "completion.max_depth"},
            )


def prompt_of(request: CompletionAsync) -> str:
    """Return what the user says last, as far as it is text."""
    if request.prompt is not None:
        return request.prompt
    last = request.messages[-1].parts if request.messages else ()
    return next((part.text for part in last if isinstance(part, TextPart)), "")


def _permit_of(request: CompletionAsync, conversation: str, context: Context) -> ToolPermit | None:
    """Return what a conversation may call that is made with tools: no more than who makes it."""
    if request.tools is None:
        return None
    parent = None
    if context.agent is not None:
        parent = f"agent:{context.agent}"
    elif context.conversation is not None:
        parent = f"conversation:{context.conversation}"
    elif is_bearers(context):
        return None  # whoever has a token can't hand on more than what may be called by all
    allow = (*request.tools, CLIENT_TOOL) if request.client_tools else request.tools
    return ToolPermit(subject=f"conversation:{conversation}", allow=allow, parent=parent)


def check_client_tools(tools: tuple[ToolSchema, ...]) -> None:
    """Refuse tools of a client that no model could be offered.

    Raises:
        InvalidData: One has no name that models take, or the name of another; they are too large.
    """
    names: set[str] = set()
    for place, each in enumerate(tools):
        path = {"path": f"$.client_tools[{place}].name"}
        if NAME.fullmatch(each.name) is None:
            raise InvalidData(
                f"client_tools[{place}]: a tool's name has letters, digits, _ and -, 64 at most",
                details=path,
            )
        if each.name in names:
            raise InvalidData(
                f"client_tools[{place}]: there are two tools {each.name}", details=path
            )
        names.add(each.name)
    if len(msgspec.json.encode(tools)) > MAX_CLIENT_TOOLS_BYTES:
        raise InvalidData(
            f"the client's tools come to more than {MAX_CLIENT_TOOLS_BYTES:,} bytes",
            details={"path": "$.client_tools"},
        )


def is_bound(context: Context) -> bool:
    """Say whether an event's sender is bound to what his token names, and not a plugin's."""
    return context.origin.startswith(TOKEN_PREFIX)


def _check_bounds(request: CompletionAsync, context: Context) -> None:
    if not is_bound(context):
        return
    if context.agent is not None and request.agent not in (None, context.agent):
        raise Denied(f"a token of the agent {context.agent} can't act as {request.agent}")
    bound = context.conversation
    if bound is not None and request.conversation_id not in (None, bound):
        raise NotFound(f"there is no conversation {request.conversation_id}")


def said(message: Message) -> Said:
    """Return a message with what is kept beside it."""
    return Said(message, body_of(message.parts), tokens.of_parts(message.parts))


def run_of(tenant: str, key: str) -> str:
    """Return the id of the run that a tenant starts under a key."""
    return key if tenant == "default" else f"{tenant}:{key}"


def key_of(tenant: str, run: str) -> str:
    """Return the key under which a tenant starts a run of that id."""
    return run if tenant == "default" else run.removeprefix(f"{tenant}:")


def digest_of(request: CompletionAsync) -> str:
    """Return a digest of what is asked, whatever its id."""
    plain = msgspec.structs.replace(request, request_id=None)
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()


def title_of(prompt: str) -> str:
    """Return the beginning of a prompt, in one line, up to the end of a word."""
    line = " ".join(prompt[:1000].split())
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[:TITLE_CHARACTERS].rsplit(" ", 1)[0]
    return f"{cut[:TITLE_CHARACTERS]}…"
