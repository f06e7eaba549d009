"""What a definition of an agent says: the fields of its document."""

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ksi_agents.events import AgentName, Labels
from ksi_models.events import ModelId, ModelSettings

Glob = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:*?-]{1,200}\Z")]  # as ksi_tools has them
Globs = Annotated[tuple[Glob, ...], Meta(max_length=1000)]
Models = Annotated[tuple[ModelId, ...], Meta(min_length=1, max_length=20)]
Schema = dict[str, Any]
Count = Annotated[int, Meta(ge=1)]
Usd = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
ProfileName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\Z")]
Route = Annotated[str, Meta(min_length=1, max_length=100)]
Task = Annotated[str, Meta(min_length=1, max_length=100_000)]

BUILT_IN_PROFILES: Final = ("restricted", "standard", "trusted")


class Memory(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent has to do with the memory.

    Attributes:
        read: What is remembered of former conversations is put before its model.
        write: Its conversations are remembered.
    """

    read: bool = True
    write: bool = True


class Limits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent may take at most; where nothing is said there is no limit of its own.

    Attributes:
        requests: Calls of a model in one turn.
        tool_calls: Calls of tools in one turn.
        tokens: Tokens of one turn, read and written.
        cost_usd: What one turn may cost, in US dollars; a model of unknown price is refused then.
        wall_s: How long one turn may take.
        depth: How deep it may delegate: 0 is not at all.
        total_requests: Calls of a model in the agent's life.
        total_tool_calls: Calls of tools in the agent's life.
        total_tokens: Tokens in the agent's life.
        total_cost_usd: What the agent may cost in its life, in US dollars.
    """

    requests: Count | None = None
    tool_calls: Annotated[int, Meta(ge=0)] | None = None
    tokens: Count | None = None
    cost_usd: Usd | None = None
    wall_s: Seconds | None = None
    depth: Annotated[int, Meta(ge=0, le=16)] | None = None
    total_requests: Count | None = None
    total_tool_calls: Annotated[int, Meta(ge=0)] | None = None
    total_tokens: Count | None = None
    total_cost_usd: Usd | None = None


class Restart(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is done when an agent fails: the delay doubles from one restart to the next.

    Attributes:
        policy: Whether it is started again at all: never, after a failure, or always.
        max_restarts: So many within the window, and it has failed for good.
        window_s: The time in which restarts are counted.
        delay_s: The time before the first restart.
        max_delay_s: The longest time before a restart.
    """

    policy: Literal["never", "on-failure", "always"] = "on-failure"
    max_restarts: Annotated[int, Meta(ge=0, le=1000)] = 5
    window_s: Annotated[float, Meta(gt=0)] = 600.0
    delay_s: Annotated[float, Meta(ge=0, le=86_400)] = 1.0
    max_delay_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0


class Wake(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When an agent is given work by itself: at times, or when an event happens.

    Attributes:
        prompt: What it is told then.
        cron: The times, as cron has them: ``0 7 * * mon-fri``.
        timezone: Of the times, such as Europe/Oslo.
        event: A glob of the events that wake it: ``memory:*``.
    """

    prompt: Task
    cron: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    timezone: Annotated[str, Meta(min_length=1, max_length=100)] = "UTC"
    event: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:*?-]{1,200}\Z")] | None = None


class Probe(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question that shows whether an agent is ready; one that is wrong keeps it from work.

    Attributes:
        kind: ``echo`` has it repeat a word, ``reasoning`` has it do a sum, ``custom`` asks what
            you like.
        prompt: The question of a custom one.
        expect: The answer of a custom one: this, and nothing else but space around it.
        timeout_s: How long the answer may take.
    """

    kind: Literal["echo", "reasoning", "custom"] = "echo"
    prompt: Task | None = None
    expect: Annotated[str, Meta(min_length=1, max_length=10_000)] | None = None
    timeout_s: Seconds | None = None


class Definition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent is.

    Attributes:
        name: Its name: small letters, digits, dots, dashes and underscores.
        description: What it is good for; others that may delegate to it read this.
        extends: The definition whose fields it has where it has none itself.
        model: The model or alias it works with, or several: the first that answers.
        prompt: Its system prompt; in Markdown the body of the document. ``{{ base }}`` is the
            prompt of the definition that it extends.
        tools: Globs of the tools it may call; without it, those that only read.
        deny: Globs of the tools it may not call, whatever else allows them.
        memory: What it has to do with the memory.
        input: A JSON Schema of what it is told.
        output: A JSON Schema that its answers are held to.
        settings: How its model is to answer: temperature, thinking and others.
        limits: What it may take at most.
        permissions: Its permissions profile: restricted, standard, trusted, or one of
            ``agents.profiles`` in the settings.
        restart: What is done when it fails.
        schedule: When it is given work by itself.
        probes: What shows that it is ready.
        routes: Words of the requests that are for it, by which a router chooses it before it asks
            a model: ``invoice``, ``tax*``, ``write a poem``.
        labels: Words of your own, to select agents by.
    """

    name: AgentName
    description: Annotated[str, Meta(max_length=2000)] = ""
    extends: AgentName | None = None
    model: ModelId | Models | None = None
    prompt: Annotated[str, Meta(max_length=500_000)] = ""
    tools: Globs | None = None
    deny: Globs = ()
    memory: Memory = Memory()
    input: Schema | None = None
    output: Schema | None = None
    settings: ModelSettings = ModelSettings()
    limits: Limits = Limits()
    permissions: ProfileName = "standard"
    restart: Restart = Restart()
    schedule: Annotated[tuple[Wake, ...], Meta(max_length=100)] = ()
    probes: Annotated[tuple[Probe, ...], Meta(max_length=20)] = ()
    routes: Annotated[tuple[Route, ...], Meta(max_length=200)] = ()
    labels: Labels = {}

    @property
    def models(self) -> tuple[str, ...]:
        """The models it works with, the first that answers; none: the default."""
        if self.model is None:
            return ()
        return (self.model,) if isinstance(self.model, str) else self.model
