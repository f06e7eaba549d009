"""Agents: their tree, and of each its state, conversation, tool calls and log."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from ksi_agents import events as e
from ksi_client import NotFound
from ksi_completion.events import ConversationHistory, ConversationRead, NumberedMessage
from ksi_models.events import TextPart, ThinkingPart, ToolCallPart, ToolResultPart
from ksi_tools.events import CallRecord, ToolCalls, ToolCallsListed
from ksi_tui.model import texts
from ksi_tui.model.feed import named
from ksi_tui.model.known import Known, working
from ksi_tui.model.trees import Leaf, shown_phase, tree
from ksi_tui.screens import looks
from ksi_tui.screens.base import entitle
from ksi_tui.screens.dialogs import Confirm
from ksi_tui.screens.list_detail import ListAndDetail
from ksi_tui.widgets.frame import Press
from ksi_tui.widgets.rows import Cell, Column, Row, Rows

SECTIONS: Final = ("details", "conversation", "tools", "log")
ASKED: Final[tuple[e.Section, ...]] = (
    "conditions", "usage", "mailbox", "channels", "definition", "tools",
)  # fmt: skip
MESSAGES: Final = 50
CALLS: Final = 50
ENTRIES: Final = 100
SHOWN_CHARACTERS: Final = 4_000
COLUMNS: Final = (
    Column("agent", share=3),
    Column("state", width=18),
    Column("waits", width=5, is_number=True),
    Column("tok/min", width=7, is_number=True),
    Column("by", width=16, least=72),
    Column("restarts", width=8, least=72, is_number=True),
)


class AgentsScreen(ListAndDetail):
    """A tree of agents; what ends one is asked about first."""

    mode = "agents"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "Pause/resume"),
        Binding("r", "restart", "Restart"),
        Binding("t", "terminate", "Terminate"),
        Binding("left_square_bracket", "section(-1)", "Section before", show=False),
        Binding("right_square_bracket", "section(1)", "Section", key_display="[ ]"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.section = SECTIONS[0]

    def list_body(self) -> ComposeResult:
        """The tree."""
        yield Rows(COLUMNS, id="agent-list", classes="panel")

    def detail_body(self) -> ComposeResult:
        """The sections, and one of them."""
        with Horizontal(classes="sections"):
            for number, name in enumerate(SECTIONS):
                on = " -on" if number == 0 else ""
                yield Press(name, f"screen.show_section('{name}')", id=name, classes=on)
        with VerticalScroll(classes="page", id="agent-page"):
            yield Static(id="agent-text")

    def detail_focus(self) -> Widget:
        """The page, to be scrolled."""
        return self.query_one("#agent-page")

    # -- what is shown ----------------------------------------------------------------------------

    def put_list(self, known: Known, now: float) -> None:
        """Fill the tree."""
        table = self.main_table()
        agents = known.agents or ()
        title = f"Agents · filter {texts.plain(self.wanted)}" if self.wanted else "Agents"
        entitle(table, title, f"{working(agents)} of {len(agents)} at work" if agents else "")
        rows = [
            _row(leaf, known.tokens_of(leaf.agent.name, now))
            for leaf in tree(agents)
            if not self.wanted or named(self.wanted, leaf.agent.name, shown_phase(leaf.agent))
        ]
        why = "not known yet, or not there" if known.agents is None else "no agent"
        table.put(rows, empty=why)

    def agent(self, name: str | None) -> e.Agent | None:
        """Return what is known of an agent."""
        for agent in self.monitor.known.agents or ():
            if agent.name == name:
                return agent
        return None

    def state_of(self, key: str) -> tuple[object, bool]:
        """An agent that is busy goes on."""
        agent = self.agent(key)
        return (agent, self.section), agent is not None and agent.phase == "Busy"

    def show_nothing(self, why: str) -> None:
        """Show no agent."""
        entitle(self.query_one(".detail"), "")
        self.query_one("#agent-text", Static).update(Content(why))

    async def load(self, key: str) -> None:
        """Ask for the section that is shown."""
        agent = self.agent(key)
        if agent is None:
            self.show_nothing("")
            return
        loads: dict[str, Callable[[e.Agent], Awaitable[Content]]] = {
            "details": self._details,
            "conversation": self._conversation,
            "tools": self._tools,
            "log": self._log,
        }
        section = self.section
        content = await loads[section](agent)
        if self.still_shows(key) and self.section == section:
            entitle(self.query_one(".detail"), texts.plain(key))
            self._write(content, stays_at_end=section == "conversation")

    def _write(self, content: Content, *, stays_at_end: bool) -> None:
        page = self.query_one("#agent-page", VerticalScroll)
        was_at_end = page.scroll_offset.y >= page.max_scroll_y - 1
        self.query_one("#agent-text", Static).update(content)
        if stays_at_end and was_at_end:
            self.call_after_refresh(page.scroll_end, animate=False)

    async def _details(self, agent: e.Agent) -> Content:
        request = e.AgentGet(name=agent.name, sections=ASKED)
        return details(await self.monitor.watcher.ask("agent:get", request, e.AgentShown))

    async def _conversation(self, agent: e.Agent) -> Content:
        if not agent.conversation_id:
            return conversation(())
        request = ConversationHistory(conversation_id=agent.conversation_id, limit=MESSAGES)
        try:
            read: ConversationRead = await self.monitor.watcher.ask(
                "conversation:history", request, ConversationRead
            )
        except NotFound:  # it is made with the first message
            return conversation(())
        return conversation(read.messages)

    async def _tools(self, agent: e.Agent) -> Content:
        if not agent.conversation_id:
            return calls(())
        request = ToolCalls(conversation_id=agent.conversation_id, limit=CALLS)
        listed: ToolCallsListed = await self.monitor.watcher.ask(
            "tool:calls", request, ToolCallsListed
        )
        return calls(listed.calls)

    async def _log(self, agent: e.Agent) -> Content:
        request = e.AgentLogs(name=agent.name, limit=ENTRIES)
        listed: e.LogsListed = await self.monitor.watcher.ask("agent:logs", request, e.LogsListed)
        return log(listed.entries)

    # -- sections ---------------------------------------------------------------------------------

    def action_section(self, step: int) -> None:
        """Show the next section, or the one before."""
        at = (SECTIONS.index(self.section) + step) % len(SECTIONS)
        self.action_show_section(SECTIONS[at])

    def action_show_section(self, name: str) -> None:
        """Show a section."""
        self.section = name
        for each in SECTIONS:
            self.query_one(f"#{each}").set_class(each == name, "-on")
        self.query_one("#agent-page", VerticalScroll).scroll_home(animate=False)
        self.draw()

    def copied(self) -> str:
        """Copy the name of the agent."""
        return self.main_table().chosen or ""

    # -- actions ----------------------------------------------------------------------------------

    def action_pause(self) -> None:
        """Pause an agent, or have it go on."""
        agent = self.agent(self.main_table().chosen)
        if agent is not None:
            which = e.AgentSelect(names=(agent.name,))
            if agent.desired == "paused":
                self.monitor.act("agent:resume", e.AgentResume(which=which), "it goes on")
            else:
                self.monitor.act("agent:pause", e.AgentPause(which=which), "it is paused")

    def action_restart(self) -> None:
        """Start an agent anew."""
        agent = self.agent(self.main_table().chosen)
        if agent is not None:
            self._after(
                Confirm(
                    f"Restart {texts.plain(agent.name)}?",
                    "It starts anew, by the newest version of its definition. "
                    "What runs is cancelled; its mailbox stays.",
                    "restart it",
                ),
                "agent:restart",
                e.AgentRestart(which=e.AgentSelect(names=(agent.name,))),
                "it starts anew",
            )

    def action_terminate(self) -> None:
        """End an agent for good."""
        agent = self.agent(self.main_table().chosen)
        if agent is None:
            return
        below = sum(1 for _ in _descendants(agent.name, self.monitor.known.agents or ()))
        others = f" So are the {below} agents that it spawned." if below else ""
        self._after(
            Confirm(
                f"Terminate {texts.plain(agent.name)}?",
                "It is ended for good: what runs is cancelled, and so is what waits in its "
                f"mailbox.{others} Its conversation stays.",
                "terminate it",
            ),
            "agent:terminate",
            e.AgentTerminate(which=e.AgentSelect(names=(agent.name,))),
            "it is ended",
        )

    def _after(self, dialog: Confirm, event: str, data: Any, done: str) -> None:
        def act(is_sure: bool | None) -> None:
            if is_sure:
                self.monitor.act(event, data, done)

        self.app.push_screen(dialog, act)


def _descendants(name: str, agents: Iterable[e.Agent]) -> Iterable[str]:
    children: dict[str, list[str]] = {}
    for agent in agents:
        if agent.parent is not None:
            children.setdefault(agent.parent, []).append(agent.name)
    seen, waiting = {name}, [name]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in seen:
                seen.add(child)
                waiting.append(child)
                yield child


def _row(leaf: Leaf, tokens: float) -> Row:
    agent = leaf.agent
    return Row(
        agent.name,
        (
            Cell(f"{leaf.stem}{texts.plain(agent.name)}"),
            looks.phase(agent),
            Cell(texts.count(agent.waiting), "warn") if agent.waiting else Cell(""),
            Cell(texts.count(tokens), "accent") if tokens else Cell(""),
            Cell(f"{texts.plain(agent.definition)} {agent.version}", "muted"),
            Cell(str(agent.restarts) if agent.restarts else "", "warn"),
        ),
    )


# -- the sections as text -------------------------------------------------------------------------


def details(shown: e.AgentShown) -> Content:
    """Write an agent's page."""
    agent = shown.agent
    cell = looks.phase(agent)
    parts: list[Any] = [
        *_fact("state", cell.text, LOOK_COLOURS.get(cell.look, "")),
        *_fact("runs by", f"{agent.definition}, version {agent.version}"),
        *_fact("spawned by", agent.parent),
        *_fact("since", texts.day(agent.created_at)),
        *_fact("starts again", texts.day(agent.next_start_at)),
        *_fact("conversation", agent.conversation_id),
        *_fact("turn", agent.run_id),
        *_fact("labels", "  ".join(f"{name}={value}" for name, value in agent.labels.items())),
        *_fact("channels", ", ".join(shown.channels or ())),
        *_fact("may call", ", ".join(shown.tools or ()) or "nothing"),
    ]
    if shown.usage is not None and (shown.usage.requests or shown.usage.limits):
        parts += ["\n", *_spent(shown.usage)]
    if shown.conditions:
        parts += ["\n", ("conditions\n", "bold $quiet"), *_conditions(shown.conditions)]
    if shown.mailbox:
        parts += ["\n", ("mailbox\n", "bold $quiet"), *_mailbox(shown.mailbox)]
    prompt = (shown.definition or {}).get("prompt")
    if prompt:
        parts += ["\n", ("prompt\n", "bold $quiet"), cut(str(prompt))]
    return Content.assemble(*parts)


