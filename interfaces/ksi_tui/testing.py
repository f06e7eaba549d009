"""A monitor without a daemon: a fixed world for pictures and tests, by a clock that stands."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from ksi_agents import events as agents
from ksi_client import NotFound
from ksi_completion.events import ConversationRead, NumberedMessage
from ksi_models import events as models
from ksi_orchestration.events import MemberState, Orchestration, StatusTold
from ksi_system import events as system
from ksi_tools import events as tools
from ksi_tui.app import Monitor
from ksi_tui.model.feed import Seen, severity_of
from ksi_tui.model.known import Known
from ksi_tui.watcher import Watcher
from ksi_workflows import events as workflows

NOW: Final = datetime(2026, 3, 2, 9, 30, 40, tzinfo=UTC)
HOSTILE: Final = "\x1b[31m[bold]red[/]\x07\u202egnp.exe\r\n"


def ago(**spans: float) -> datetime:
    """Return a time before now."""
    return NOW - timedelta(**spans)


# -- a world ------------------------------------------------------------------------------------


def _agent(name: str, phase: agents.Phase, **more: Any) -> agents.Agent:
    fields: dict[str, Any] = {
        "definition": name.partition("-")[0],
        "version": 1,
        "desired": "running",
        "conversation_id": f"c-{name}",
        "created_at": ago(hours=2),
    }
    return agents.Agent(name=name, phase=phase, **{**fields, **more})


AGENTS: Final = (
    _agent("desk", "Busy", waiting=3, run_id="run-71", labels={"team": "desk"}),
    _agent("researcher-1", "Busy", parent="desk", definition="researcher", version=4),
    _agent("researcher-2", "Ready", parent="desk", definition="researcher", version=4),
    _agent("critic", "Busy", parent="researcher-1", waiting=1),
    _agent("summarizer", "Ready", parent="researcher-1"),
    _agent("nightly", "Ready", desired="paused", waiting=12),
    _agent("importer", "Failed", reason="CrashLoopBackOff", restarts=5),
    _agent("general", "Ready"),
)


def _run(number: int, name: str, status: workflows.RunStatus, **more: Any) -> workflows.WorkflowRun:
    begun = ago(minutes=number)
    fields: dict[str, Any] = {"created_at": begun, "started_at": begun, "updated_at": begun}
    if status in ("finished", "failed", "cancelled"):
        fields["completed_at"] = begun + timedelta(seconds=7 * number)
    return workflows.WorkflowRun(
        run_id=f"run-{70 + number}", name=name, version=1, status=status, **{**fields, **more}
    )


RUNS: Final = (
    _run(1, "turn", "running", key="c-desk"),
    _run(2, "turn", "running", key="c-researcher-1"),
    _run(3, "orchestration", "running", key="debate-7"),
    _run(5, "turn", "finished", key="c-general"),
    _run(8, "ingest", "queued", queue="memory"),
    _run(9, "ingest", "quarantined", queue="memory", attempts=3),
    _run(12, "turn", "failed", key="c-importer"),
    _run(14, "agent-wake", "finished", key="nightly"),
    _run(20, "turn", "cancelled", key="c-general"),
)
STEPS: Final = tuple(
    workflows.StepOutcome(
        number=number,
        name=name,
        output={},
        started_at=ago(seconds=begun),
        completed_at=ago(seconds=ended),
    )
    for number, name, begun, ended in (
        (1, "think", 60.0, 52.5),
        (2, "act", 52.4, 41.0),
        (3, "think", 40.9, 30.2),
        (4, "act", 30.1, 29.8),
        (5, "think", 29.7, 12.0),
    )
)
ORCHESTRATIONS: Final = (
    Orchestration(
        id="debate-7",
        pattern="debate",
        topic="Should the archive be read-only?",
        status="running",
        run_id="run-73",
        stage="argue",
        round=2,
        turns=5,
        tokens=8_420,
        cost_usd=0.034,
        created_at=ago(minutes=3),
    ),
)
DOUBTS: Final = (
    tools.CallRecord(
        call_id="call-9",
        name="send_letter",
        effects="effectful",
        status="in_doubt",
        arguments={"to": "archive@example.org", "text": "The index is done."},
        begun_at=ago(minutes=4),
        run_id="run-71",
        conversation_id="c-desk",
        agent="desk",
        why="the daemon ended while it was under way",
    ),
    tools.CallRecord(
        call_id="call-12",
        name="ask_person",
        effects="read_only",
        status="waiting",
        arguments={"question": "Which of the two catalogues is the newer?"},
        begun_at=ago(minutes=1),
        run_id="run-72",
        conversation_id="c-researcher-1",
        agent="researcher-1",
    ),
)
HEALTH: Final = system.SystemHealthReport(
    health="degraded",
    state="ready",
    uptime_s=7_840.0,
    plugins=(
        system.PluginHealth(plugin="agents", health="ok"),
        system.PluginHealth(plugin="models", health="degraded", why="ollama: no server on 11434"),
    ),
)
STATS: Final = system.SystemStatsReport(
    events=(),
    observers=(),
    tasks=(),
    refusals={},
    connections=4,
    subscriptions=6,
    in_flight=3,
    idempotency_keys=0,
    loop_lag_ms=0.4,
    loop_stalls=0,
    lost_log_lines=0,
    rss_bytes=148 * 1024**2,
    uptime_s=7_840.0,
)
# Name, whose it is, how it went, how long it took, and the payload.
HAPPENED: Final = (
    ("agent:send", "desk", "ok", 0.0031, '{"agent":"desk","prompt":"What is new in the archive?"}'),
    ("completion:async", "desk", "ok", 0.0042, '{"conversation_id":"c-desk"}'),
    ("model:called", "desk", None, None, '{"model":"anthropic:claude-sonnet-5-5","outcome":"ok"}'),
    ("tool:call", "desk", "ok", 0.084, '{"name":"memory_search","arguments":{"text":"catalogue"}}'),
    ("agent:changed", "critic", None, None, '{"name":"critic","phase":"Busy","was":"Ready"}'),
    ("tool:call", "importer", "failed", 1.2, '{"name":"read_feed","arguments":{"url":"…"}}'),
    ("workflow:failed", "importer", None, None, '{"run_id":"run-82","name":"turn"}'),
    ("memory:query", "researcher-1", "ok", 0.0163, '{"text":"who keeps the keys"}'),
    ("model:called", "researcher-1", None, None, '{"model":"openai:gpt-6.1","outcome":"ok"}'),
    ("tool:doubted", "desk", None, None, '{"call_id":"call-9","name":"send_letter"}'),
    ("token:create", None, "denied", 0.0002, '{"name":"visitor"}'),
    ("journal:trace", None, "ok", 0.0037, '{"id":"e-4"}'),
)


def _offer(known: Known, seen: Seen) -> None:
    known.feed.offer(seen.id, lambda: seen)


def busy_world() -> Known:
    """Return what is known of a daemon that has a lot to do; always the same."""
    known = Known()
    now = NOW.timestamp()
    known.linked("here", now)
    known.greeting = system.SystemGreeting(
        protocol=1, version="0.1.0", principal="owner", tenant="default"
    )
    known.health, known.stats = HEALTH, STATS
    known.agents, known.runs, known.doubts = AGENTS, RUNS, DOUBTS
    known.orchestrations = ORCHESTRATIONS
    known.providers = (
        models.ProviderLoad(name="anthropic", running=3, waiting=2, max_concurrent=4),
        models.ProviderLoad(name="ollama", running=0, waiting=0, max_concurrent=2, state="open"),
        models.ProviderLoad(name="openai", running=1, waiting=0, max_concurrent=8),
    )
    known.queues = (
        workflows.QueueState(queue="default", running=3),
        workflows.QueueState(queue="memory", concurrency=2, running=2, queued=7),
    )
    for minute in range(1, 90):
        wave = (minute * 37) % 11 + (minute * 13) % 7
        call = models.ModelCalled(
            call_id="m",
            outcome="ok",
            model_asked="smart",
            model="anthropic:claude-sonnet-5-5",
            purpose="chat",
            usage=models.Usage(input_tokens=420 * wave, output_tokens=61 * wave),
            cost_usd=0.0041 * wave,
        )
        at = now - 60 * minute + 58
        known.called(at, call, "desk" if minute % 2 else "researcher-1")
        known.events.add(at, 90 + 17 * wave)
        if minute % 9 in (4, 5):
            known.errors.add(at, wave // 4)
    for number, (name, agent, outcome, took_s, payload) in enumerate(HAPPENED):
        seen = Seen(
            at=ago(seconds=2 * (len(HAPPENED) - number)),
            name=name,
            id=f"e-{number}",
            severity=severity_of(name, outcome),
            origin=agent or "owner",
            agent=agent,
            outcome=outcome,
            duration_s=took_s,
            message="the feed answered 500" if outcome == "failed" else None,
            payload=payload,
        )
        _offer(known, seen)
    known.feed.seen = 48_213
    known.frame()
    return known


CONVERSATION: Final = ConversationRead(
    conversation_id="c-desk",
    messages=(
        NumberedMessage(
            number=1,
            turn=1,
            role="user",
            parts=(models.TextPart("What is new in the archive?"),),
            created_at=ago(minutes=1),
            tokens=8,
        ),
        NumberedMessage(
            number=2,
            turn=1,
            role="assistant",
            parts=(
                models.TextPart("Let me look."),
                models.ToolCallPart("t1", "memory_search", '{"text": "archive"}'),
            ),
            created_at=ago(seconds=52),
            tokens=31,
            model="anthropic:claude-sonnet-5-5",
        ),
        NumberedMessage(
            number=3,
            turn=1,
            role="tool",
            parts=(models.ToolResultPart("t1", "memory_search", "2 letters, 1 map"),),
            created_at=ago(seconds=41),
            tokens=9,
        ),
    ),
    after=None,
    before=None,
)


def _shown(request: agents.AgentGet) -> agents.AgentShown:
    agent = next(each for each in AGENTS if each.name == request.name)
    return agents.AgentShown(
        agent=agent,
        conditions=(
            agents.Condition(type="Ready", status="True", reason="Started"),
            agents.Condition(type="Busy", status="True", reason="Turn", message="run-71"),
        ),
        usage=agents.Spent(
            requests=41,
            tool_calls=17,
            tokens=88_214,
            cost_usd=0.734,
            reserved_usd=0.021,
            limits={"cost_usd": 2.0, "depth": 2},
        ),
        mailbox=(
            agents.Mail(message_id="m1", number=1, status="given", prompt="What is new?"),
            agents.Mail(message_id="m2", number=2, status="waiting", prompt="And the maps?"),
        ),
        channels=("news",),
        tools=("memory_search", "memory_save", "send_letter"),
        definition={"prompt": "You keep the desk.\nSay of each fact where it is from."},
    )


def _described(request: workflows.WorkflowGet) -> workflows.WorkflowDescribed:
    run = next(each for each in RUNS if each.run_id == request.run_id)
    trouble = None
    if run.status == "quarantined":
        trouble = workflows.WorkflowTrouble(why="its worker died three times", step="embed")
    return workflows.WorkflowDescribed(run=run, trouble=trouble)


ANSWERS: Final[dict[str, Any]] = {
    "agent:get": _shown,
    "agent:logs": agents.LogsListed(
        entries=(
            agents.LogEntry(number=2, at=ago(minutes=1), kind="message", message="1 given"),
            agents.LogEntry(number=1, at=ago(hours=2), kind="spawned", message="by the owner"),
        )
    ),
    "conversation:history": CONVERSATION,
    "tool:calls": tools.ToolCallsListed(calls=DOUBTS),
    "workflow:get": _described,
    "workflow:steps": workflows.WorkflowStepsListed(steps=STEPS),
    "orchestration:status": StatusTold(
        orchestration=ORCHESTRATIONS[0],
        members=(
            MemberState(name="for", role="debater", agent="general", conversation_id="a", turns=3),
            MemberState(
                name="against",
                role="debater",
                agent="critic",
                conversation_id="b",
                turns=2,
                run_id="run-75",
            ),
        ),
    ),
}


# -- a monitor ----------------------------------------------------------------------------------


class StillWatcher(Watcher):
    """Watches no daemon: what is known is given, and what is asked is answered from a table.

    Args:
        known: What is known.
        answers: By event's name what it answers.

    Attributes:
        sent: What was to be done, in order.
    """

    def __init__(self, known: Known, answers: dict[str, Any] | None = None) -> None:
        super().__init__(known, clock=NOW.timestamp)
        self.answers = answers if answers is not None else ANSWERS
        self.sent: list[tuple[str, Any]] = []

    async def run(self) -> None:
        """Do nothing."""

    async def ask(self, event: str, data: Any, kind: Any = None) -> Any:
        """Answer from the table.

        Raises:
            NotFound: It has no answer.
        """
        if event not in self.answers:
            raise NotFound(f"nothing answers {event!r}")
        answer = self.answers[event]
        return answer(data) if callable(answer) else answer

    async def request(self, event: str, data: Any, kind: Any = None) -> Any:
        """Note what was to be done."""
        self.sent.append((event, data))


def still_monitor(known: Known | None = None) -> Monitor:
    """Make a monitor of a fixed world."""
    app = Monitor(StillWatcher(known or busy_world()))
    app.animation_level = "none"
    return app


# By size what is drawn one after the other, as a file below the tree's root, and the keys before.
PICTURES: Final[dict[tuple[int, int], dict[str, tuple[str, ...]]]] = {
    (140, 40): {
        "docs/monitor.svg": (),
        "interfaces/ksi_tui/tests/agents-140x40.svg": ("2",),
        "interfaces/ksi_tui/tests/runs-140x40.svg": ("4",),
    },
    (80, 24): {
        "interfaces/ksi_tui/tests/overview-80x24.svg": (),
        "interfaces/ksi_tui/tests/events-80x24.svg": ("3", "v"),
        "interfaces/ksi_tui/tests/conversation-80x24.svg": ("2", "enter", "right_square_bracket"),
        "interfaces/ksi_tui/tests/doubt-80x24.svg": ("4", "d"),
    },
}


async def pictures(size: tuple[int, int]) -> dict[str, str]:
    """Draw the fixed world in a terminal of that size, as SVG by file."""
    app, drawn = still_monitor(), {}
    async with app.run_test(size=size) as pilot:
        for name, keys in PICTURES[size].items():
            await press(pilot, *keys)
            drawn[name] = without_fonts(app.export_screenshot(title="ksi monitor"))
    return drawn


def without_fonts(svg: str) -> str:
    """Return a picture that fetches no font from anywhere."""
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")


async def press(pilot: Pilot[Any], *keys: str) -> None:
    """Press keys, and wait until all is drawn and what was asked is answered."""
    await settled(pilot)
    if keys:
        await pilot.press(*keys)
        await settled(pilot)


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until all is drawn, and what was asked is answered."""
    await pilot.pause()
    while pilot.app.workers:
        with suppress(WorkerCancelled):  # another has taken its place
            await pilot.app.workers.wait_for_complete()
    await pilot.pause()
