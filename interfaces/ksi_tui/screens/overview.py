"""The whole at a glance: how much is going on, who is at work, what waits, what happens."""

from collections.abc import Iterable
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from ksi_agents.events import Agent
from ksi_models.events import ProviderLoad
from ksi_tui.model import texts
from ksi_tui.model.feed import Feed, Filter, Seen
from ksi_tui.model.known import Known, working
from ksi_tui.model.trees import Leaf, tree
from ksi_tui.screens import looks
from ksi_tui.screens.base import MonitorScreen, entitle
from ksi_tui.widgets.chart import Chart
from ksi_tui.widgets.rows import Cell, Column, Row, Rows
from ksi_workflows.events import QueueState

SHOWN_EVENTS: Final = 100
SHOWN_CHARACTERS: Final = 300  # more than the widest terminal has room for
GAUGE: Final = 8

AGENT_COLUMNS: Final = (
    Column("agent", share=3),
    Column("state", width=18, least=44),
    Column("state", width=11, most=44),
    Column("waits", width=5, is_number=True),
    Column("tokens/min", width=10, least=52, is_number=True),
)
LOAD_COLUMNS: Final = (
    Column("model or queue", share=1),
    Column("load", width=GAUGE, least=44),
    Column("runs", width=7, is_number=True),
    Column("waits", width=5, is_number=True),
)
NEED_COLUMNS: Final = (
    Column("what", width=10),
    Column("", share=1),
    Column("since", width=8, least=44),
)
EVENT_COLUMNS: Final = (
    Column("time", width=8),
    Column("event", width=24),
    Column("whose", width=14, least=60),
    Column("took", width=8, is_number=True),
    Column("outcome", width=13),
    Column("payload", share=1, least=96),
)


class OverviewScreen(MonitorScreen):
    """Charts, agents, models and queues, what needs a person, and the newest events."""

    mode = "overview"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.focus_next", "Next panel"),
    ]

    def body(self) -> ComposeResult:
        """Lay out charts, then panels."""
        with Horizontal(id="charts"):
            yield Chart("tokens / min", id="chart-tokens")
            yield Chart("cost / min", "cost", id="chart-cost")
            yield Chart("errors / min", "errors", id="chart-errors")
            yield Chart("events / min", "events", id="chart-events", classes="-last")
        with Horizontal(id="middle"):
            yield Rows(AGENT_COLUMNS, id="agents", classes="panel")
            with Vertical(id="side"):
                yield Rows(LOAD_COLUMNS, id="load", classes="panel")
                yield Rows(NEED_COLUMNS, id="needs", classes="panel")
        yield Rows(EVENT_COLUMNS, id="overview-events", classes="panel")

    def put(self, known: Known, now: float) -> None:
        """Show all of it."""
        self._put_charts(known, now)
        self._put_agents(known, now)
        self._put_load(known)
        self._put_needs(known)
        self._put_events(known)

    def _put_charts(self, known: Known, now: float) -> None:
        for name, series, shown in (
            ("tokens", known.tokens, texts.count),
            ("cost", known.cost, texts.money),
            ("errors", known.errors, texts.count),
            ("events", known.events, texts.count),
        ):
            chart = self.query_one(f"#chart-{name}", Chart)
            chart.put(shown(series.last_minute(now)), series.minutes(now, chart.columns))

    def _put_agents(self, known: Known, now: float) -> None:
        table = self.query_one("#agents", Rows)
        agents = known.agents or ()
        at_work = f"{working(agents)} of {len(agents)} at work" if agents else ""
        entitle(table, "Agents", at_work)
        wanted = self.wanted
        rows = [
            _agent_row(leaf, known.tokens_of(leaf.agent.name, now))
            for leaf in tree(agents)
            if wanted.lower() in leaf.agent.name
        ]
        table.put(rows, empty=_nothing(known.agents, "no agents; try: ksi agent spawn general"))

    def _put_load(self, known: Known) -> None:
        table = self.query_one("#load", Rows)
        entitle(table, "Models and queues")
        rows = [
            *(_provider_row(each) for each in known.providers or ()),
            *(_queue_row(each) for each in known.queues or ()),
        ]
        table.put(rows, empty="no model was asked yet")

    def _put_needs(self, known: Known) -> None:
        table = self.query_one("#needs", Rows)
        rows = list(_needs(known))
        entitle(table, "Needs you" if rows else "Health", str(len(rows)) if rows else "")
        table.put(rows, empty="nothing waits for you; all is well")

    def _put_events(self, known: Known) -> None:
        table = self.query_one("#overview-events", Rows)
        entitle(table, "Events", shown_of(known.feed))
        rows = event_rows(known.feed, Filter(self.wanted), SHOWN_EVENTS)
        table.put(rows, empty=texts.plain(known.no_events) or "nothing yet")

    def on_rows_opened(self, event: Rows.Opened) -> None:
        """Show more of it on its own screen."""
        key = event.key or ""
        if event.rows.id == "agents":
            self.monitor.show_agent(key)
        elif event.rows.id == "overview-events":
            self.monitor.show_event(key)
        elif event.rows.id == "needs":
            self.monitor.show_need(key)


