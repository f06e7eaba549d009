"""What is known of a daemon: what it last answered, and what was counted since."""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any, Final, Literal

from msgspec import Struct

from ksi_agents.events import Agent
from ksi_models.events import ModelCalled, ProviderLoad
from ksi_orchestration.events import Orchestration
from ksi_system.events import SystemGreeting, SystemHealthReport, SystemStatsReport
from ksi_tools.events import CallRecord
from ksi_tui.model.feed import Feed
from ksi_tui.model.series import Series
from ksi_workflows.events import QueueState, WorkflowRun

MAX_AGENT_LOADS: Final = 2_000

LinkState = Literal["looking", "here", "away", "refused"]


class Link(Struct, frozen=True):
    """Whether the daemon is there, since when (by `time.time`), and what is said of it."""

    state: LinkState
    since: float = 0.0
    why: str = ""


class Known:
    """All that the screens show; `revision` changes whenever something of it does.

    What a plugin that is not there would answer is ``None``.
    """

    def __init__(self) -> None:
        self.revision = 0
        self.link = Link("looking")
        self.greeting: SystemGreeting | None = None
        self.health: SystemHealthReport | None = None
        self.stats: SystemStatsReport | None = None
        self.agents: tuple[Agent, ...] | None = None
        self.runs: tuple[WorkflowRun, ...] | None = None
        self.orchestrations: tuple[Orchestration, ...] | None = None
        self.queues: tuple[QueueState, ...] | None = None
        self.providers: tuple[ProviderLoad, ...] | None = None
        self.doubts: tuple[CallRecord, ...] | None = None
        self.offered: Collection[str] = frozenset()
        self.no_events = ""  # why none can be followed
        self.feed = Feed()
        self.tokens = Series()
        self.cost = Series()
        self.errors = Series()
        self.events = Series()
        self._loads: OrderedDict[str, Series] = OrderedDict()

    # -- the link -------------------------------------------------------------------------------

    def linked(self, state: LinkState, at: float, why: str = "") -> None:
        """Note whether the daemon is there; what it said before stays until it says otherwise."""
        since = self.link.since if self.link.state == state else at
        self.link = Link(state, since, why)
        self.revision += 1

    def learn(self, name: str, value: Any) -> None:
        """Keep what was answered, under the name of an attribute."""
        if getattr(self, name) != value:
            setattr(self, name, value)
            self.revision += 1

    # -- counting -------------------------------------------------------------------------------

    def happened(self, at: float) -> None:
        """Count an event."""
        self.events.add(at)

    def failed(self, at: float) -> None:
        """Count an error."""
        self.errors.add(at)

    def called(self, at: float, call: ModelCalled, agent: str | None) -> None:
        """Count what a model call took."""
        tokens = call.usage.input_tokens + call.usage.output_tokens
        self.tokens.add(at, tokens)
        if call.cost_usd:
            self.cost.add(at, call.cost_usd)
        if call.outcome == "failed":
            self.errors.add(at)
        if agent is not None:
            self._load_of(agent).add(at, tokens)

    def _load_of(self, agent: str) -> Series:
        load = self._loads.setdefault(agent, Series())
        self._loads.move_to_end(agent)
        if len(self._loads) > MAX_AGENT_LOADS:
            self._loads.popitem(last=False)
        return load

    def tokens_of(self, agent: str, now: float) -> float:
        """Return the tokens that an agent took within the last minute."""
        load = self._loads.get(agent)
        return 0.0 if load is None else load.last_minute(now)

    def begin_anew(self) -> None:
        """Forget the counts by minute: they are counted again from what the daemon recorded."""
        for series in (self.tokens, self.cost, self.errors, self.events):
            series.clear()
        self._loads.clear()
        self.revision += 1

    def frame(self) -> bool:
        """End a frame, and say whether there is anything new to show."""
        if self.feed.frame():
            self.revision += 1
            return True
        return False

    # -- what needs a person --------------------------------------------------------------------

    @property
    def needs(self) -> list[CallRecord]:
        """The calls that wait for a person, those in doubt first, the oldest first."""
        return sorted(
            self.doubts or (), key=lambda call: (call.status != "in_doubt", call.begun_at)
        )

    @property
    def set_aside(self) -> list[WorkflowRun]:
        """The runs that are set aside since their workers died."""
        return [run for run in self.runs or () if run.status == "quarantined"]


def working(agents: Iterable[Agent]) -> int:
    """Count the agents that are at work."""
    return sum(agent.phase == "Busy" for agent in agents)
