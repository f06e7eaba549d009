"""The settings of the models."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds, Secret, variable

Above = Annotated[float, Meta(gt=0)]
Bound = Annotated[int, Meta(ge=0)]
Chain = str | tuple[str, ...]

# Where providers' own programs look for their keys. Nobody else's: another plugin may need those.
KEY_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AZURE_OPENAI_API_KEY",
    "CEREBRAS_API_KEY",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "COHERE_API_KEY",
    "CO_API_KEY",
    "DEEPSEEK_API_KEY",
    "FIREWORKS_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GROK_API_KEY",
    "GROQ_API_KEY",
    "HEROKU_INFERENCE_KEY",
    "HF_TOKEN",
    "LITELLM_API_KEY",
    "MISTRAL_API_KEY",
    "MOONSHOTAI_API_KEY",
    "NEBIUS_API_KEY",
    "OLLAMA_API_KEY",
    "OPENAI_API_KEY",
    "OPENROUTER_API_KEY",
    "OVHCLOUD_API_KEY",
    "SAMBANOVA_API_KEY",
    "TOGETHER_API_KEY",
    "VERCEL_AI_GATEWAY_API_KEY",
    "VOYAGE_API_KEY",
    "XAI_API_KEY",
    "ZAI_API_KEY",
)

# What `ModelSettings.extra` may have: how a model chooses its words. What gives it tools that its
# provider calls is none of these: no gate would hold them.
EXTRA = (
    "cache_prompt",
    "chat_template_kwargs",
    "frequency_penalty",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "metadata",
    "min_p",
    "min_tokens",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "num_ctx",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning",
    "reasoning_effort",
    "repeat_penalty",
    "repetition_penalty",
    "safety_identifier",
    "thinking",
    "top_a",
    "top_k",
    "top_logprobs",
    "typical_p",
    "user",
    "verbosity",
)


class ProviderSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section ``[models.providers.NAME]``.

    Attributes:
        kind: ``openai-compatible`` for whatever speaks OpenAI's protocol at `base_url`,
            ``pydantic-ai`` for one of its providers; found out by the name unless given.
        base_url: Where it is, such as ``http://localhost:11434/v1``.
        key: Its key; better in a file, in the environment or in the keyring.
        key_file: A file that holds nothing but the key.
        key_variable: The environment variable that holds the key; ``<NAME>_API_KEY`` unless given.
        max_concurrent: Calls at once; `max_concurrent` of ``[models]`` unless given.
        requests_per_minute: Calls begun in a minute; `requests_per_minute` of ``[models]`` unless
            given.
        context_tokens: What its models can read, where nothing better is known.
        max_output_tokens: What its models can write, where nothing better is known.
        headers: Further headers of each request; they are masked as keys are.
        memory_mb: What a call's process may hold of memory, with all that it starts. This and the
            two below are of ``claude-cli``, whose calls are processes; 0 is no limit.
        cpu_s: The CPU time that it may take, with all that it starts.
        open_files: The files that it may have open.
    """

    kind: Literal["", "openai-compatible", "pydantic-ai"] = ""
    base_url: str = ""
    key: Secret = ""
    key_file: str = ""
    key_variable: str = ""
    max_concurrent: Positive | None = None
    requests_per_minute: Positive | None = None
    context_tokens: Positive | None = None
    max_output_tokens: Positive | None = None
    headers: dict[str, Secret] = {}
    memory_mb: Bound | None = None
    cpu_s: Bound | None = None
    open_files: Bound | None = None


