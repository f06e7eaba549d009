"""The mailboxes of agents: what is accepted is worked off once, and in its order.

A message is given to a conversation's turn under a request id of its own, so that giving it twice
is giving it once; whoever sees the turn's end ends the message, and gives the next one.
"""

import asyncio
import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from ksi_agents.agents import Agents, Given, Going, Kept, Posted
from ksi_agents.events import (
    AgentAnswered,
    AgentAsk,
    AgentSend,
    AgentSent,
    Mail,
    MailStatus,
)
from ksi_agents.inputs import check_input
from ksi_agents.missing import Missing
from ksi_agents.reconcile import Reconciler
from ksi_agents.settings import AgentsSettings
from ksi_completion.events import (
    CompletionAccepted,
    CompletionAsync,
    CompletionCancel,
    CompletionCancelled,
    CompletionResult,
    CompletionWait,
)
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import (
    Busy,
    Conflict,
    Context,
    ErrorBody,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_postgres.news import News
from ksi_postgres.patience import until_there

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 5.0  # where a word that was told got lost
NOTE_AFTER_S: Final = 0.2  # most answers are there before anybody asks who is at them
GIVE_AGAIN_S: Final = 0.5
GIVE_TIMES: Final = 20
TRANSIENT: Final = (Unavailable, Busy, TimedOut)
ENDED: Final = ("succeeded", "failed", "cancelled")
MAIL_ENDED: Final = "mail-ended"
_REQUEST: Final = re.compile(r"mail-([0-9a-f]{12})-([0-9]{1,18})")

Key = tuple[str, str, int]


def request_of(agent_id: str, number: int) -> str:
    """Return the request id under which a message is given."""
    return f"mail-{agent_id}-{number}"


def mail_of_request(request_id: str) -> tuple[str, int] | None:
    """Return whose message it is that was given under a request id, and which."""
    match = _REQUEST.fullmatch(request_id)
    return None if match is None else (match[1], int(match[2]))


class Mailbox:
    """Takes messages for agents, gives them, and waits for what comes of them.

    Args:
        settings: The plugin's.
        agents: Keeps the messages.
        bus: Has the turns.
        news: Tells other daemons of messages that somebody waits for there.
        reconciler: Sees to it that a message is given.
        missing: Says of an agent that is not there what to do.
    """

    def __init__(
        self,
        settings: AgentsSettings,
        agents: Agents,
        bus: Bus,
        news: News,
        reconciler: Reconciler,
        missing: Missing,
    ) -> None:
        self._settings = settings
        self._agents = agents
        self._bus = bus
        self._news = news
        self._reconciler = reconciler
        self._missing = missing
        self._me = secrets.token_hex(4)
        self._asking: defaultdict[Key, set[asyncio.Future[AgentAnswered | None]]] = defaultdict(set)
        self._runs: dict[Key, str] = {}
        self._unnoted: dict[Key, str] = {}
        self._has_unnoted = asyncio.Event()
        news.on(MAIL_ENDED, self._told)
        news.on_missed(self._missed)

    # -- taking ---------------------------------------------------------------------------------

    async def send(self, request: AgentSend, context: Context) -> AgentSent:
        """Keep a message.

        Raises:
            NotFound: There is no such agent.
            InvalidData: It is not what the agent's definition wants to be told.
            Conflict: It has ended, or the message's id is that of another one.
            Busy: Its mailbox is full.
        """
        await self._check(context, request.agent, request.prompt)
        message_id = request.message_id or secrets.token_hex(12)
        posted = await self._agents.post(
            context,
            request.agent,
            message_id,
            request.prompt,
            is_awaited=False,
            asker=None,
            max_mailbox=self._settings.max_mailbox,
        )
        going = await self._accepted(context, posted, message_id)
        self._begin(posted, going)
        before = 0 if posted.verdict == "given" else max(going.agent.waiting - 1, 0)
        return AgentSent(
            agent=request.agent, message_id=message_id, number=posted.number, waiting=before
        )

    async def ask(self, request: AgentAsk, context: Context) -> AgentAnswered:
        """Keep a message, and wait for what comes of it.

        Raises:
            NotFound: There is no such agent.
            InvalidData: It is not what the agent's definition wants to be told.
            Conflict: It has ended, it waits for the sender, or the message's id is another one's.
            Busy: Its mailbox is full.
        """
        until = asyncio.get_running_loop().time() + request.timeout_s
        await self._check(context, request.agent, request.prompt)
        message_id = request.message_id or secrets.token_hex(12)
        posted = await self._agents.post(
            context,
            request.agent,
            message_id,
            request.prompt,
            is_awaited=True,
            asker=self._me,
            max_mailbox=self._settings.max_mailbox,
        )
        going = await self._accepted(context, posted, message_id)
        with self._awaiting((going.agent.tenant, going.agent.id, posted.number)) as answer:
            self._begin(posted, going)
            if posted.verdict == "given":
                await asyncio.wait({answer}, timeout=_left(until))
            told = await self._answer(going.agent, posted.number, answer, until)
        if told.status not in ENDED and context.agent is not None:
            await self._agents.end_wait(going.agent.tenant, going.agent.id, posted.number)
        return msgspec.structs.replace(told, message_id=message_id)

    async def _check(self, context: Context, name: str, prompt: str) -> None:
        known = await self._agents.who(context.tenant, name)
        if known is not None and context.user in (None, known.owner):
            definition = await self._agents.definition_of(known, context.tenant)
            check_input(name, definition.input, prompt)

    def _begin(self, posted: Posted, going: Going) -> None:
        if posted.verdict == "given":
            self._reconciler.go_on(going, was="Ready")

    async def _accepted(self, context: Context, posted: Posted, message_id: str) -> Going:
        name, bound = posted.to, self._settings.max_mailbox
        if posted.verdict == "not_found" or posted.going is None:
            raise await self._missing.error(context, name)
        if posted.verdict == "other":
            raise Conflict(f"the message_id {message_id} was that of another message to {name}")
        if posted.verdict == "ended":
            raise Conflict(
                f"the agent {name} has ended ({posted.going.agent.phase}): spawn another one"
            )
        if posted.verdict == "full":
            raise Busy(
                f"{bound} messages wait in the mailbox of {name} (agents.max_mailbox)",
                retry_after_s=5.0,
                details={"kind": "mailbox", "setting": "agents.max_mailbox"},
            )
        if posted.verdict == "cycle":
            raise Conflict(
                f"{name} waits for the one that asks it, so neither would ever be answered: "
                "answer without asking it, or send it a message and don't wait",
                details={"kind": "cycle"},
            )
        return posted.going

    # -- waiting --------------------------------------------------------------------------------

    @contextmanager
    def _awaiting(self, key: Key) -> Iterator["asyncio.Future[AgentAnswered | None]"]:
        future: asyncio.Future[AgentAnswered | None] = asyncio.get_running_loop().create_future()
        self._asking[key].add(future)
        try:
            yield future
        finally:
            self._asking[key].discard(future)
            if not self._asking[key]:
                del self._asking[key]

    async def _answer(
        self,
        agent: Kept,
        number: int,
        answer: "asyncio.Future[AgentAnswered | None]",
        until: float,
    ) -> AgentAnswered:
        """Wait for an answer that is told here; look for one that was told elsewhere."""
        while True:
            told = answer.result() if answer.done() else None
            if told is not None:
                return told
            found = await self._agents.mail(agent.tenant, agent.id, number)
            if found is None:
                raise NotFound(f"the message {number} to {agent.name} is gone with its agent")
            shown = await self._shown(agent, found[0])
            if shown.status in ENDED or shown.error is not None or _left(until) <= 0:
                return shown
            if answer.done():
                answer = self._again(agent, number, answer)
            await asyncio.wait({answer}, timeout=min(_left(until), LOOK_AGAIN_S))

    def _again(
        self, agent: Kept, number: int, answer: "asyncio.Future[AgentAnswered | None]"
    ) -> "asyncio.Future[AgentAnswered | None]":
        """Wait anew, where it was only said that something may have happened."""
        asking = self._asking[agent.tenant, agent.id, number]
        asking.discard(answer)
        future: asyncio.Future[AgentAnswered | None] = asyncio.get_running_loop().create_future()
        asking.add(future)
        return future

    async def _shown(self, agent: Kept, mail: Mail) -> AgentAnswered:
        """Return how a message stands, of what is kept."""
        if mail.run_id is not None and mail.status in ENDED:
            with suppress(NotFound), acting_as(_name_of(agent)):
                wait = CompletionWait(run_id=mail.run_id, timeout_s=0.0)
                result = await self._bus.request(
                    "completion:wait", wait, result_type=CompletionResult
                )
                return answered(agent.name, result)
        error = mail.error
        if mail.status == "waiting":
            error = await self._why_waiting(agent)
        return AgentAnswered(
            agent=agent.name,
            message_id=mail.message_id,
            status=mail.status,
            run_id=mail.run_id or self._runs.get((agent.tenant, agent.id, mail.number)),
            conversation_id=agent.conversation,
            error=error,
        )

    async def _why_waiting(self, agent: Kept) -> ErrorBody | None:
        """Say that a message waits for a person: its agent has failed for good."""
        now = await self._agents.find(_name_of(agent), agent.name)
        if now is None or now.id != agent.id or now.phase != "Failed":
            return None
        return Unavailable(
            f"the agent {agent.name} has failed ({now.reason}); the message is worked off once it "
            "is restarted: agent:restart (ksi agent restart)"
        ).body

    def look(self, agent: Kept) -> None:
        """Have those look who wait for messages to an agent: it has changed."""
        for key in [key for key in self._asking if key[:2] == (agent.tenant, agent.id)]:
            self._wake(key, None)

    def _told(self, about: str) -> None:
        tenant, _, rest = about.rpartition("/")
        agent_id, _, number = rest.partition(":")
        self._wake((tenant, agent_id, int(number)), None)

    def _missed(self) -> None:
        for key in list(self._asking):
            self._wake(key, None)

    def _wake(self, key: Key, answer: AgentAnswered | None) -> None:
        for future in self._asking.get(key, ()):
            if not future.done():
                future.set_result(answer)

    # -- giving ---------------------------------------------------------------------------------

    async def give(self, agent: Kept, given: Given, was: str | None) -> None:
        """Have a turn for a message; for one that has ended meanwhile, end it."""
        key = (agent.tenant, agent.id, given.number)
        for _ in range(GIVE_TIMES):
            try:
                accepted = await self._accept(agent, given)
                break
            except TRANSIENT as error:
                if isinstance(error, Busy) and (error.details or {}).get("kind") == "depth":
                    await self._refuse(agent, given, error)
                    return
                await asyncio.sleep(error.retry_after_s or GIVE_AGAIN_S)
            except KsiError as error:
                await self._refuse(agent, given, error)
                return
        else:
            return  # the sweep goes on with it
        self._runs[key] = accepted.run_id
        self._reconciler.tell(agent, was, accepted.run_id)
        if accepted.status in ENDED:
            await self._settle(agent, accepted.run_id)
        elif agent.run is None:
            self._unnoted[key] = accepted.run_id
            self._has_unnoted.set()

    async def _accept(self, agent: Kept, given: Given) -> CompletionAccepted:
        context = given.context
        with acting_as(
            Context(
                "",
                tenant=agent.tenant,
                user=agent.owner,
                run=context.run,
                principal=context.principal,
            )
        ):
            turn = CompletionAsync(
                prompt=given.prompt,
                conversation_id=agent.conversation,
                agent=agent.name,
                request_id=request_of(agent.id, given.number),
            )
            accepted: CompletionAccepted = await self._bus.request(
                "completion:async", turn, result_type=CompletionAccepted
            )
        return accepted

    async def _refuse(self, agent: Kept, given: Given, error: KsiError) -> None:
        """End a message that no turn can be had for."""
        answer = AgentAnswered(
            agent=agent.name,
            message_id=given.message_id,
            status="failed",
            conversation_id=agent.conversation,
            error=error.body,
        )
        await self._end(
            (agent.tenant, agent.id, given.number), "failed", error.body, None, lambda _: answer
        )

    async def _settle(self, agent: Kept, run: str) -> None:
        """End the message of a turn whose end nobody has told."""
        with acting_as(_name_of(agent)):
            wait = CompletionWait(run_id=run, timeout_s=0.0)
            result = await self._bus.request("completion:wait", wait, result_type=CompletionResult)
        if result.status in ENDED:
            await self.ended(agent.tenant, result)

    # -- ending ---------------------------------------------------------------------------------

    def see(self, tenant: str, result: CompletionResult) -> None:
        """See that a turn has ended, which may be a message's."""
        mail = mail_of_request(result.request_id)
        if mail is not None:
            key = ("end", tenant, mail[0], str(mail[1]))
            self._reconciler.begin(key, lambda: self.ended(tenant, result))

    async def ended(self, tenant: str, result: CompletionResult) -> None:
        """End the message of a turn that has ended."""
        mail = mail_of_request(result.request_id)
        if mail is None:
            return
        await self._end(
            (tenant, *mail),
            result.status,
            result.error,
            result.run_id,
            lambda agent: answered(agent.name, result),
        )

    async def _end(
        self,
        key: Key,
        status: str,
        error: ErrorBody | None,
        run: str | None,
        make: Callable[[Kept], AgentAnswered],
    ) -> None:
        if status == "failed" and error is None:
            error = ErrorBody("failed", "the turn failed")
        kept = self._settings.kept_log_entries
        done = await until_there(lambda: self._agents.end_mail(*key, status, error, run, kept))
        self._runs.pop(key, None)
        self._unnoted.pop(key, None)
        if done is None:  # somebody else has
            self._wake(key, None)
            return
        asker, going = done
        if asker not in (None, self._me):
            self._news.tell(MAIL_ENDED, f"{key[0]}/{key[1]}:{key[2]}")
        if key in self._asking:
            self._wake(key, make(going.agent))
        self._reconciler.go_on(going, was="Busy")

    async def cancel(self, agent: Kept) -> None:
        """End what an agent is at, which has ended itself."""
        if agent.at_work is None:
            return
        key = (agent.tenant, agent.id, agent.at_work)
        run = self._runs.get(key) or agent.run
        if run is None:  # whether it was given or not: now it is, once
            found = await self._agents.mail(*key)
            if found is None:
                return
            run = (await self._accept(agent, found[1])).run_id
        try:
            with acting_as(_name_of(agent)):
                request = CompletionCancel(
                    run_id=run, reason=f"the agent {agent.name} was terminated"
                )
                now = await self._bus.request(
                    "completion:cancel", request, result_type=CompletionCancelled
                )
            if now.status in ENDED:
                await self._settle(agent, run)
        except NotFound:  # it has ended, and is gone with its conversation
            answer = AgentAnswered(agent=agent.name, message_id="", status="cancelled", run_id=run)
            await self._end(key, "cancelled", None, run, lambda _: answer)

    # -- telling who is at what -----------------------------------------------------------------

    async def run_notes(self) -> None:
        """Note which runs messages are worked at in, where that takes a while, for ever."""
        while True:
            await self._has_unnoted.wait()
            await asyncio.sleep(NOTE_AFTER_S)
            self._has_unnoted.clear()
            unnoted, self._unnoted = self._unnoted, {}
            if unnoted:
                with suppress(*TRANSIENT):  # it is for people to see
                    await self._agents.note_runs([(*key, run) for key, run in unnoted.items()])


def answered(name: str, result: CompletionResult) -> AgentAnswered:
    """Return what came of a message, of what came of its turn."""
    return AgentAnswered(
        agent=name,
        message_id="",
        status=msgspec.convert(result.status, MailStatus),
        text=result.text,
        output=result.output,
        run_id=result.run_id,
        conversation_id=result.conversation_id,
        cost_usd=result.cost_usd,
        error=result.error,
    )


def _name_of(agent: Kept) -> Context:
    """Return in whose name an agent's turns are looked at."""
    return Context("", tenant=agent.tenant, user=agent.owner)


def _left(until: float) -> float:
    return max(until - asyncio.get_running_loop().time(), 0.0)
