"""Asks a model through pydantic-ai: what needs it imported, and is imported late itself."""

import inspect
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

import msgspec
from pydantic_ai import exceptions, messages
from pydantic_ai.direct import model_request_stream
from pydantic_ai.embeddings import EmbeddingModel, infer_embedding_model
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.providers import Provider, infer_provider_class
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from ksi_models.events import Usage
from ksi_models.provider import Answered, Delta, ProviderError, Question
from ksi_models.providers.answer import AnswerBuilder
from ksi_models.providers.errors import Redact, brief, refusal, unchanged
from ksi_models.providers.pydantic_messages import FINISHES, arguments_of, from_theirs, to_theirs

MAX_MODELS: Final = 1000
CACHING: Final = ("anthropic", "bedrock")  # those that cache only what they are told to


def make_provider(name: str, key: str | None, base_url: str) -> Provider[Any]:
    """Make one of their providers, with a key and not with what stands in the environment.

    Raises:
        ProviderError: Its packages are missing, or it lacks a key or a setting.
    """
    try:
        kind = infer_provider_class(name)
        wanted = inspect.signature(kind.__init__).parameters
        given = {"api_key": key, "base_url": base_url or None}
        provider: Provider[Any] = kind(
            **{name: value for name, value in given.items() if value and name in wanted}
        )
    except ImportError as error:
        raise ProviderError("refused", missing(name, error)) from error
    except ValueError as error:
        raise ProviderError("not_found", f"pydantic-ai has no provider {name!r}") from error
    except exceptions.UserError as error:
        said = f"{name} can't be used: {brief(str(error))}"
        raise ProviderError("invalid" if key else "login", said) from error
    return provider


def missing(name: str, error: ImportError) -> str:
    """Say which packages a provider needs."""
    words = str(error)
    extra = words.partition("pydantic-ai-slim[")[2].partition("]")[0] or name
    return f"{name} needs further packages: pip install 'pydantic-ai-slim[{extra}]'"


def make_model(name: str, model: str, provider: Provider[Any]) -> Model[Any]:
    """Make one of their models.

    Raises:
        ProviderError: The provider has no models that talk, or not this one.
    """
    try:
        return infer_model(f"{name}:{model}", lambda _: provider)
    except ImportError as error:
        raise ProviderError("refused", missing(name, error)) from error
    except (exceptions.UserError, ValueError) as error:
        raise ProviderError(
            "not_found", f"{name} has no such model: {brief(str(error))}"
        ) from error


def make_embedder(name: str, model: str, provider: Provider[Any]) -> EmbeddingModel:
    """Make one of their models that make vectors.

    Raises:
        ProviderError: The provider has none.
    """
    try:
        return infer_embedding_model(f"{name}:{model}", provider_factory=lambda _: provider)
    except ImportError as error:
        raise ProviderError("refused", missing(name, error)) from error
    except (exceptions.UserError, ValueError) as error:
        raise ProviderError("not_found", f"{name} makes no vectors: {brief(str(error))}") from error


async def list_models(name: str, provider: Provider[Any]) -> list[str]:
    """Ask which models there are; none where that client can't ask.

    Raises:
        ProviderError: The provider is not there, or refuses the login.
    """
    listing = getattr(getattr(provider.client, "models", None), "list", None)
    if listing is None:
        return []
    found: list[str] = []
    try:
        async for model in listing():
            found.append(str(model.id))
            if len(found) >= MAX_MODELS:
                break
    except (AttributeError, TypeError):
        return []  # its list is of another kind
    except Exception as error:  # each of its many clients raises what it likes
        raise error_of(name, error, unchanged, begun=False) from error
    return found


async def ask(
    name: str, model: Model[Any], question: Question, most: int, redacted: Redact
) -> AsyncGenerator[Delta, None]:
    """Ask, and yield what comes.

    Raises:
        ProviderError: There is no answer, or not all of it.
    """
    pieces = _Pieces(most)
    try:
        async with model_request_stream(
            model,
            to_theirs(_system(model, question), question.messages),
            model_settings=_settings(name, question),
            model_request_parameters=_parameters(model, question),
            instrument=False,
        ) as stream:
            async for event in stream:
                pieces.take(event)
                for piece in pieces.answer.take():
                    yield piece
            end = _answered(name, model, stream)
    except ProviderError:
        raise
    except Exception as error:  # each of its many clients raises what it likes
        raise error_of(name, error, redacted, begun=not pieces.answer.is_empty) from error
    yield end


