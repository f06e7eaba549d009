"""Turns what goes wrong with a provider into errors that say what to do next."""

from typing import Final

from ksi_daemon.protocol import (
    Busy,
    Denied,
    Failed,
    InvalidData,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_models.provider import Kind, ProviderError

ERRORS: Final[dict[Kind, type[KsiError]]] = {
    "rate_limited": Busy,
    "overloaded": Unavailable,
    "server": Unavailable,
    "network": Unavailable,
    "cut_off": Unavailable,
    "malformed": Unavailable,
    "stalled": TimedOut,
    "login": Denied,
    "untrusted": Denied,
    "not_found": NotFound,
    "too_long": InvalidData,
    "refused": InvalidData,
    "invalid": InvalidData,
    "answer_too_long": Failed,
    "over_limit": Failed,
    "broken": Failed,
}

# What says something of the provider's health; who is refused for reasons of his own was answered.
ILL: Final[frozenset[Kind]] = frozenset(
    {"overloaded", "server", "network", "cut_off", "malformed", "stalled", "broken"}
)


class Stalled(ProviderError):
    """A provider lets one wait longer than a setting allows."""

    def __init__(self, message: str, setting: str) -> None:
        super().__init__("stalled", f"{message} ({setting})")
        self.setting = setting


class AnswerTooLong(ProviderError):
    """An answer is longer than a setting allows."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            "answer_too_long",
            f"the answer was broken off at {limit_bytes} bytes (models.max_answer_bytes)",
        )
        self.setting = "models.max_answer_bytes"


def error_of(failure: ProviderError, model: str, attempts: int) -> KsiError:
    """Make the error that a call ends with."""
    details = {"kind": failure.kind, "model": model, "attempts": attempts}
    setting = getattr(failure, "setting", None)
    if setting is not None:
        details["setting"] = setting
    tried = f" (after {attempts} attempts)" if attempts > 1 else ""
    return ERRORS[failure.kind](
        f"{model}: {failure.message}{tried}",
        retry_after_s=failure.retry_after_s,
        details=details,
    )
