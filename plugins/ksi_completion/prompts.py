"""Makes what a turn's model is asked: all that was said in the conversation."""

from ksi_completion.messages import decode_parts
from ksi_completion.store import Store
from ksi_completion.work import Work
from ksi_models.events import Message, MessageRange, ModelCall, ToolSchema


class Prompts:
    """Reads conversations for models."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def prompt(self, work: Work, schemas: tuple[ToolSchema, ...]) -> ModelCall:
        """Return what the model is asked in a step of a turn."""
        rows = await self._store.messages(work.tenant, work.conversation)
        seen = None
        if rows:
            seen = MessageRange(
                conversation_id=work.conversation,
                first=rows[0]["number"],
                last=rows[-1]["number"],
            )
        return ModelCall(
            model=work.row["model"],
            system=work.system,
            messages=tuple(Message(row["role"], decode_parts(row["parts"])) for row in rows),
            tools=schemas,
            settings=work.model_settings,
            output_schema=work.options.output_schema,
            seen=seen,
        )