class ModelsSettings(Struct, frozen=True, kw_only=True):
    """The section ``[models]``.

    Attributes:
        model: The model that is asked where none is named, as an id or an alias; without it the
            first that is there of a claude login, an Anthropic key, an OpenAI key, a local server.
        aliases: Names of one's own for a model, or for several, each asked where those before it
            can't answer: ``fast = ["openai:gpt-6.1-terra", "local:qwen3"]``.
        fallbacks: The models that are asked where the one of that id can't answer.
        providers: What is to be known of a provider, by its name: ``[models.providers.NAME]``.
        find_local: Whether servers on this machine are looked for: Ollama, vLLM, llama.cpp and LM
            Studio on their own ports.
        key_variables: Globs over the environment variables that hold keys of models: they are taken
            out of the daemon's environment, so that no program that it starts inherits them. Those
            of the providers above are so in any case.
        extra: Members of a call's ``settings.extra`` that go into a provider's request. One that
            gives a model tools of its provider's, such as ``tools``, ``web_search_options`` or
            ``mcp_servers``, has them called past ``tool:call``.
        claude_command: The ``claude`` command, as a name on the `PATH` or as a path.
        claude_config_folder: Where that command has its user's login; where it has it by itself
            unless given. Nothing else there is read: it runs with a configuration of its own.
        claude_parked_s: How long a process of that command waits for the results of the tools that
            its model has called; after that another one is told what was said and done.
        cassette: What calls are recorded in, as a name under ``<home>/cassettes``, to be asked
            again as ``replay/<name>``; none are recorded without it.
        keyring: Whether keys are also looked for in the system's keyring, as service ``ksi`` and
            the provider's name.
        keyring_timeout_s: How long the keyring may take; a locked one may wait for a person.
        max_concurrent: Calls of one provider at once.
        requests_per_minute: Calls of one provider begun in a minute; 0 is as many as come.
        max_waiting: Calls that may wait for one provider.
        slot_timeout_s: How long a call may wait for its turn.
        first_token_timeout_s: How long a provider may take until something comes.
        idle_timeout_s: How long it may pause after that.
        call_timeout_s: How long a call may take with all its waiting and tries, unless it says so.
        max_answer_bytes: How long an answer may be.
        max_attempts: How often one model is asked in a call, for errors that pass.
        retry_first_s: The longest wait before the second try; it doubles from try to try.
        retry_max_s: The longest wait between two tries.
        retry_after_max_s: The longest that a provider may have its callers wait by `Retry-After`;
            past it the call fails, or goes on to the next model.
        circuit_failures: After how many failures in a row a provider is left alone; 0 is never.
        circuit_open_s: How long, until one call tries whether it is there again.
        circuit_timeout_s: How long a call may wait for a provider that is left alone.
        embed_model: The model that makes vectors where none is named.
        max_embed_bytes: How long all texts of one `model:embed` may be.
        record_timeout_s: How long Postgres may take to record what a call took.
        usage_days: How long the rows of calls are kept; 0 is for good.
        usage_interval_s: How often is looked for rows that are too old.
    """

    model: Annotated[str, variable("KSI_MODEL")] = ""
    aliases: dict[str, Chain] = {}
    fallbacks: dict[str, Chain] = {}
    providers: dict[str, ProviderSettings] = {}
    find_local: bool = True
    key_variables: tuple[str, ...] = KEY_VARIABLES
    extra: tuple[str, ...] = EXTRA
    claude_command: str = "claude"
    claude_config_folder: str = ""
    claude_parked_s: Above = 600.0
    cassette: str = ""
    keyring: bool = True
    keyring_timeout_s: Above = 2.0
    max_concurrent: Positive = 16
    requests_per_minute: Annotated[int, Meta(ge=0)] = 0
    max_waiting: Positive = 1000
    slot_timeout_s: Above = 300.0
    first_token_timeout_s: Above = 120.0
    idle_timeout_s: Above = 60.0
    call_timeout_s: Above = 900.0
    max_answer_bytes: Positive = 8 * 1024 * 1024
    max_attempts: Positive = 4
    retry_first_s: Above = 0.5
    retry_max_s: Above = 30.0
    retry_after_max_s: Seconds = 120.0
    circuit_failures: Annotated[int, Meta(ge=0)] = 5
    circuit_open_s: Above = 15.0
    circuit_timeout_s: Seconds = 120.0
    embed_model: str = ""
    max_embed_bytes: Positive = 8 * 1024 * 1024
    record_timeout_s: Above = 10.0
    usage_days: Annotated[int, Meta(ge=0)] = 400
    usage_interval_s: Above = 3600.0
