"""Takes checkpoints and applies them: asks plugins for their state, and gives it back."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from ksi_checkpoint import events as e
from ksi_checkpoint.settings import CheckpointSettings
from ksi_checkpoint.states import Saved, is_name, is_sound, saved_of, told
from ksi_checkpoint.store import Checkpoints, Entry, Head
from ksi_daemon.event_system import current_context
from ksi_daemon.protocol import (
    Context,
    ErrorBody,
    Event,
    Failed,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_daemon.router import Contribution, Router
from ksi_daemon.routes import Route

log = logging.getLogger(__name__)

COLLECT: Final = "checkpoint:collect"
APPLY: Final = "checkpoint:apply"
RETRY_S: Final = 0.5
NOBODY: Final = ""  # the tenant in whose name plugins are asked


class Keeper:
    """The one that holds the plugins' states, and what went wrong with them.

    Args:
        router: Knows who contributes.
        store: Where they are kept.
        settings: Bounds and times.
        publish: Shows an event to who listens.

    Attributes:
        restored: Whether what the plugins had before this start has been given back, so that their
            state of now may take its place.
        problems: What health complains of: what was tried, and with which plugin.
    """

    def __init__(
        self,
        router: Router,
        store: Checkpoints,
        settings: CheckpointSettings,
        publish: Callable[[str, Any], None],
    ) -> None:
        self.restored = False
        self.problems: dict[tuple[str, str], str] = {}
        self._router = router
        self._store = store
        self._settings = settings
        self._publish = publish
        self._lock = asyncio.Lock()
        self._last: frozenset[tuple[str, bytes]] | None = None  # what the last one holds

    # -- taking ---------------------------------------------------------------------------------

    async def take(
        self, reason: str, *, within_s: float | None = None, only_if_changed: bool = False
    ) -> e.CheckpointCreated | None:
        """Take a checkpoint; ``None`` where nothing has changed and that was asked for.

        Args:
            reason: For people.
            within_s: How long all of it may take.
            only_if_changed: Whether to leave it where the last one holds the same.

        Raises:
            Unavailable: What was saved before is not given back yet, or Postgres is away.
            TimedOut: It took too long.
        """
        if not self.restored:
            raise Unavailable(
                "what was saved before this start is not given back yet", retry_after_s=RETRY_S
            )
        try:
            return await self._take(reason, within_s, only_if_changed)
        except TimeoutError as error:
            self.problems["save", ""] = "no checkpoint could be taken: it took too long"
            raise TimedOut(f"the checkpoint was not taken in {within_s} s") from error
        except KsiError as error:
            self.problems["save", ""] = f"no checkpoint could be taken: {error.message}"
            raise

    async def _take(
        self, reason: str, within_s: float | None, only_if_changed: bool
    ) -> e.CheckpointCreated | None:
        settings = self._settings
        async with asyncio.timeout(within_s), self._lock:
            limit = settings.collect_timeout_s
            answers = await self._collect(limit if within_s is None else min(limit, within_s / 2))
            entries = saved_of(
                answers,
                max_state_bytes=settings.max_state_bytes,
                max_checkpoint_bytes=settings.max_checkpoint_bytes,
            )
            self._note("save", {each.plugin: each.error for each in entries})
            holds = frozenset((each.plugin, each.checksum or b"") for each in entries)
            if only_if_changed and holds == self._last:
                self.problems.pop(("save", ""), None)
                return None
            head = await self._store.save(
                entries,
                reason,
                keep_count=settings.keep_count,
                keep_days=settings.keep_days,
                timeout_s=settings.save_timeout_s,
            )
            self._last = holds
        self.problems.pop(("save", ""), None)
        return self._created(head, entries)

    async def _collect(self, limit: float) -> list[Contribution]:
        members = [(member, e.CheckpointCollect()) for member in self._members(COLLECT)]
        answers = await self._ask(members, limit)
        nameless = sum(not is_name(answer.plugin) for answer in answers)
        if nameless:
            log.warning("contributors with unusable names were left out", extra={"n": nameless})
        return answers

    def _created(self, head: Head, entries: Iterable[Saved]) -> e.CheckpointCreated:
        created = e.CheckpointCreated(
            id=head.id,
            taken_at=head.taken_at,
            reason=head.reason,
            plugins=tuple(
                e.PluginState(plugin=each.plugin, version=each.version, size_bytes=len(each.state))
                for each in entries
                if each.version is not None and each.state is not None
            ),
            problems=tuple(
                e.PluginProblem(plugin=each.plugin, error=each.error)
                for each in entries
                if each.error is not None
            ),
        )
        log.info(
            "took a checkpoint",
            extra={
                "checkpoint": head.id,
                "reason": head.reason,
                "plugins": len(created.plugins),
                "problems": len(created.problems),
            },
        )
        self._publish("checkpoint:created", created)
        return created

    # -- giving back ----------------------------------------------------------------------------

    async def begin(self) -> None:
        """Give back what the plugins had before this start; from now on checkpoints are taken."""
        newest = await self._store.newest()
        if newest is not None:
            await self._restore(newest, None)
        self.restored = True

    async def restore(
        self, checkpoint: int | None, plugins: tuple[str, ...] | None
    ) -> e.CheckpointRestored:
        """Give plugins back what a checkpoint holds of them.

        Raises:
            NotFound: There is no such checkpoint, or it holds nothing of one of the plugins.
        """
        return await self._restore(await self._store.find(checkpoint), plugins)

    async def _restore(self, head: Head, plugins: tuple[str, ...] | None) -> e.CheckpointRestored:
        async with self._lock:  # what is half given back must not be saved
            chosen = _chosen(await self._store.entries(head.id), plugins, head)
            states: dict[str, e.PluginState] = {}
            payloads: dict[str, dict[str, Any]] = {}
            problems: dict[str, ErrorBody] = {}
            for entry in chosen:
                found = await self._sound(head, entry)
                if found is None:
                    problems[entry.plugin] = entry.error or _damaged(entry.plugin, head.id)
                    continue
                states[entry.plugin], payloads[entry.plugin] = found
            self._note("restore", problems)
            problems |= await self._apply(payloads)
        return self._done(head, states, problems)

    async def _sound(self, head: Head, entry: Entry) -> tuple[e.PluginState, dict[str, Any]] | None:
        """Find a plugin's newest state that is as it was saved."""
        async for each in self._store.states(head, entry.plugin):
            if not is_sound(entry.plugin, each.version, each.state, each.checksum):
                damage = _damaged(entry.plugin, each.checkpoint).message
                self.problems["read", entry.plugin] = damage
                log.error(
                    "a saved state is damaged, so that before is taken", extra={"why": damage}
                )
                continue
            other = each.checkpoint if each.checkpoint != head.id else None
            state = e.PluginState(
                plugin=entry.plugin,
                version=each.version,
                size_bytes=len(each.state),
                from_checkpoint=other,
            )
            return state, {"version": each.version, "state": msgspec.json.decode(each.state)}
        return None

    async def _apply(self, payloads: Mapping[str, Any]) -> dict[str, ErrorBody]:
        """Hand each plugin its own, and return who did not take it."""
        members = [member for member in self._members(APPLY) if member.plugin in payloads]
        asked = [(member, payloads[member.plugin]) for member in members]
        answers = await self._ask(asked, self._settings.apply_timeout_s)
        there = {member.plugin for member in members}
        absent = told(NotFound("it is not here, or does not contribute to checkpoint:apply"))
        missing = {plugin: absent for plugin in payloads if plugin not in there}
        refused = {each.plugin: told(each.error) for each in answers if each.error is not None}
        self._note("restore", {plugin: refused.get(plugin) for plugin in there})
        return missing | refused

    def _done(
        self, head: Head, states: Mapping[str, e.PluginState], problems: Mapping[str, ErrorBody]
    ) -> e.CheckpointRestored:
        restored = e.CheckpointRestored(
            id=head.id,
            taken_at=head.taken_at,
            plugins=tuple(state for plugin, state in states.items() if plugin not in problems),
            problems=tuple(
                e.PluginProblem(plugin=plugin, error=error)
                for plugin, error in sorted(problems.items())
            ),
        )
        log.info(
            "applied a checkpoint",
            extra={
                "checkpoint": head.id,
                "plugins": len(restored.plugins),
                "problems": len(restored.problems),
            },
        )
        self._publish("checkpoint:restored", restored)
        return restored

    # -- looking --------------------------------------------------------------------------------

    async def show(self, checkpoint: int, plugin: str | None) -> e.CheckpointShown:
        """Describe a checkpoint, and one plugin's state in it.

        Raises:
            NotFound: There is no such checkpoint, or it holds nothing of the plugin.
            Failed: The state is damaged.
        """
        head = await self._store.find(checkpoint)
        entries = await self._store.entries(checkpoint)
        state = None
        if plugin is not None:
            (entry,) = _chosen(entries, (plugin,), head)
            state = await self._state_in(head, entry)
        return e.CheckpointShown(
            id=head.id,
            daemon=head.daemon,
            reason=head.reason,
            taken_at=head.taken_at,
            plugins=tuple(
                e.PluginState(plugin=each.plugin, version=each.version, size_bytes=each.size_bytes)
                for each in entries
                if each.version is not None and each.size_bytes is not None
            ),
            problems=tuple(
                e.PluginProblem(plugin=each.plugin, error=each.error)
                for each in entries
                if each.error is not None
            ),
            state=state,
        )

    async def _state_in(self, head: Head, entry: Entry) -> Any:
        if entry.error is not None:
            raise NotFound(f"checkpoint {head.id} has no state of it: {entry.error.message}")
        async for each in self._store.states(head, entry.plugin):
            if each.checkpoint != head.id:
                break
            if not is_sound(entry.plugin, each.version, each.state, each.checksum):
                raise Failed(_damaged(entry.plugin, head.id).message)
            return msgspec.json.decode(each.state)
        raise NotFound(f"checkpoint {head.id} is gone")

    def acknowledge(self) -> tuple[str, ...]:
        """Forget the problems, and return them."""
        seen = tuple(self.problems.values())
        self.problems.clear()
        return seen

    # -- asking ---------------------------------------------------------------------------------

    def _members(self, name: str) -> list[Route]:
        return list(self._router.contributors.get(name, ()))

    async def _ask(self, asked: Iterable[tuple[Route, Any]], limit: float) -> list[Contribution]:
        """Send each contributor a payload of its own.

        In nobody's name: what is sent is shown to subscribers, too, and a plugin's state is that of
        all its tenants, so none but the owner's may see it.
        """
        context = self._router.child_of(current_context(), "checkpoint")
        context = msgspec.structs.replace(
            context, tenant=NOBODY, user=None, agent=None, conversation=None, run=None
        )
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(
                    self._router.contribution(member, _event(member, data, context), limit),
                    name=f"{member.name} of {member.plugin}",
                )
                for member, data in asked
            ]
        return [task.result() for task in running]

    def _note(self, what: str, outcomes: Mapping[str, ErrorBody | None]) -> None:
        """Remember what went wrong with each plugin, or that it went well."""
        for plugin, error in outcomes.items():
            if error is None:
                self.problems.pop((what, plugin), None)
                continue
            done = "saved" if what == "save" else "given back"
            sentence = f"the state of {plugin} was not {done}: {error.message}"
            log.warning("a plugin's state was left out", extra={"why": sentence})
            self.problems[what, plugin] = sentence


def _event(member: Route, data: Any, context: Context) -> Event:
    return Event(member.name, data, context)


def _chosen(entries: Iterable[Entry], plugins: tuple[str, ...] | None, head: Head) -> list[Entry]:
    """Pick plugins' entries; all of them unless some are named."""
    known = {entry.plugin: entry for entry in entries}
    for plugin in plugins or ():
        if plugin not in known:
            raise NotFound(f"checkpoint {head.id} holds nothing of {plugin!r}")
    return [entry for name, entry in known.items() if plugins is None or name in plugins]


def _damaged(plugin: str, checkpoint: int) -> ErrorBody:
    damaged = Failed(f"what checkpoint {checkpoint} holds of {plugin} is damaged")
    return told(damaged)