LOOK_COLOURS: Final = {
    "muted": "$quiet",
    "accent": "$accent",
    "good": "$success",
    "warn": "$warning",
    "bad": "$error",
}


def _fact(name: str, value: object, colour: str = "") -> list[Any]:
    if value in (None, ""):
        return []
    return [(f"{name:13}", "$quiet"), (texts.plain(value), colour), "\n"]


def _spent(spent: e.Spent) -> list[Any]:
    taken = f"{spent.requests:,} model calls, {spent.tool_calls:,} tool calls"
    cost = texts.money(spent.cost_usd)
    if spent.reserved_usd:
        cost += f", and {texts.money(spent.reserved_usd)} reserved"
    limits = "  ".join(f"{n}={v}" for n, v in spent.limits.items() if v is not None)
    return [
        *_fact("took", taken),
        *_fact("tokens", f"{spent.tokens:,}"),
        *_fact("cost", cost),
        *_fact("limits", limits),
    ]


def _conditions(conditions: Iterable[e.Condition]) -> list[Any]:
    parts: list[Any] = []
    for each in conditions:
        colour = {"True": "$success", "False": "$quiet"}.get(each.status, "$warning")
        words = texts.plain(f"{each.reason} {each.message}")
        parts += [(f"{texts.plain(each.type):13}", ""), (f"{each.status:8}", colour), words, "\n"]
    return parts