def shown_of(feed: Feed) -> str:
    """Say of how many events those are that are shown."""
    parts = [f"{feed.seen:,} seen"]
    if feed.one_of > 1:
        parts.insert(0, f"showing 1 of {feed.one_of}")
    if feed.missed:
        parts.append(f"{feed.missed:,} missed")
    return " · ".join(parts)


def event_rows(feed: Feed, wanted: Filter, most: int) -> list[Row]:
    """Lay events out, the newest first."""
    rows: list[Row] = []
    for seen in feed.newest(wanted):
        rows.append(_event_row(seen))
        if len(rows) >= most:
            break
    return rows


def _event_row(seen: Seen) -> Row:
    look = "text" if seen.severity == "info" else looks.SEVERITY_LOOKS[seen.severity]
    return Row(
        seen.id,
        (
            Cell(texts.clock(seen.at), "muted"),
            Cell(texts.plain(seen.name), look),
            Cell(looks.who(seen), "muted"),
            Cell(texts.took(seen.duration_s), "muted"),
            looks.outcome(seen),
            Cell(texts.plain((seen.message or seen.payload)[:SHOWN_CHARACTERS]), "muted"),
        ),
    )


def _nothing(found: object, otherwise: str) -> str:
    return "not known yet, or not there" if found is None else otherwise


def _agent_row(leaf: Leaf, tokens: float) -> Row:
    agent: Agent = leaf.agent
    state = looks.phase(agent)
    waiting = Cell(texts.count(agent.waiting), "warn") if agent.waiting else Cell("")
    name = Cell(f"{leaf.stem}{texts.plain(agent.name)}")
    spent = Cell(texts.count(tokens) if tokens else "", "accent")
    return Row(agent.name, (name, state, state, waiting, spent))


def _provider_row(load: ProviderLoad) -> Row:
    is_open = load.state != "closed"
    full = load.running >= load.max_concurrent
    look = "bad" if is_open else "warn" if full else "accent"
    name = texts.plain(load.name) + (" (left alone)" if is_open else "")
    return Row(
        f"model {load.name}",
        (
            Cell(name, "bad" if is_open else "text"),
            Cell(gauge(load.running, load.max_concurrent), look),
            Cell(f"{load.running}/{load.max_concurrent}"),
            _waits(load.waiting),
        ),
    )


def _queue_row(queue: QueueState) -> Row:
    bound = queue.concurrency or queue.worker_concurrency
    return Row(
        f"queue {queue.queue}",
        (
            Cell(texts.plain(queue.queue), "text"),
            Cell(gauge(queue.running, bound) if bound else "", "accent"),
            Cell(f"{queue.running}/{bound}" if bound else str(queue.running)),
            _waits(queue.queued + queue.delayed),
        ),
    )


def _waits(number: int) -> Cell:
    return Cell(texts.count(number), "warn") if number else Cell("", "muted")


def gauge(part: int, whole: int, width: int = GAUGE) -> str:
    """Draw how much of something is used; anything at all can be seen."""
    if whole <= 0:
        return ""
    full = min(max(round(part / whole * width), 1 if part else 0), width)
    return "━" * full + "╌" * (width - full)


def _needs(known: Known) -> Iterable[Row]:
    for call in known.needs:
        is_doubt = call.status == "in_doubt"
        yield Row(
            f"call {call.call_id}",
            (
                Cell("in doubt" if is_doubt else "asks you", "bad" if is_doubt else "warn"),
                Cell(texts.plain(f"{call.name} {call.agent or ''}")),
                Cell(texts.clock(call.begun_at), "muted"),
            ),
        )
    for run in known.set_aside:
        words = (Cell("set aside", "bad"), Cell(texts.plain(run.name)))
        yield Row(f"run {run.run_id}", (*words, Cell(texts.clock(run.created_at), "muted")))
    if known.health is not None:
        for plugin in known.health.plugins:
            if plugin.health not in ("ok", "starting"):
                text = texts.plain(f"{plugin.plugin}: {plugin.why or ''}")
                yield Row(
                    f"plugin {plugin.plugin}", (Cell(plugin.health, "bad"), Cell(text), Cell(""))
                )
        for problem in known.health.problems:
            yield Row(problem, (Cell("problem", "bad"), Cell(texts.plain(problem)), Cell("")))
