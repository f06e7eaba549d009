"""Applies definitions: works out what they come to, and what becomes of those that extend them."""

import asyncio
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ksi_agents.definition_store import Change, DefinitionStore, Head, Kept
from ksi_agents.documents import Parsed
from ksi_agents.events import Applied, Problem
from ksi_agents.fields import faults_of
from ksi_agents.inheritance import MAX_LEVELS, extended
from ksi_agents.settings import AgentsSettings
from ksi_agents.standing import VERSION, Standing
from ksi_daemon.fields import written
from ksi_daemon.protocol import Busy, Conflict, InvalidData
from ksi_daemon.protocol.names import did_you_mean

__all__ = ["Applying", "Outcome", "diff_of", "diff_of_resolved"]

MAX_DIFF_LINES: Final = 3000
MAX_DIFF_CHARACTERS: Final = 100_000


class Outcome(Struct, frozen=True, kw_only=True):
    """What applying came to.

    Attributes:
        parsed: The definitions that were given.
        applied: What became of them, and of others because of them.
        problems: What is wrong.
        is_kept: Whether anything was changed.
    """

    parsed: list[Parsed]
    applied: tuple[Applied, ...] = ()
    problems: tuple[Problem, ...] = ()
    is_kept: bool = False


class Step(Struct, frozen=True, kw_only=True):
    """What is to become of one definition."""

    action: Literal["created", "changed", "unchanged", "pruned"]
    kept: Kept
    was: Kept | None = None
    set_name: str = ""


class Plan:
    """Works out what definitions come to beside those that there are.

    Args:
        parsed: What is applied.
        pruned: The names that go.
        heads: The names that were there ever.
        kept: The newest versions of those that have to do with it.
        standing: Those that every tenant has.
    """

    def __init__(
        self,
        parsed: Iterable[Parsed],
        pruned: Collection[str],
        heads: Mapping[str, Head],
        kept: Mapping[str, Kept],
        standing: Standing,
    ) -> None:
        self.resolved: dict[str, dict[str, Any]] = {}
        self.problems: list[Problem] = []
        self.kept = kept
        self._parsed = {each.name: each for each in parsed}
        self._pruned = pruned
        self._heads = heads
        self._standing = standing

    def names(self) -> list[str]:
        """Return all names that an agent may extend."""
        live = (name for name, head in self._heads.items() if self._is_live(head))
        return sorted({*self._parsed, *live, *self._standing})

    def _is_live(self, head: Head) -> bool:
        return not head.is_removed and head.name not in self._pruned

    def base_of(self, name: str) -> str | None:
        """Return what a definition is to extend."""
        if name in self._parsed:
            base: str | None = self._parsed[name].given.get("extends")
            return base
        head = self._heads.get(name)
        return head.extends if head is not None and self._is_live(head) else None

    def _is_there(self, name: str) -> bool:
        head = self._heads.get(name)
        return (
            name in self._parsed
            or (head is not None and self._is_live(head))
            or self._standing.find(name) is not None
        )

    def orphans(self) -> dict[str, list[str]]:
        """Return the pruned names that others extend which stay, with these."""
        found: dict[str, list[str]] = {}
        for head in self._heads.values():
            base = self.base_of(head.name)
            if base is not None and base in self._pruned and not self._is_there(base):
                found.setdefault(base, []).append(head.name)
        return found

    def check(self, heirs: Iterable[str]) -> None:
        """Note what can't be extended, and what makes no sense with what it extends."""
        for names in (self._parsed, heirs):
            for name in names:
                why = self._why_wrong(name)
                if why:
                    self._note(name, why)
            if self.problems:
                return  # those that extend them would say the same
        for name in (*self._parsed, *heirs):
            if self.base_of(name) is not None:
                for fault in faults_of(self.resolve(name)):
                    what = f"{written(fault.path)}: {fault.message}"
                    self._note(name, f"with what it extends: {what}")

    def _note(self, name: str, why: str) -> None:
        parsed = self._parsed.get(name)
        if parsed is None:
            self.problems.append(Problem(path=name, field="extends", message=why))
        else:
            self.problems.append(parsed.problem(why, "extends"))

    def _why_wrong(self, name: str) -> str:
        chain = [name]
        while (base := self.base_of(chain[-1])) is not None:
            if base in chain:
                return f"it leads in a circle: {' → '.join([*chain, base])}"
            if not self._is_there(base):
                hint = did_you_mean(base, self.names())
                whose = "" if len(chain) == 1 else f", which {chain[-1]} extends"
                return f"there is no definition {base!r}{whose}{hint}"
            chain.append(base)
            if len(chain) > MAX_LEVELS:
                return f"it extends more than {MAX_LEVELS - 1} definitions, one the other"
        return ""

    def resolve(self, name: str) -> dict[str, Any]:
        """Return what a definition comes to; those that it extends are there."""
        if name not in self.resolved:
            self.resolved[name] = self._resolve(name)
        return self.resolved[name]

    def _resolve(self, name: str) -> dict[str, Any]:
        head = self._heads.get(name)
        if name in self._parsed:
            given = self._parsed[name].given
        elif head is not None and self._is_live(head):
            given = self.kept[name].given
        else:
            standing = self._standing.find(name)
            assert standing is not None  # it was looked for before
            return standing.resolved
        base = given.get("extends")
        return given if base is None else extended(given, self.resolve(base))


