"""The settings of the agents."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds

Globs = tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...]


class Profile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What agents of a permissions profile may call at most: globs of tools' names."""

    allow: Globs | None = None
    deny: Globs = ()


class AgentsSettings(Struct, frozen=True, kw_only=True):
    """The section ``[agents]``.

    Attributes:
        max_agents: Agents of one tenant that have not ended.
        max_mailbox: Messages that wait in one agent's mailbox.
        max_definitions: Definitions of one tenant.
        kept_versions: Versions of a definition that are kept.
        kept_log_entries: What is kept of what happened to an agent.
        ended_kept_s: How long agents that have ended are kept, with what happened to them.
        sweep_s: How often agents are looked for that nobody has taken on.
        probe_timeout_s: How long a probe may take that does not say so itself.
        ask_timeout_s: How long the tool ``ask_agent`` waits for an answer.
        profiles: Permissions profiles of one's own, beside ``restricted``, ``standard`` and
            ``trusted``.
    """

    max_agents: Positive = 10_000
    max_mailbox: Positive = 10_000
    max_definitions: Positive = 10_000
    kept_versions: Positive = 100
    kept_log_entries: Positive = 1000
    ended_kept_s: Annotated[float, Meta(gt=0)] = 30 * 86_400.0
    sweep_s: Annotated[float, Meta(gt=0)] = 2.0
    probe_timeout_s: Seconds = 60.0
    ask_timeout_s: Seconds = 600.0
    profiles: dict[str, Profile] = {}