def _mailbox(mailbox: Iterable[e.Mail]) -> list[Any]:
    parts: list[Any] = []
    for mail in mailbox:
        cell = looks.status(mail.status)
        parts += [
            (f"{mail.number:>5}  ", "$quiet"),
            (f"{cell.text:13}", LOOK_COLOURS.get(cell.look, "")),
            texts.plain(mail.prompt)[:200],
            "\n",
        ]
    return parts


def cut(text: str) -> str:
    """Return a text that may be shown, and say so where there is more of it."""
    shown = texts.lines(text[:SHOWN_CHARACTERS])
    rest = len(text) - SHOWN_CHARACTERS
    return f"{shown}\n… and {rest:,} characters more" if rest > 0 else shown


def conversation(messages: Iterable[NumberedMessage]) -> Content:
    """Write a conversation, the newest message last."""
    parts: list[Any] = []
    for message in messages:
        colour = {"user": "$primary", "assistant": "$accent"}.get(message.role, "$quiet")
        model = f"  {texts.plain(message.model)}" if message.model else ""
        parts += [
            (texts.plain(message.role), f"bold {colour}"),
            (f"  {texts.clock(message.created_at)}{model}\n", "$quiet"),
        ]
        for part in message.parts:
            parts += _part(part)
        parts.append("\n")
    return Content.assemble(*parts) if parts else Content.styled("nothing was said yet", "$quiet")


