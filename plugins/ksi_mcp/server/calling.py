"""Calls tools for a caller, and has asked what has to be asked of whoever sits there."""

from contextlib import aclosing
from typing import Any, Final
from uuid import uuid4

import mcp_types as types
import msgspec
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from msgspec import Struct
from msgspec.structs import replace

from ksi_daemon.protocol import KsiError, Unavailable
from ksi_mcp.events import McpCall, McpCalled, McpCalling
from ksi_mcp.server import asking, results
from ksi_mcp.server.catalogue import Offered
from ksi_mcp.server.levels import Levels
from ksi_mcp.server.reach import Reach
from ksi_tools.events import (
    ToolAnswer,
    ToolCall,
    ToolCalled,
    ToolOutput,
    ToolOutputPart,
    ToolResolve,
)

Ctx = ServerRequestContext[Any, Any]
Answer = types.CallToolResult | types.InputRequiredResult

MAX_ROUNDS: Final = 8
FIRST: Final = 100_000  # tells whether the rest is wanted
PART: Final = 1_000_000
MAX_WHOLE: Final = 32_000_000
QUESTION: Final = "question"


class State(Struct, frozen=True, omit_defaults=True):
    """What comes back with the answers of a program that knows no sessions.

    Attributes:
        call_id: The call that waits for a person's answer.
        tool: What the tool itself wanted back.
    """

    call_id: str | None = None
    tool: str | None = None


