"""Makes what a turn's model is asked, with what falls out of its window summed up first."""

from typing import Final

from ksi_completion import tokens
from ksi_completion.context import Asking, Built, Contexts
from ksi_completion.events import StreamStatus
from ksi_completion.summaries import Summaries
from ksi_completion.work import Work
from ksi_models.events import ModelResponse, ToolSchema

SUMMING_UP: Final = StreamStatus(waits_for="summary", message="summing up what was said before")
SUMMED_UP: Final = StreamStatus(waits_for="model", message="it is summed up")


class Prompts:
    """Makes prompts, and learns from what they came to.

    Args:
        contexts: Fits conversations into windows.
        summaries: Sums up what does not fit.
        calibration: Knows how many tokens a model makes of a text.
    """

    def __init__(
        self, contexts: Contexts, summaries: Summaries, calibration: tokens.Calibration
    ) -> None:
        self._contexts = contexts
        self._summaries = summaries
        self._calibration = calibration

    async def build(self, work: Work, schemas: tuple[ToolSchema, ...]) -> Built:
        """Return what the model is asked in a step of a turn."""
        asking = Asking(
            tenant=work.tenant,
            conversation=work.conversation,
            turn=work.row["number"],
            run=work.run,
            agent=work.row["agent"],
            models=work.models,
            system=work.system,
            tools=schemas,
            settings=work.model_settings,
            output_schema=work.output_schema,
            priority=work.options.priority,
            is_told=work.profile is None or work.profile.is_told,
        )
        built = await self._contexts.build(asking)
        if built.wants_summary is None:
            return built
        work.live.show(SUMMING_UP)
        if await self._summaries.summarize(asking, built):
            built = await self._contexts.build(asking)
        work.live.show(SUMMED_UP)
        return built

    def observe(self, built: Built, response: ModelResponse) -> None:
        """Learn how many tokens a prompt came to."""
        if not response.is_estimated:
            self._calibration.observe(response.model, built.estimated, response.usage.input_tokens)
