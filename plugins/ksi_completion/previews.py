"""Answers ``completion:preview``: what a model would be sent."""

import msgspec

from ksi_completion.context import Asking, Contexts
from ksi_completion.conversation_handlers import new_id, own_agent
from ksi_completion.conversations import Conversations, Found, Viewer
from ksi_completion.events import (
    AgentProfile,
    CompletionAgent,
    CompletionAsync,
    CompletionPreview,
    CompletionPreviewed,
)
from ksi_completion.profiles import Profiles
from ksi_completion.tooling import Tooling
from ksi_completion.work import with_instructions
from ksi_daemon.event_system import acting_as, current_context, event_handler
from ksi_daemon.protocol import Context, InvalidData, NotFound
from ksi_models.events import Message, ModelSettings, TextPart


class Previews:
    """Shows what a model would be sent.

    Args:
        store: Has the conversations.
        contexts: Fits them into windows.
        tooling: Knows what tools a turn would have.
        profiles: Knows who the agents are.
    """

    def __init__(
        self, store: Conversations, contexts: Contexts, tooling: Tooling, profiles: Profiles
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._tooling = tooling
        self._profiles = profiles

    @event_handler("completion:preview", scope="chat:read")
    async def preview(self, request: CompletionPreview) -> CompletionPreviewed:
        """Show exactly what a model would be sent for such a turn, without sending it.

        Where the turn would have a summary made first, the one of before is shown.
        """
        turn = request.turn
        context = current_context() or Context("")
        found = await self._found(turn)
        name = found.id if found is not None else new_id()
        agent = own_agent(turn.agent) or (found.agent if found is not None else None)
        with acting_as(msgspec.structs.replace(context, agent=agent, conversation=name)):
            profile = await self._profile(agent)
            globs = globs_of(turn, found, profile)
            offer = await self._tooling.offered(globs, turn.client_tools)
            asking = Asking(
                tenant=context.tenant,
                conversation=name,
                agent=agent,
                models=models_of(turn, found, profile),
                system=system_of(turn, found, profile),
                tools=offer.schemas,
                settings=settings_of(turn, found, profile),
                output_schema=turn.output_schema or profile.output_schema,
                more=messages_of(turn),
                is_told=profile.is_told,
            )
            built = await self._contexts.build(asking)
        return CompletionPreviewed(
            model=built.described.id,
            system=built.call.system or "",
            messages=built.call.messages,
            tools=built.call.tools,
            settings=built.call.settings,
            tokens=built.tokens,
            window_tokens=built.window_tokens,
            left_out=built.left_out,
            trimmed=built.trimmed,
        )

    async def _profile(self, agent: str | None) -> AgentProfile:
        profile = None
        if agent is not None:
            profile = await self._profiles.find(CompletionAgent(agent=agent))
        return profile or AgentProfile(agent=agent or "", version=0)

    async def _found(self, turn: CompletionAsync) -> Found | None:
        """Return the turn's conversation; ``None`` where one would be made."""
        if turn.conversation_id is None:
            return None
        try:
            return await self._store.find(Viewer.current(), turn.conversation_id)
        except NotFound:
            return None


def globs_of(
    turn: CompletionAsync, found: Found | None, profile: AgentProfile
) -> list[tuple[str, ...]]:
    """Return the lists of globs of which a tool must match one each."""
    lists = (turn.tools, profile.tools, found.tools if found is not None else None)
    return [each for each in lists if each is not None]


def models_of(turn: CompletionAsync, found: Found | None, profile: AgentProfile) -> tuple[str, ...]:
    """Return the models that would be asked, the first that can answers."""
    named = turn.model or (found.model if found is not None else None)
    return profile.models if named is None else (named,)


def system_of(turn: CompletionAsync, found: Found | None, profile: AgentProfile) -> str | None:
    """Return what the model would be told before everything else."""
    system = turn.system or profile.system or (found.system if found is not None else None)
    return with_instructions(system, turn.instructions)


def settings_of(turn: CompletionAsync, found: Found | None, profile: AgentProfile) -> ModelSettings:
    """Return how the model would be told to answer."""
    if turn.settings is not None or profile.settings is not None:
        return turn.settings or profile.settings or ModelSettings()
    if found is None or found.settings is None:
        return ModelSettings()
    return msgspec.json.decode(found.settings, type=ModelSettings)


def messages_of(turn: CompletionAsync) -> tuple[Message, ...]:
    """Return what the turn would add to its conversation.

    Raises:
        InvalidData: Nothing, or both a prompt and messages.
    """
    if (turn.prompt is None) == (not turn.messages):
        raise InvalidData(
            "a turn has either a prompt, or messages", details={"path": "$.turn.prompt"}
        )
    return turn.messages if turn.prompt is None else (Message("user", (TextPart(turn.prompt),)),)
