"""What ``ksi doctor`` finds; plugins add checks of their own by the entry points ``ksi.doctor``."""

from typing import Literal

from msgspec import Struct

State = Literal["ok", "warn", "fail"]


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was looked at.

    ``fix`` is the one command that mends it; ``was_fixed`` says that ``--fix`` has done so.
    """

    check: str
    state: State
    what: str
    fix: str | None = None
    was_fixed: bool = False


def ok(check: str, what: str) -> Finding:
    """Report that something is as it should be."""
    return Finding(check=check, state="ok", what=what)


def warn(check: str, what: str, fix: str | None = None) -> Finding:
    """Report what works, but not as well as it could."""
    return Finding(check=check, state="warn", what=what, fix=fix)


def fail(check: str, what: str, fix: str | None = None) -> Finding:
    """Report what does not work."""
    return Finding(check=check, state="fail", what=what, fix=fix)
