"""Says who takes part in an orchestration."""

from collections.abc import Iterator, Mapping, Sequence

from ksi_daemon.protocol import InvalidData
from ksi_daemon.protocol.names import did_you_mean
from ksi_orchestration.pattern import Pattern, Role
from ksi_orchestration.score import Cast

__all__ = ["cast", "member_names"]


def cast(
    pattern: Pattern,
    agents: Sequence[str] | Mapping[str, str] = (),
    models: Sequence[str] | Mapping[str, str] = (),
) -> tuple[Cast, ...]:
    """Return who takes part; see `OrchestrationStart` for how agents and models are given.

    Raises:
        InvalidData: More are given than there are members, or for a role that there is none of.
    """
    members = tuple(_members(pattern))
    agent_of = _given("agents", agents, members, begins_anew=False)
    model_of = _given("models", models, members, begins_anew=True)
    return tuple(
        Cast(
            name=each.name,
            role=each.role,
            agent=agent_of.get(each.name, each.agent),
            models=(model_of[each.name],) if each.name in model_of else each.models,
        )
        for each in members
    )


def member_names(name: str, role: Role) -> tuple[str, ...]:
    """Return what the members of a role are called."""
    if role.count == 1:
        return (name,)
    return tuple(f"{name}-{number}" for number in range(1, role.count + 1))


def _members(pattern: Pattern) -> Iterator[Cast]:
    for name, role in pattern.roles.items():
        models = (role.model,) if isinstance(role.model, str) else role.model or ()
        for member in member_names(name, role):
            yield Cast(name=member, role=name, agent=role.agent, models=models)


def _given(
    what: str,
    given: Sequence[str] | Mapping[str, str],
    members: Sequence[Cast],
    *,
    begins_anew: bool,
) -> dict[str, str]:
    """Return what each member was given, by its name."""
    if isinstance(given, Mapping):
        return _given_by_name(what, given, members)
    if len(given) > len(members):
        names = ", ".join(each.name for each in members)
        message = f"{len(given)} {what} are given and there are {len(members)} members: {names}"
        raise InvalidData(message, details={"path": what})
    if begins_anew and given:
        return {each.name: given[place % len(given)] for place, each in enumerate(members)}
    return {each.name: value for each, value in zip(members, given, strict=False)}


def _given_by_name(what: str, given: Mapping[str, str], members: Sequence[Cast]) -> dict[str, str]:
    roles = {each.role: None for each in members}
    names = dict.fromkeys(each.name for each in members)
    for key in given:
        if key not in roles and key not in names:
            hint = did_you_mean(key, {**roles, **names}) or f"; there are {', '.join(roles)}"
            message = f"there is no role {key!r:.100}{hint}"
            raise InvalidData(message, details={"path": f"{what}.{key:.100}"})
    found = {each.name: given[each.role] for each in members if each.role in given}
    return found | {name: value for name, value in given.items() if name in names}