class _Pieces:
    """Makes our deltas of their events."""

    def __init__(self, most: int) -> None:
        self.answer = AnswerBuilder(most)
        self._calls: dict[int, int] = {}

    def take(self, event: Any) -> None:
        if isinstance(event, PartStartEvent):
            self._begin(event.index, event.part)
        elif isinstance(event, PartDeltaEvent):
            self._go_on(event.index, event.delta)

    def _begin(self, index: int, part: messages.ModelResponsePart) -> None:
        if isinstance(part, messages.TextPart) and part.content:
            self.answer.text(part.content)
        elif isinstance(part, messages.ThinkingPart) and part.content:
            self.answer.thinking(part.content)
        elif isinstance(part, messages.ToolCallPart):
            self._calls[index] = self.answer.begin_call(part.tool_call_id, part.tool_name)
            if part.args:
                self.answer.arguments(self._calls[index], arguments_of(part.args))

    def _go_on(self, index: int, delta: messages.ModelResponsePartDelta) -> None:
        if isinstance(delta, messages.TextPartDelta):
            self.answer.text(delta.content_delta)
        elif isinstance(delta, messages.ThinkingPartDelta):
            if delta.content_delta:
                self.answer.thinking(delta.content_delta)
        elif isinstance(delta, messages.ToolCallPartDelta) and index in self._calls:
            self.answer.arguments(self._calls[index], _more(delta.args_delta))


def _more(arguments: Any) -> str:
    return arguments_of(arguments) if arguments else ""


def _answered(name: str, model: Model[Any], stream: StreamedResponse) -> Answered:
    response = stream.get()
    if _is_cut(model, response):
        raise ProviderError("cut_off", f"{name} broke its answer off")
    if response.finish_reason == "error":
        raise ProviderError("server", f"{name} ended its answer with an error")
    message = from_theirs(response)
    finish = FINISHES.get(response.finish_reason or "stop", "other")
    if any(isinstance(part, messages.ToolCallPart) for part in response.parts):
        finish = "tool_calls" if finish in ("stop", "other") else finish
    return Answered(
        message=message, finish=finish, usage=_usage(response.usage), served=response.model_name
    )


def _is_cut(model: Model[Any], response: messages.ModelResponse) -> bool:
    """Tell whether an answer never said that it was whole; OpenAI's client makes that ``stop``."""
    if (response.provider_details or {}).get("finish_reason") is not None:
        return False
    return response.finish_reason is None or isinstance(model, OpenAIChatModel)


def _usage(usage: Any) -> Usage | None:
    if not usage.input_tokens and not usage.output_tokens:
        return None
    thinking = (usage.details or {}).get("reasoning_tokens", 0)
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        thinking_tokens=thinking,
    )


def _system(model: Model[Any], question: Question) -> str | None:
    if question.output_schema is None or _follows_schemas(model):
        return question.system
    schema = msgspec.json.encode(question.output_schema).decode()
    told = f"Answer with JSON only, which follows this schema: {schema}"
    return f"{question.system}\n\n{told}" if question.system else told


def _follows_schemas(model: Model[Any]) -> bool:
    return bool(model.profile.get("supports_json_schema_output"))


def _parameters(model: Model[Any], question: Question) -> ModelRequestParameters:
    parameters = ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=tool.parameters,
            )
            for tool in question.tools
        ]
    )
    if question.output_schema is not None and _follows_schemas(model):
        parameters.output_mode = "native"
        parameters.output_object = OutputObjectDefinition(json_schema=question.output_schema)
    return parameters


def _settings(name: str, question: Question) -> ModelSettings:
    settings = question.settings
    chosen: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "stop_sequences": list(settings.stop) or None,
        "thinking": False if settings.thinking == "off" else settings.thinking,
        "tool_choice": settings.tool_choice if question.tools else None,
        "extra_body": settings.extra or None,
        # Each step of a turn sends all that was said before: the second one pays for the first.
        "cache": True if name in CACHING and question.conversation else None,
        "max_retries": 0,  # who calls makes the retries, and counts them
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return cast(ModelSettings, given)


def error_of(name: str, error: Exception, redacted: Redact, *, begun: bool) -> ProviderError:
    """Tell what is to be done about an error of theirs."""
    if isinstance(error, exceptions.ModelHTTPError):
        body = (
            error.body
            if isinstance(error.body, bytes | str)
            else msgspec.json.encode(error.body, enc_hook=str)
        )
        made = refusal(name, error.status_code, body, error.headers or {}, redacted)
        made.retry_after_s = made.retry_after_s or error.retry_after
        return made
    said = brief(str(error), redacted) or type(error).__name__
    if isinstance(error, exceptions.UserError):
        return ProviderError("invalid", f"{name} can't be asked that: {said}")
    if isinstance(error, exceptions.ContentFilterError):
        return ProviderError("refused", f"{name} filtered its answer: {said}")
    if isinstance(error, exceptions.UnexpectedModelBehavior):
        return ProviderError("malformed", f"{name} wrote what can't be read: {said}")
    if begun:
        return ProviderError("cut_off", f"{name} broke its answer off: {said}")
    if isinstance(error, exceptions.ModelConnectionError | exceptions.ModelTimeoutError | OSError):
        return ProviderError("network", f"{name} can't be reached: {said}")
    return ProviderError("server", f"{name} failed: {said}")