class Calling:
    """Makes one call.

    Args:
        ctx: The request.
        reach: The daemon, in the caller's name.
        levels: What of the log is told.
        ask_timeout_s: How long a person may take to answer, where the call waits for it.
    """

    def __init__(self, ctx: Ctx, reach: Reach, levels: Levels, ask_timeout_s: float) -> None:
        self._ctx = ctx
        self._reach = reach
        self._levels = levels
        self._ask_timeout_s = ask_timeout_s
        self._is_modern = asking.is_modern(ctx)
        self._done = -1.0

    async def make(self, offered: Offered, params: types.CallToolRequestParams) -> Answer:
        """Make a call, or go on with one; what goes wrong with it is told to the model."""
        arguments = params.arguments or {}
        if offered.event is not None:
            arguments = {"event": offered.event, "data": arguments}
        state = read_state(params.request_state)
        answers = asking.plain_answers(params.input_responses)
        try:
            if state.call_id is not None:
                given = (answers or {}).get(QUESTION)
                return await self._answered(offered, arguments, state.call_id, given)
            return await self._called(offered, arguments, answers, state.tool)
        except KsiError as error:
            return results.of_error(self._reach, error)

    async def _called(
        self,
        offered: Offered,
        arguments: dict[str, Any],
        answers: dict[str, Any] | None,
        state: str | None,
    ) -> Answer:
        """Call a tool, as often as it asks for something."""
        for _ in range(MAX_ROUNDS):
            told = await self._told(offered, arguments, answers, state)
            if told.asks is None:
                assert told.called is not None  # else it has not ended
                return await self._ended(offered, arguments, told.called)
            asking.check(self._ctx, told.asks, is_modern=self._is_modern)
            if self._is_modern:
                return asking.required(told.asks, State(tool=told.state))
            answers = await asking.answers_of(self._ctx, told.asks, self._ask_timeout_s)
            state = told.state
        raise MCPError(types.INTERNAL_ERROR, f"the tool asked {MAX_ROUNDS} times")

    async def _ended(
        self, offered: Offered, arguments: dict[str, Any], called: ToolCalled
    ) -> Answer:
        """Return what came of a call; a person who is to answer is asked here, if that can be."""
        if called.status != "waiting" or not asking.can_elicit(self._ctx):
            return results.of_called(await self._whole(called))
        asks = {QUESTION: asking.question(called.content)}
        if self._is_modern:
            return asking.required(asks, State(call_id=called.call_id))
        answers = await asking.answers_of(self._ctx, asks, self._ask_timeout_s)
        return await self._answered(offered, arguments, called.call_id, answers.get(QUESTION))

    async def _whole(self, called: ToolCalled) -> ToolCalled:
        """Return a call with all of its output, where that is blocks of MCP."""
        if called.output_ref is None:
            return called
        content = ""
        while len(content) < MAX_WHOLE:
            limit = PART if content else FIRST
            ask = ToolOutput(output_ref=called.output_ref, offset=len(content), limit=limit)
            part: ToolOutputPart = await self._reach.ask(
                "tool:output", ask, result_type=ToolOutputPart
            )
            content += part.content
            if not content.startswith(results.START):
                return called
            if part.next_offset is None:
                return replace(called, content=content, output_ref=None)
        return called

    async def _answered(
        self, offered: Offered, arguments: dict[str, Any], call_id: str, answer: Any
    ) -> Answer:
        """Go on with a call that waits for a person; who has not answered is asked again."""
        if asking.is_answer(answer):
            await self._put_down(call_id, asking.answer_in(answer))
        ask = ToolCall(name=offered.tool, arguments=arguments, call_id=call_id)
        called: ToolCalled = await self._reach.ask("tool:call", ask, result_type=ToolCalled)
        return await self._ended(offered, arguments, called)

    async def _put_down(self, call_id: str, content: str | None) -> None:
        """Put a person's answer down as the call's result; without one the call is dropped."""
        if content is None:
            resolve = ToolResolve(call_id=call_id, verdict="drop")
            await self._reach.ask("tool:resolve", resolve)
        else:
            await self._reach.ask("tool:answer", ToolAnswer(call_id=call_id, content=content))

    async def _told(
        self,
        offered: Offered,
        arguments: dict[str, Any],
        answers: dict[str, Any] | None,
        state: str | None,
    ) -> McpCalling:
        """Have a tool called, tell of its progress, and return the last that it says.

        Where the daemon goes away meanwhile it is asked again, by the call's id: that is the same
        call, and never a second effect.
        """
        call = McpCall(
            name=offered.tool,
            arguments=arguments,
            call_id=uuid4().hex,
            logs=self._levels.wants_any(self._ctx),
            capabilities=asking.capabilities_of(self._ctx),
            answers=answers,
            state=state,
        )
        try:
            return await self._heard(call)
        except Unavailable:
            try:
                return await self._heard(call)
            except Unavailable as error:
                told = f"{error.message}; whether it was called is in: ksi tool calls"
                raise Unavailable(told, retry_after_s=error.retry_after_s) from error

    async def _heard(self, call: McpCall) -> McpCalling:
        if not self._is_followed():
            quiet: McpCalled = await self._reach.ask(
                "mcp:call_quietly", call, result_type=McpCalled
            )
            for line in quiet.said:
                await self._tell(line)
            return quiet.last
        said = self._reach.follow("mcp:call", call, result_type=McpCalling)
        last = McpCalling()
        async with aclosing(said):
            async for last in said:
                if last.called is None and last.asks is None:
                    await self._tell(last)
        return last

    def _is_followed(self) -> bool:
        """Say whether the caller wants to know of the call while it is made."""
        meta = self._ctx.meta
        return (meta is not None and "progress_token" in meta) or self._levels.are_set(self._ctx)

    async def _tell(self, said: McpCalling) -> None:
        """Tell of a line of the log, or of progress, which has to grow each time it is told."""
        if said.level is not None:
            await self._levels.tell(self._ctx, said.level, said.data)
            return
        done = self._done + 1 if said.done is None else said.done
        if done > self._done:
            self._done = done
            await self._ctx.session.report_progress(done, said.total, said.message or None)


def read_state(state: str | None) -> State:
    """Return what was sent along to come back: what comes was sealed, so it is ours."""
    return State() if state is None else msgspec.json.decode(state, type=State)
