"""How things are shown in every table: the same state always in the same colour."""

from typing import Final

from ksi_agents.events import Agent
from ksi_tui.model import texts
from ksi_tui.model.feed import Seen
from ksi_tui.model.trees import shown_phase
from ksi_tui.widgets.rows import Cell
from ksi_workflows.events import RunStatus

PHASES: Final = {
    "Ready": ("●", "good"),
    "Busy": ("◆", "accent"),
    "Paused": ("‖", "warn"),
    "Pending": ("○", "muted"),
    "Starting": ("○", "warn"),
    "Completed": ("✓", "muted"),
    "Terminated": ("×", "muted"),
}
STATUSES: Final[dict[RunStatus | str, tuple[str, str]]] = {
    "waiting": ("○", "warn"),
    "queued": ("○", "muted"),
    "delayed": ("○", "muted"),
    "given": ("◆", "accent"),
    "running": ("◆", "accent"),
    "paused": ("‖", "warn"),
    "finished": ("✓", "good"),
    "succeeded": ("✓", "good"),
    "done": ("✓", "good"),
    "failed": ("✗", "bad"),
    "cancelled": ("×", "muted"),
    "stopped": ("×", "muted"),
    "dropped": ("×", "muted"),
    "quarantined": ("!", "bad"),
    "in_doubt": ("?", "bad"),
}
SEVERITY_LOOKS: Final = {"info": "muted", "warning": "warn", "error": "bad"}


def phase(agent: Agent) -> Cell:
    """Show an agent's state."""
    shown = shown_phase(agent)
    sign, look = PHASES.get(shown, ("✗", "bad"))
    return Cell(f"{sign} {texts.plain(shown)}", look)


def status(name: str) -> Cell:
    """Show a run's status."""
    sign, look = STATUSES.get(name, ("·", "text"))
    return Cell(f"{sign} {texts.plain(name).replace('_', ' ')}", look)


def outcome(seen: Seen) -> Cell:
    """Show how an event went."""
    if seen.outcome is None:
        return Cell("·", SEVERITY_LOOKS[seen.severity])
    return Cell(texts.plain(seen.outcome), SEVERITY_LOOKS[seen.severity])


def who(seen: Seen) -> str:
    """Name whose event it is."""
    return texts.plain(seen.agent or seen.origin)
