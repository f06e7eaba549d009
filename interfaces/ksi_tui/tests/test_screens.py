"""What a person does in the monitor, and what comes of it; without a daemon."""

from typing import Any

from msgspec.structs import replace
from textual.pilot import Pilot
from textual.widgets import Static

from ksi_agents.events import AgentPause, AgentResume, AgentSelect, AgentTerminate
from ksi_completion.events import CompletionCancel
from ksi_orchestration.events import OrchestrationStop
from ksi_tools.events import ToolAnswer, ToolResolve
from ksi_tui.app import Monitor
from ksi_tui.model.feed import Seen
from ksi_tui.model.known import Known
from ksi_tui.screens.dialogs import Confirm, Help
from ksi_tui.screens.events import EventDialog
from ksi_tui.testing import HOSTILE, NOW, busy_world, press, settled
from ksi_tui.tests.conftest import WIDE
from ksi_tui.widgets.frame import Banner
from ksi_tui.widgets.hints import Hints
from ksi_tui.widgets.rows import Rows
from ksi_workflows.events import WorkflowFork, WorkflowRelease, WorkflowResume

SMALL = (80, 24)


def the(pilot: Pilot[None]) -> Monitor:
    """Return the app."""
    assert isinstance(pilot.app, Monitor)
    return pilot.app


async def know(pilot: Pilot[None], known: Known) -> None:
    """Have the monitor know something else."""
    app = the(pilot)
    app.watcher.known = app.known = known
    app.tick()
    await settled(pilot)


def shown(app: Monitor) -> str:
    """Return what the terminal shows, line by line."""
    console = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in console)


def rows(app: Monitor, selector: str) -> list[str]:
    return [row.key for row in app.screen.query_one(selector, Rows).rows]


def sent(app: Monitor) -> list[tuple[str, Any]]:
    """Return what was to be done."""
    found: list[tuple[str, Any]] = app.watcher.sent  # type: ignore[attr-defined]  # a still one
    return found


async def choose(pilot: Pilot[None], selector: str, key: str) -> None:
    pilot.app.screen.query_one(selector, Rows).choose(key)
    await settled(pilot)


async def test_keys_and_the_mouse_lead_to_every_screen_and_its_help(pilot: Pilot[None]) -> None:
    app = the(pilot)
    seen = []
    for key in ("2", "3", "4", "1"):
        await press(pilot, key)
        seen.append(app.current_mode)
    await pilot.click(app.screen.query(".tab")[2])
    await settled(pilot)
    clicked = app.current_mode
    hint = shown(app).splitlines()[-1].index("? Help")
    await pilot.click(Hints, offset=(hint, 0))
    await settled(pilot)
    is_help = isinstance(app.screen, Help)
    await press(pilot, "2", "escape")

    assert seen == ["agents", "events", "runs", "overview"]
    assert clicked == "events"
    assert is_help
    assert app.current_mode == clicked


