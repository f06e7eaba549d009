"""Calls the tools of a server, and has a person asked what it wants to know in their middle."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

from ksi_daemon.protocol import Failed, TimedOut, Unavailable
from ksi_mcp.client.asking import forms
from ksi_mcp.client.asking.dialogues import Dialogue, Key, Parked
from ksi_mcp.client.asking.forms import Form
from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.client.reach import Reach
from ksi_mcp.client.tools import results
from ksi_mcp.client.tools.definitions import Definition
from ksi_mcp.client.tools.offer import Offer
from ksi_mcp.client.tools.text import fenced
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.exchange import Content
from ksi_mcp.settings import McpSettings
from ksi_tools.api import Question, ToolContext

MayAsk = Callable[[], Awaitable[bool]]
LEFT: Final = "its connection was ended, or its daemon, before a person had answered"


class Calls:
    """The calls of one server's tools.

    Args:
        server: The server's name.
        settings: The bounds.
        reach: The way to it.
        offer: Its tools.
        may_ask: Says whether whoever calls may ask a person.
    """

    def __init__(
        self, server: str, settings: McpSettings, reach: Reach, offer: Offer, may_ask: MayAsk
    ) -> None:
        self._server = server
        self._settings = settings
        self._reach = reach
        self._offer = offer
        self._may_ask = may_ask
        self._parked = Parked()

    async def call(self, name: str, arguments: dict[str, Any], context: ToolContext) -> Any:
        """Call a tool, or go on with a call now that a person has answered.

        Raises:
            Question: The server wants to know something before it goes on.
        """
        tool = self._offer.tool(name)
        if context.answer is None:
            result = await self._called(name, tool, arguments, context)
        else:
            result = await self._gone_on(context, context.answer)
        return await asyncio.to_thread(self._told, tool, result)

    async def _called(
        self, name: str, tool: Definition, arguments: dict[str, Any], context: ToolContext
    ) -> dict[str, Any]:
        """Call a tool; once more where the server is gone that has not got the call."""
        for attempt in (1, 2):
            connection = await self._connected()
            if self._offer.tool(name) != tool:  # it has just said something else of it
                raise self._offer.denied(name)
            dialogue = connection.begin(tool.name, arguments, context.progress)
            try:
                return await self._heard(dialogue, context)
            except NotSentError as error:
                connection.end()
                if attempt == 2:
                    raise Unavailable(
                        self._fenced(str(error)), retry_after_s=self._settings.retry_s
                    ) from error
        raise AssertionError

    async def _gone_on(self, context: ToolContext, answer: str) -> dict[str, Any]:
        """Tell the server what a person has answered, and wait for what comes of the call."""
        dialogue = self._parked.take(_key(context))
        if dialogue is None:
            raise TimedOut(f"{self._server}: {LEFT}")
        form = dialogue.form
        if form is not None:  # else it waits for an answer no more
            try:
                dialogue.answer(forms.answers_in(form, answer))
            except forms.MisfitError as error:
                self._ask(dialogue, form, context, f"{error}. ")
        try:
            return await self._heard(dialogue, context)
        except NotSentError as error:
            raise TimedOut(self._fenced(str(error))) from error

    async def _heard(self, dialogue: Dialogue, context: ToolContext) -> dict[str, Any]:
        """Wait for what comes of a call, unless a person is to be asked before.

        Raises:
            NotSentError: The server has not got it.
            Question: A person is to answer.
        """
        try:
            while isinstance(told := await dialogue.told(), Form):
                if await self._may_ask():
                    self._ask(dialogue, told, context)
                dialogue.answer(None)
        except LostError as error:
            raise TimedOut(self._fenced(str(error))) from error
        except AnswerError as error:
            raise Failed(self._fenced(str(error))) from error
        except asyncio.CancelledError:
            dialogue.cancel()
            raise
        return told

    def _ask(self, dialogue: Dialogue, form: Form, context: ToolContext, why: str = "") -> NoReturn:
        self._parked.park(_key(context), dialogue)
        raise Question(why + forms.question_of(form, self._server, _mark()))

    def drop(self, tenant: str, call_id: str) -> None:
        """Ask nobody any more what is asked in a call, if one is."""
        self._parked.drop((tenant, call_id))

    async def _connected(self) -> Connection:
        """Connect; when the call is ended meanwhile, that is no doubt: nobody was asked anything.

        Raises:
            Unavailable: There is no connection.
        """
        try:
            return await self._reach.connected()
        except Unavailable as error:  # it may tell what the server has said as it failed
            fenced_why = self._fenced(error.message)
            raise Unavailable(fenced_why, retry_after_s=error.retry_after_s) from error
        except asyncio.CancelledError as error:
            raise Unavailable(f"{self._server} was not connected in time") from error

    def _told(self, tool: Definition, result: dict[str, Any]) -> str | Content:
        told = results.returned_of(result, tool.output, self._fenced)
        if result.get("isError"):
            raise Failed(told if isinstance(told, str) else told.shown())
        return told

    def _fenced(self, text: str) -> str:
        return fenced(text, self._server, _mark())


def _key(context: ToolContext) -> Key:
    return context.tenant, context.call_id


def _mark() -> str:
    return f"-----{secrets.token_hex(6)}-----"
