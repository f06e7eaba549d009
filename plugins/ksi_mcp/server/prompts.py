"""Prompts: one for each agent that is defined, and what plugins bring."""

from typing import Any, Final

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from ksi_agents.events import AgentDefinitions, DefinitionsListed
from ksi_daemon.protocol import Denied, NotFound
from ksi_mcp.events import McpOffered, McpPrompt, McpPrompted
from ksi_mcp.server import asking
from ksi_mcp.server.asks import MANY, ask, asked, pages
from ksi_mcp.server.calling import MAX_ROUNDS, State, read_state
from ksi_mcp.server.reach import Reach

Ctx = ServerRequestContext[Any, Any]
Got = types.GetPromptResult | types.InputRequiredResult

ASK: Final = "ask_agent"
AGENT, PROMPT = "agent", "prompt"
MAX_NAME: Final = 200
TASK: Final = types.PromptArgument(name=PROMPT, description="What it is to do.", required=True)
ASK_ANY: Final = types.Prompt(
    name=ASK,
    description="Have an agent do something.",
    arguments=[
        types.PromptArgument(name=AGENT, description="Which agent.", required=True),
        TASK,
    ],
)
WORDS: Final = (
    "Have the agent {agent} do the following, by the tool ask_agent, and tell me its answer:\n\n"
    "{prompt}"
)


async def listed(reach: Reach) -> dict[str, types.Prompt]:
    """Return the prompts that a caller may get, by name; what is ours goes before what is not."""
    found = {ASK: ASK_ANY} if reach.may("agents:read") else {}
    for name, description in (await definitions(reach)).items():
        told = types.Prompt(name=name, description=description, arguments=[TASK])
        found.setdefault(name, told)
    offered = await asked(reach, "mcp:offers", result_type=McpOffered)
    for told in () if offered is None else offered.prompts:
        prompt = types.Prompt.model_validate(told, by_name=False)
        found.setdefault(prompt.name, prompt)
    return found


async def definitions(reach: Reach) -> dict[str, str]:
    """Return the agents that are defined, and what each is for."""
    first = AgentDefinitions(limit=MANY)
    told = pages(reach, "agent:definitions", first, result_type=DefinitionsListed)
    return {each.name: each.description async for page in told for each in page.definitions}


async def get(
    ctx: Ctx, reach: Reach, params: types.GetPromptRequestParams, ask_timeout_s: float
) -> Got:
    """Return a prompt.

    Raises:
        MCPError: There is none of that name, or an argument is missing.
    """
    given = params.arguments or {}
    known = await definitions(reach)
    if params.name == ASK and reach.may("agents:read"):
        return _of_agent(params.name, _argument(given, AGENT), _argument(given, PROMPT))
    if params.name in known:
        return _of_agent(known[params.name], params.name, _argument(given, PROMPT))
    if not 0 < len(params.name) <= MAX_NAME:
        raise _none(params.name)
    try:
        return await _offered(ctx, reach, params, ask_timeout_s)
    except (NotFound, Denied) as error:
        raise _none(params.name) from error


def _none(name: str) -> MCPError:
    return MCPError(types.INVALID_PARAMS, f"there is no prompt {name[:MAX_NAME]!r} here")


def _argument(given: dict[str, str], name: str) -> str:
    if not given.get(name):
        raise MCPError(types.INVALID_PARAMS, f"the prompt needs the argument {name!r}")
    return given[name]


def _of_agent(description: str, agent: str, prompt: str) -> types.GetPromptResult:
    words = WORDS.format(agent=agent, prompt=prompt)
    message = types.PromptMessage(role="user", content=types.TextContent(text=words))
    return types.GetPromptResult(description=description, messages=[message])


async def _offered(
    ctx: Ctx, reach: Reach, params: types.GetPromptRequestParams, ask_timeout_s: float
) -> Got:
    """Return a plugin's prompt, having asked what it wants to know."""
    is_modern = asking.is_modern(ctx)
    answers = asking.plain_answers(params.input_responses)
    wanted = read_state(params.request_state).tool
    for _ in range(MAX_ROUNDS):
        request = McpPrompt(
            name=params.name,
            arguments=params.arguments or {},
            capabilities=asking.capabilities_of(ctx),
            answers=answers,
            state=wanted,
        )
        told = await ask(reach, "mcp:prompt", request, result_type=McpPrompted)
        if told.asks is None:
            return types.GetPromptResult.model_validate(told.prompt, by_name=False)
        asking.check(ctx, told.asks, is_modern=is_modern)
        if is_modern:
            return asking.required(told.asks, State(tool=told.state))
        answers = await asking.answers_of(ctx, told.asks, ask_timeout_s)
        wanted = told.state
    raise MCPError(types.INTERNAL_ERROR, f"the prompt asked {MAX_ROUNDS} times")
