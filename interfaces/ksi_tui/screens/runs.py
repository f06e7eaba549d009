"""Runs and orchestrations: their steps over time, what went wrong, and what a person has to say."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from ksi_completion.events import CompletionCancel
from ksi_orchestration import events as o
from ksi_tools.events import CallRecord, ToolAnswer, ToolResolve
from ksi_tui.model import texts
from ksi_tui.model.feed import named
from ksi_tui.model.known import Known
from ksi_tui.model.timeline import spans
from ksi_tui.screens import looks
from ksi_tui.screens.agents import LOOK_COLOURS
from ksi_tui.screens.base import entitle
from ksi_tui.screens.dialogs import Confirm, Settle
from ksi_tui.screens.list_detail import ListAndDetail
from ksi_tui.widgets.rows import Cell, Column, Row, Rows, widths
from ksi_workflows import events as w

TURN: Final = "turn"
MAX_STEPS: Final = 500
OPEN: Final = frozenset({"waiting", "queued", "delayed", "running"})
ENDED_ORCHESTRATIONS: Final = frozenset({"succeeded", "failed", "stopped"})
COLUMNS: Final = (
    Column("run", share=3),
    Column("status", width=13),
    Column("begun", width=8),
    Column("took", width=8, is_number=True),
    Column("for", share=2, least=54),
)
STEP_COLUMNS: Final = (
    Column("", width=3, is_number=True),
    Column("step", width=12),
    Column("took", width=8, is_number=True),
    Column("time line", share=1),
    Column("outcome", width=12, least=56),
)
TIME_LINE: Final = 3


class RunsScreen(ListAndDetail):
    """What needs a person first, then orchestrations, then runs, the newest first."""

    mode = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "cancel", "Cancel"),
        Binding("g", "go_on", "Go on"),
        Binding("p", "pause", "Pause", show=False),
        Binding("f", "fork", "Fork"),
        Binding("d", "settle", "Doubt"),
    ]

    def list_body(self) -> ComposeResult:
        """The list."""
        yield Rows(COLUMNS, id="run-list", classes="panel")

    def detail_body(self) -> ComposeResult:
        """Facts, and the steps below."""
        yield Static(id="run-facts", markup=False)
        yield Rows(STEP_COLUMNS, id="steps", empty="no step is recorded yet")

    def steps(self) -> Rows:
        """Return the table of steps."""
        return self.query_one("#steps", Rows)

    def detail_focus(self) -> Widget:
        """The steps, one of which can be chosen."""
        return self.steps()

    # -- the list ---------------------------------------------------------------------------------

    def put_list(self, known: Known, now: float) -> None:
        """Fill the list."""
        table = self.main_table()
        at = datetime.fromtimestamp(now, UTC)
        rows = [*self._needs(known), *self._orchestrations(known, at), *self._runs(known, at)]
        title = f"Runs · filter {texts.plain(self.wanted)}" if self.wanted else "Runs"
        going = sum(run.status == "running" for run in known.runs or ())
        entitle(table, title, f"{going} running")
        why = "not known yet, or not there" if known.runs is None else "no run"
        table.put(rows, empty=why)

    def _wants(self, *names: str | None) -> bool:
        return not self.wanted or named(self.wanted, *(name or "" for name in names))

    def _needs(self, known: Known) -> Iterable[Row]:
        calls = [
            call for call in known.needs if self._wants(call.name, call.agent, call.run_id, "doubt")
        ]
        if calls:
            yield _heading("needs you")
            yield from (_call_row(call) for call in calls)

    def _orchestrations(self, known: Known, now: datetime) -> Iterable[Row]:
        found = [
            each
            for each in known.orchestrations or ()
            if self._wants(each.pattern, each.id, each.status, each.topic)
        ]
        if found:
            yield _heading("orchestrations")
            yield from (_orchestration_row(each, now) for each in found)
            yield _heading("runs")

    def _runs(self, known: Known, now: datetime) -> Iterable[Row]:
        for run in known.runs or ():
            if self._wants(run.name, run.run_id, run.status, run.key):
                yield _run_row(run, now)

    # -- what is chosen ---------------------------------------------------------------------------

    def run_of(self, key: str | None) -> w.WorkflowRun | None:
        """Return the run of a row; an orchestration has one."""
        kind, _, name = (key or "").partition(" ")
        if kind == "orchestration":
            found = self.orchestration_of(key)
            name = found.run_id if found is not None else ""
        elif kind == "call":
            call = self.call_of(key)
            name = (call.run_id or "") if call is not None else ""
        for run in self.monitor.known.runs or ():
            if run.run_id == name:
                return run
        return None

    def orchestration_of(self, key: str | None) -> o.Orchestration | None:
        """Return the orchestration of a row."""
        kind, _, name = (key or "").partition(" ")
        for each in self.monitor.known.orchestrations or ():
            if kind == "orchestration" and each.id == name:
                return each
        return None

    def call_of(self, key: str | None) -> CallRecord | None:
        """Return the call of a row that needs a person, or of the run of a row."""
        kind, _, name = (key or "").partition(" ")
        for call in self.monitor.known.needs:
            if name in ((call.call_id,) if kind == "call" else (call.run_id,)):
                return call
        return None

    def state_of(self, key: str) -> tuple[object, bool]:
        """A run that is open goes on."""
        run, orchestration = self.run_of(key), self.orchestration_of(key)
        state = (run, orchestration, self.call_of(key), self.size.width)
        return state, run is not None and run.status == "running"

    def show_nothing(self, why: str) -> None:
        """Show no run."""
        entitle(self.query_one(".detail"), "")
        self.query_one("#run-facts", Static).update(Content(why))
        self.steps().put(())

    async def load(self, key: str) -> None:
        """Ask for a run, its steps, and who takes part in an orchestration."""
        call, orchestration = self.call_of(key), self.orchestration_of(key)
        parts: list[Any] = []
        if orchestration is not None:
            asked = o.OrchestrationStatus(id=orchestration.id)
            told: o.StatusTold = await self._ask("orchestration:status", asked, o.StatusTold)
            parts += orchestration_facts(told)
        elif key.startswith("call ") and call is not None:
            parts += call_facts(call)
        run_id = _run_id(key, call, orchestration)
        steps: list[Row] = []
        if run_id:
            got: w.WorkflowDescribed = await self._ask(
                "workflow:get", w.WorkflowGet(run_id=run_id), w.WorkflowDescribed
            )
            listed: w.WorkflowStepsListed = await self._ask(
                "workflow:steps",
                w.WorkflowSteps(run_id=run_id, limit=MAX_STEPS),
                w.WorkflowStepsListed,
            )
            parts += run_facts(got)
            now = datetime.fromtimestamp(self.monitor.watcher.clock(), UTC)
            steps = step_rows(got.run, listed.steps, now, self._line_width())
        if not self.still_shows(key):
            return
        entitle(self.query_one(".detail"), texts.plain(key))
        self.query_one("#run-facts", Static).update(Content.assemble(*parts))
        self.steps().put(steps)

    async def _ask(self, event: str, data: Any, kind: Any) -> Any:
        return await self.monitor.watcher.ask(event, data, kind)

    def _line_width(self) -> int:
        return max(widths(STEP_COLUMNS, self.steps().size.width - 2)[TIME_LINE], 1)

    def copied(self) -> str:
        """Copy the id of the run."""
        run = self.run_of(self.main_table().chosen)
        return run.run_id if run is not None else super().copied()

    # -- actions ----------------------------------------------------------------------------------

    def action_cancel(self) -> None:
        """End a run, or an orchestration."""
        key = self.main_table().chosen
        orchestration, run = self.orchestration_of(key), self.run_of(key)
        event: str
        data: Any
        if orchestration is not None:
            if orchestration.status in ENDED_ORCHESTRATIONS:
                self._say("it has ended already")
                return
            name, event = orchestration.pattern, "orchestration:stop"
            data = o.OrchestrationStop(id=orchestration.id, reason="by a person, in the monitor")
        elif run is None:
            return
        elif run.status not in OPEN:
            self._say("it has ended already")
            return
        elif run.name == TURN:
            name, event = TURN, "completion:cancel"
            data = CompletionCancel(run_id=run.run_id)
        else:
            name, event, data = run.name, "workflow:cancel", w.WorkflowCancel(run_id=run.run_id)
        what = "What runs of it is cancelled. What it has done so far is not undone."
        dialog = Confirm(f"End this {texts.plain(name)}?", what, "end it")
        self._after(dialog, event, data, "it is ended")

    def action_pause(self) -> None:
        """Pause an orchestration."""
        found = self.orchestration_of(self.main_table().chosen)
        if found is not None and found.status == "running":
            self.monitor.act("orchestration:pause", o.OrchestrationPause(id=found.id), "it pauses")

    def action_go_on(self) -> None:
        """Let a run go on that was set aside or cancelled, or an orchestration that is paused."""
        key = self.main_table().chosen
        orchestration, run = self.orchestration_of(key), self.run_of(key)
        if orchestration is not None and orchestration.status == "paused":
            data = o.OrchestrationResume(id=orchestration.id)
            self.monitor.act("orchestration:resume", data, "it goes on")
        elif run is not None and run.status == "quarantined":
            self.monitor.act(
                "workflow:release", w.WorkflowRelease(run_id=run.run_id), "it is released"
            )
        elif run is not None and run.status == "cancelled":
            self.monitor.act("workflow:resume", w.WorkflowResume(run_id=run.run_id), "it goes on")
        else:
            self._say("only what is paused, cancelled or set aside can go on")

    def action_fork(self) -> None:
        """Start a copy of a run from the chosen step on."""
        run = self.run_of(self.main_table().chosen)
        if run is None:
            return
        step = self.steps().chosen
        number = int(step) if step is not None and step.isdigit() else 1
        dialog = Confirm(
            f"Fork this {texts.plain(run.name)} from step {number}?",
            f"A copy of the run begins. It takes over what came of the steps before {number}; "
            "the others are done once more, with their effects and costs.",
            "fork it",
        )
        data = w.WorkflowFork(run_id=run.run_id, from_step=number)
        self._after(dialog, "workflow:fork", data, "a copy of it is started")

    def action_settle(self) -> None:
        """Say what became of a call in doubt, or answer what it asks."""
        call = self.call_of(self.main_table().chosen)
        if call is None:
            self._say("no call of it is in doubt, and none asks")
            return

        def settled(said: ToolResolve | ToolAnswer | None) -> None:
            if isinstance(said, ToolResolve):
                self.monitor.act("tool:resolve", said, "it is settled")
            elif said is not None:
                self.monitor.act("tool:answer", said, "it is answered")

        self.app.push_screen(Settle(call), settled)

    def on_rows_opened(self, event: Rows.Opened) -> None:
        """Settle a call, or go to the steps."""
        if (event.key or "").startswith("call "):
            self.action_settle()
        else:
            super().on_rows_opened(event)

    def _say(self, text: str) -> None:
        self.notify(text, markup=False, timeout=3)

    def _after(self, dialog: Confirm, event: str, data: Any, done: str) -> None:
        def act(is_sure: bool | None) -> None:
            if is_sure:
                self.monitor.act(event, data, done)

        self.app.push_screen(dialog, act)


def _run_id(key: str, call: CallRecord | None, found: o.Orchestration | None) -> str:
    kind, _, name = key.partition(" ")
    if kind == "run":
        return name
    if found is not None:
        return found.run_id
    return (call.run_id or "") if call is not None else ""


# -- rows ----------------------------------------------------------------------------------------


def _heading(text: str) -> Row:
    return Row(f"heading {text}", (Cell(text),), is_heading=True)


def _call_row(call: CallRecord) -> Row:
    is_doubt = call.status == "in_doubt"
    return Row(
        f"call {call.call_id}",
        (
            Cell(texts.plain(call.name), "strong"),
            looks.status(call.status) if is_doubt else Cell("? asks you", "warn"),
            Cell(texts.clock(call.begun_at), "muted"),
            Cell(""),
            Cell(texts.plain(call.agent or call.conversation_id or ""), "muted"),
        ),
    )


def _orchestration_row(each: o.Orchestration, now: datetime) -> Row:
    return Row(
        f"orchestration {each.id}",
        (
            Cell(texts.plain(f"{each.pattern}  {each.stage}")),
            looks.status(each.status),
            Cell(texts.clock(each.created_at), "muted"),
            Cell(_lasted(each.created_at, each.ended_at, now), "muted"),
            Cell(texts.plain(each.topic), "muted"),
        ),
    )


def _run_row(run: w.WorkflowRun, now: datetime) -> Row:
    end = run.completed_at or (None if run.status in OPEN else run.updated_at)
    return Row(
        f"run {run.run_id}",
        (
            Cell(texts.plain(run.name) + ("  ↳" if run.parent_run_id else "")),
            looks.status(run.status),
            Cell(texts.clock(run.created_at), "muted"),
            Cell(_lasted(run.started_at or run.created_at, end, now), "muted"),
            Cell(texts.plain(run.key or run.queue or run.run_id), "muted"),
        ),
    )


def _lasted(start: datetime | None, end: datetime | None, now: datetime) -> str:
    return "" if start is None else texts.took(max(((end or now) - start).total_seconds(), 0.0))


def step_rows(
    run: w.WorkflowRun, steps: tuple[w.StepOutcome, ...], now: datetime, width: int
) -> list[Row]:
    """Lay steps out over time; what runs after the last recorded one has a line of its own."""
    times = [(step.started_at, step.completed_at) for step in steps]
    is_on = run.status == "running"
    if is_on:
        last = steps[-1].completed_at if steps else run.started_at
        times.append((last or run.started_at, None))
    drawn = spans(times, now, width)
    rows = []
    for step, span in zip(steps, drawn, strict=False):
        is_bad = step.error is not None
        said = texts.plain(step.error.code) if step.error is not None else "ok"
        look = "bad" if is_bad else "accent"
        rows.append(
            Row(
                str(step.number),
                (
                    Cell(str(step.number), "muted"),
                    Cell(texts.plain(step.name)),
                    Cell(_lasted(step.started_at, step.completed_at, now), "muted"),
                    Cell(" " * span.before + span.bar, look),
                    Cell(said, "bad" if is_bad else "muted"),
                ),
            )
        )
    if is_on:
        span = drawn[-1]
        took = _lasted(times[-1][0], None, now)
        bar = " " * span.before + span.bar.replace("━", "╍")
        rows.append(
            Row(
                "on",
                (
                    Cell("", "muted"),
                    Cell("at work", "accent"),
                    Cell(took, "muted"),
                    Cell(bar, "accent"),
                    Cell("…", "muted"),
                ),
            )
        )
    return rows


# -- facts ---------------------------------------------------------------------------------------


def _fact(name: str, value: object, colour: str = "") -> list[Any]:
    if value in (None, ""):
        return []
    return [(f"{name:11}", "$quiet"), (texts.plain(value), colour), "\n"]


def run_facts(got: w.WorkflowDescribed) -> list[Any]:
    """Write what is known of a run."""
    run = got.run
    cell = looks.status(run.status)
    parts = [
        *_fact("run", run.run_id),
        *_fact("workflow", f"{run.name}, version {run.version}"),
        *_fact("status", cell.text, LOOK_COLOURS.get(cell.look, "")),
        *_fact("key", run.key),
        *_fact("queue", run.queue),
        *_fact("begun", texts.day(run.created_at)),
        *_fact("due", texts.day(run.due_at)),
        *_fact("attempts", run.attempts if run.attempts > 1 else ""),
        *_fact("started by", run.parent_run_id),
        *_fact("forked from", run.forked_from),
    ]
    if got.args not in (None, {}, [], ""):
        parts += _fact("given", texts.compact(got.args, 300))
    if got.trouble is not None:
        parts += _fact("trouble", got.trouble.why, "$error")
        parts += _fact("in step", got.trouble.step)
    return parts


def call_facts(call: CallRecord) -> list[Any]:
    """Write what is known of a call that needs a person."""
    is_doubt = call.status == "in_doubt"
    what = "it asks you: d answers"
    if is_doubt:
        what = "nobody knows whether it happened: d settles it"
    return [
        *_fact("call", call.name, "bold"),
        *_fact("", what, "$error" if is_doubt else "$warning"),
        *_fact("given", texts.compact(call.arguments, 600)),
        *_fact("why", call.why),
        *_fact("agent", call.agent),
        "\n",
    ]


def orchestration_facts(told: o.StatusTold) -> list[Any]:
    """Write what is known of an orchestration, and who takes part."""
    each = told.orchestration
    cell = looks.status(each.status)
    at_least = "" if each.is_cost_known else "at least "
    where = f"{each.stage}, round {each.round}, {each.turns} turns"
    parts = [
        *_fact("topic", each.topic),
        *_fact("pattern", each.pattern),
        *_fact("status", f"{cell.text} {each.reason}", LOOK_COLOURS.get(cell.look, "")),
        *_fact("at", where if each.stage else f"{each.turns} turns"),
        *_fact("took", f"{each.tokens:,} tokens, {at_least}{texts.money(each.cost_usd)}"),
    ]
    for member in told.members:
        speaks = "  speaks now" if member.run_id else ""
        turns = f"{texts.plain(member.agent)}  {member.turns} turns"
        parts += [
            (f"{texts.plain(member.name)[:20]:20} ", "bold"),
            f"{turns}  {texts.money(member.cost_usd)}",
            (speaks, "$accent"),
            "\n",
        ]
    if each.error is not None:
        parts += _fact("error", each.error.message, "$error")
    return [*parts, "\n"]