def _part(part: Any) -> list[Any]:
    if isinstance(part, TextPart):
        return [cut(part.text), "\n"]
    if isinstance(part, ThinkingPart):
        return [(cut(part.text), "italic $quiet"), "\n"]
    if isinstance(part, ToolCallPart):
        return [("→ ", "$secondary"), texts.plain(f"{part.name} {part.arguments}")[:500], "\n"]
    if isinstance(part, ToolResultPart):
        colour = "$error" if part.is_error else "$quiet"
        return [("← ", "$secondary"), (cut(part.content), colour), "\n"]
    return [("[a file]", "$quiet"), "\n"]


def calls(records: Iterable[CallRecord]) -> Content:
    """Write the calls of tools, the newest first."""
    parts: list[Any] = []
    for call in records:
        cell = looks.status(call.status)
        took = None if call.ended_at is None else (call.ended_at - call.begun_at).total_seconds()
        parts += [
            (f"{texts.clock(call.begun_at)}  ", "$quiet"),
            (f"{cell.text:12}", LOOK_COLOURS.get(cell.look, "")),
            (texts.plain(call.name), "bold"),
            (f"  {texts.took(took)}\n", "$quiet"),
            f"          {texts.compact(call.arguments, 300)}\n",
        ]
        said = call.why or call.content
        if said:
            parts.append((f"          {texts.plain(said)[:300]}\n", "$quiet"))
    return Content.assemble(*parts) if parts else Content.styled("no calls yet", "$quiet")


def log(entries: Iterable[e.LogEntry]) -> Content:
    """Write what happened to an agent, the newest first."""
    parts: list[Any] = []
    for entry in entries:
        is_bad = "fail" in entry.kind or "crash" in entry.kind
        parts += [
            (f"{texts.clock(entry.at)}  ", "$quiet"),
            (f"{texts.plain(entry.kind):12}", "$error" if is_bad else "$accent"),
            texts.plain(entry.message),
            "\n",
        ]
    return Content.assemble(*parts) if parts else Content.styled("nothing happened yet", "$quiet")