async def test_the_overview_leads_to_what_is_chosen_in_it(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await settled(pilot)
    await pilot.click("#agents", offset=(5, 5), times=2)
    await settled(pilot)
    agent = (app.current_mode, app.screen.query_one("#agent-list", Rows).chosen)
    await press(pilot, "1", "tab", "tab", "enter")
    call = (app.current_mode, app.screen.query_one("#run-list", Rows).chosen)

    assert agent == ("agents", "summarizer")
    assert call == ("runs", "call call-9")


async def test_agents_are_filtered_and_the_filter_is_given_up(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await press(pilot, "2", "slash", *"res*", "enter")
    found = rows(app, "#agent-list")
    await press(pilot, "escape")

    assert found == ["researcher-1", "researcher-2"]
    assert len(rows(app, "#agent-list")) == 8


async def test_an_agent_is_paused_at_once_but_ends_only_when_that_was_confirmed(
    pilot: Pilot[None],
) -> None:
    app = the(pilot)
    await press(pilot, "2", "p")
    await choose(pilot, "#agent-list", "nightly")
    await press(pilot, "p")
    await choose(pilot, "#agent-list", "desk")
    await press(pilot, "t")
    asked = isinstance(app.screen, Confirm)
    said = shown(app)
    await press(pilot, "n", "t", "enter", "t", "escape")
    before = list(sent(app))
    await press(pilot, "t", "y")

    desk, nightly = AgentSelect(names=("desk",)), AgentSelect(names=("nightly",))
    assert before == [
        ("agent:pause", AgentPause(which=desk)),
        ("agent:resume", AgentResume(which=nightly)),
    ]
    assert asked
    assert "So are the 4 agents that it spawned." in said
    assert sent(app)[2:] == [("agent:terminate", AgentTerminate(which=desk))]


async def test_an_agent_shows_its_conversation_its_tool_calls_and_its_log(
    pilot: Pilot[None],
) -> None:
    app = the(pilot)
    pages = []
    for keys in (("2",), *[("right_square_bracket",)] * 3):
        await press(pilot, *keys)
        pages.append(str(app.screen.query_one("#agent-text", Static).content))

    assert "88,214" in pages[0]
    assert "Let me look." in pages[1]
    assert "send_letter" in pages[2]
    assert "by the owner" in pages[3]


async def test_runs_end_go_on_and_are_forked_from_the_chosen_step(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await press(pilot, "4")
    for key, action in (("run run-71", "c"), ("orchestration debate-7", "c")):
        await choose(pilot, "#run-list", key)
        await press(pilot, action, "y")
    for key in ("run run-79", "run run-90", "run run-75"):  # the last one has finished
        await choose(pilot, "#run-list", key)
        await press(pilot, "g")
    await press(pilot, "c", "enter", "down", "down", "f", "y")

    assert sent(app) == [
        ("completion:cancel", CompletionCancel(run_id="run-71")),
        (
            "orchestration:stop",
            OrchestrationStop(id="debate-7", reason="by a person, in the monitor"),
        ),
        ("workflow:release", WorkflowRelease(run_id="run-79")),
        ("workflow:resume", WorkflowResume(run_id="run-90")),
        ("workflow:fork", WorkflowFork(run_id="run-75", from_step=3)),
    ]


async def test_a_doubt_is_settled_and_a_question_answered(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await press(pilot, "4", "d", *"sent", "enter")  # no verdict yet
    nothing = list(sent(app))
    await press(pilot, "ctrl+d")
    await choose(pilot, "#run-list", "run run-72")
    await press(pilot, "d", "ctrl+r", *"two", "enter")

    assert nothing == []
    assert sent(app) == [
        ("tool:resolve", ToolResolve(call_id="call-9", verdict="done", content="sent")),
        ("tool:answer", ToolAnswer(call_id="call-12", content="two")),
    ]


async def test_events_are_filtered_held_still_and_looked_into(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await press(pilot, "3", "v", "v")
    errors = rows(app, "#events")
    await press(pilot, "v", "slash", *"model:*", "enter")
    calls = rows(app, "#events")
    await press(pilot, "space")
    late = Seen(at=NOW, name="model:late", id="late")
    app.known.feed.offer("late", lambda: late)
    app.known.frame()
    app.known.revision += 1
    app.tick()
    held = rows(app, "#events")
    title = str(app.screen.query_one("#events").border_subtitle)
    await press(pilot, "space")
    after = rows(app, "#events")
    await press(pilot, "enter")
    looked = shown(app)
    is_open = isinstance(app.screen, EventDialog)

    assert errors == ["e-6", "e-5"]
    assert calls == held == ["e-8", "e-2"]
    assert title == "held · 1 since"
    assert after == ["late", "e-8", "e-2"]
    assert is_open
    assert "model:late" in looked


async def test_a_copy_is_of_what_is_chosen(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await press(pilot, "2", "y")
    agent = app.clipboard
    await press(pilot, "4", "down", "down", "down", "y")

    assert agent == "desk"
    assert app.clipboard == "run-71"


async def test_the_palette_offers_what_the_screen_can_do(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await press(pilot, "2")
    names = [each.title for each in app.get_system_commands(app.screen)]
    await press(pilot, "ctrl+p", *"Terminate", "enter")

    assert {"Runs", "Terminate", "Restart", "Start the daemon", "Keys"} <= set(names)
    assert "Back" not in names
    assert isinstance(app.screen, Confirm)


async def test_every_theme_has_the_colours_that_are_needed(pilot: Pilot[None]) -> None:
    app = the(pilot)
    for theme in ("nord", "ksi-dark"):
        app.theme = theme
        await settled(pilot)
        assert "researcher-1" in shown(app)


async def test_in_a_small_terminal_enter_opens_and_escape_goes_back(pilot: Pilot[None]) -> None:
    app = the(pilot)
    await pilot.resize_terminal(*SMALL)
    await press(pilot, "2")
    before = app.screen.query_one(".detail").display
    await press(pilot, "down", "enter")
    opened = (app.screen.query_one(".detail").display, app.screen.query_one(".list").display)
    await press(pilot, "escape")

    assert not before
    assert opened == (True, False)
    assert app.screen.query_one(".list").display
    assert app.screen.query_one("#agent-list", Rows).chosen == "researcher-1"


async def test_a_daemon_that_is_away_is_said_to_be_and_what_was_known_stays(
    pilot: Pilot[None],
) -> None:
    app, known, why = the(pilot), busy_world(), "no daemon listens on [here]; start it: ksi start"
    known.linked("away", NOW.timestamp() - 5, why)
    await pilot.resize_terminal(*SMALL)
    await know(pilot, known)
    away = shown(app)
    known.linked("here", NOW.timestamp())
    app.tick()
    await settled(pilot)

    assert why in away
    assert "away 5s" in away
    assert "researcher-1" in away
    assert not app.screen.query_one(Banner).has_class("-shown")


async def test_before_anything_is_known_there_is_nothing_to_show_and_no_error(
    pilot: Pilot[None],
) -> None:
    await pilot.resize_terminal(*SMALL)
    await know(pilot, Known())
    for keys in (("enter", "y"), "2prt", "3c", "4cgfdp"):
        await press(pilot, *keys, "enter", "escape")

    assert sent(the(pilot)) == []


async def test_no_text_of_others_is_markup_or_steers_the_terminal(pilot: Pilot[None]) -> None:
    known = busy_world()
    known.agents = tuple(replace(each, reason=HOSTILE) for each in known.agents or ())
    hostile = Seen(
        at=NOW,
        name=HOSTILE,
        id=HOSTILE,
        agent=HOSTILE,
        origin=HOSTILE,
        outcome=HOSTILE,
        message=HOSTILE,
        payload=HOSTILE,
        severity="error",
    )
    known.feed.offer(HOSTILE, lambda: hostile)
    known.frame()
    known.linked("away", 0.0, HOSTILE)
    app, screens = the(pilot), []
    for size in (SMALL, WIDE):
        await pilot.resize_terminal(*size)
        await know(pilot, known)
        screens.append(shown(app))
        await press(pilot, "3")
        screens.append(shown(app))
        await press(pilot, "enter")
        screens.append(shown(app))
        await press(pilot, "escape", "2")
        app.say(HOSTILE, is_bad=True)
        await settled(pilot)
        screens.append(shown(app))
        await press(pilot, "1")

    for screen in screens:
        assert not set(screen) & {"\x1b", "\x07", "\u202e", "\r"}
        assert "\\x1b[31m[bold]red" in screen