def heirs_of(names: Collection[str], heads: Mapping[str, Head]) -> set[str]:
    """Return those that extend one of these, however far; without these."""
    heirs: dict[str, list[str]] = {}
    for head in heads.values():
        if head.extends is not None and not head.is_removed:
            heirs.setdefault(head.extends, []).append(head.name)
    return _reached(names, lambda name: heirs.get(name, [])) - set(names)


def _with_bases(names: Iterable[str], heads: Mapping[str, Head]) -> set[str]:
    """Return names and all that they extend, however far."""

    def above(name: str) -> list[str]:
        base = heads[name].extends if name in heads else None
        return [] if base is None else [base]

    return _reached(names, above)


def _reached(names: Iterable[str], onward: Callable[[str], list[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += onward(name)
    return found


class Applying:
    """Applies definitions.

    Args:
        store: Keeps them.
        standing: Those that every tenant has.
        settings: The bounds.
    """

    def __init__(
        self, store: DefinitionStore, standing: Standing, settings: AgentsSettings
    ) -> None:
        self._store = store
        self._standing = standing
        self._settings = settings

    async def apply(
        self,
        tenant: str,
        parsed: list[Parsed],
        problems: list[Problem],
        set_name: str,
        by: str,
        *,
        prune: bool,
        dry_run: bool,
    ) -> Outcome:
        """Work out what definitions come to, and keep them unless something is wrong."""
        problems = [*problems, *_namesakes(parsed)]
        async with self._store.changing(tenant) as change:
            heads = await change.heads()
            pruned = _pruned(parsed, heads, set_name) if prune else set()
            heirs = sorted(heirs_of({*(each.name for each in parsed), *pruned}, heads))
            plan = await self._planned(change, parsed, pruned, heirs, heads)
            problems += plan.problems
            for name, left in plan.orphans().items():
                message = f"it can't be pruned, since {', '.join(left)} extends it"
                problems.append(Problem(path=name, message=message))
            if any(not each.is_warning for each in problems):
                return Outcome(parsed=parsed, problems=tuple(problems))
            problems += _taken_over(parsed, heads, set_name) if set_name else []
            steps = self._steps(plan, parsed, pruned, heirs, heads, set_name)
            if not dry_run:
                self._check_bound(steps, heads)
                await self._keep(change, steps, set_name, by)
        applied = await asyncio.to_thread(lambda: tuple(map(_told, steps)))
        return Outcome(
            parsed=parsed, applied=applied, problems=tuple(problems), is_kept=not dry_run
        )

    async def _planned(
        self,
        change: Change,
        parsed: list[Parsed],
        pruned: set[str],
        heirs: list[str],
        heads: dict[str, Head],
    ) -> Plan:
        bases = (each.given["extends"] for each in parsed if each.given.get("extends"))
        names = {*(each.name for each in parsed), *pruned, *heirs, *bases}
        kept = await change.newest(_with_bases(names, heads))
        plan = Plan(parsed, pruned, heads, kept, self._standing)
        if not plan.orphans():
            stay = [name for name in heirs if name not in pruned]
            await asyncio.to_thread(plan.check, stay)
        return plan

    def _steps(
        self,
        plan: Plan,
        parsed: list[Parsed],
        pruned: set[str],
        heirs: list[str],
        heads: dict[str, Head],
        set_name: str,
    ) -> list[Step]:
        kept = plan.kept
        steps = [self._step(plan, each, kept.get(each.name), heads, set_name) for each in parsed]
        for name in (each for each in heirs if each not in pruned):
            was, resolved = kept[name], plan.resolve(name)
            if resolved != was.resolved:
                now = msgspec.structs.replace(was, version=was.version + 1, resolved=resolved)
                step = Step(action="changed", kept=now, was=was, set_name=heads[name].set_name)
                steps.append(step)
        return steps + [Step(action="pruned", kept=kept[name]) for name in sorted(pruned)]

    def _step(
        self,
        plan: Plan,
        parsed: Parsed,
        was: Kept | None,
        heads: dict[str, Head],
        set_name: str,
    ) -> Step:
        resolved = plan.resolve(parsed.name)
        if was is not None and (was.text, was.resolved) == (parsed.text, resolved):
            return Step(action="unchanged", kept=was, was=was, set_name=set_name)
        standing = self._standing.find(parsed.name)
        last = heads[parsed.name].version if parsed.name in heads else 0
        kept = Kept(
            name=parsed.name,
            version=max(last, 0 if standing is None else VERSION) + 1,
            text=parsed.text,
            format=parsed.format,
            given=parsed.given,
            resolved=resolved,
        )
        action: Literal["created", "changed"] = "created" if was is None else "changed"
        return Step(action=action, kept=kept, was=was, set_name=set_name)

    def _check_bound(self, steps: list[Step], heads: dict[str, Head]) -> None:
        living = sum(not head.is_removed for head in heads.values())
        created = sum(step.action == "created" for step in steps)
        gone = sum(step.action == "pruned" for step in steps)
        if created and living + created - gone > self._settings.max_definitions:
            raise Busy(
                f"there are {living} definitions, and agents.max_definitions allows "
                f"{self._settings.max_definitions}: delete some"
            )

    async def _keep(self, change: Change, steps: list[Step], set_name: str, by: str) -> None:
        new = ("created", "changed")
        await change.keep([(s.kept, s.set_name) for s in steps if s.action in new], by)
        changed = [step.kept.name for step in steps if step.action == "changed"]
        await change.forget(changed, self._settings.kept_versions)
        await change.remove([step.kept.name for step in steps if step.action == "pruned"])
        same = [step.kept.name for step in steps if step.action == "unchanged"]
        await change.move(same, set_name)

    async def remove(self, tenant: str, names: Collection[str], by: str) -> tuple[str, ...]:
        """Remove applied definitions, and return which there were.

        Raises:
            InvalidData: One is built in.
            Conflict: Another extends one of them.
        """
        async with self._store.changing(tenant) as change:
            heads = await change.heads()
            gone = {name for name in names if name in heads and not heads[name].is_removed}
            for name in set(names) - gone:
                standing = self._standing.find(name)
                if standing is not None:
                    raise InvalidData(f"{name} is {standing.origin}: it can't be deleted")
            heirs = sorted(heirs_of(gone, heads))
            plan = await self._planned(change, [], gone, heirs, heads)
            for name, left in plan.orphans().items():
                raise Conflict(f"{name} can't be deleted, since {', '.join(left)} extends it")
            for problem in plan.problems:
                raise Conflict(f"{problem.path} extends what is deleted, and {problem.message}")
            await self._keep(change, self._steps(plan, [], gone, heirs, heads, ""), "", by)
        return tuple(sorted(gone))


def _namesakes(parsed: list[Parsed]) -> list[Problem]:
    first: dict[str, Parsed] = {}
    found = []
    for each in parsed:
        other = first.setdefault(each.name, each)
        if other is not each:
            line = other.lines.get(("name",))
            where = other.path if line is None else f"{other.path}:{line}"
            found.append(each.problem(f"there is another {each.name!r} in {where}", "name"))
    return found


def _pruned(parsed: list[Parsed], heads: dict[str, Head], set_name: str) -> set[str]:
    stay = {each.name for each in parsed}
    return {
        name
        for name, head in heads.items()
        if head.set_name == set_name and not head.is_removed and name not in stay
    }


def _taken_over(parsed: list[Parsed], heads: dict[str, Head], set_name: str) -> list[Problem]:
    return [
        each.problem(f"it was applied with {head.set_name!r} before", "name", is_warning=True)
        for each in parsed
        if (head := heads.get(each.name)) is not None
        and not head.is_removed
        and head.set_name != set_name
    ]


def _told(step: Step) -> Applied:
    was, now = step.was, step.kept
    if step.action == "unchanged":
        diff = ""
    elif step.action == "pruned":
        diff = diff_of(now.text, "", now.name)
    elif was is not None and was.text == now.text:
        before, after = (msgspec.json.encode(each.resolved).decode() for each in (was, now))
        diff = diff_of_resolved(before, after, now.name)
    else:
        diff = diff_of("" if was is None else was.text, now.text, now.name)
    return Applied(name=now.name, action=step.action, version=now.version, diff=diff)


def diff_of_resolved(was: str, now: str, name: str) -> str:
    """Return what differs where the texts do not: in what is extended; of JSON."""
    before, after = (msgspec.json.format(each, indent=2) for each in (was, now))
    return diff_of(before, after, f"{name} (resolved)")


def diff_of(was: str, now: str, name: str) -> str:
    """Return what differs between two texts, as ``diff -u`` has it; of large ones only how much."""
    before, after = was.splitlines(keepends=False), now.splitlines(keepends=False)
    if len(before) + len(after) > MAX_DIFF_LINES or len(was) + len(now) > MAX_DIFF_CHARACTERS:
        return f"--- {name}: {len(before)} lines\n+++ {name}: {len(after)} lines\n"
    lines = difflib.unified_diff(before, after, name, name, lineterm="")
    return "".join(f"{line}\n" for line in lines)
