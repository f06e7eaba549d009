"""Tells what a provider's refusal means."""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from ksi_models.provider import Kind, ProviderError

TOLD_CHARACTERS: Final = 300
MAX_READ_CHARACTERS: Final = 64 * 1024
MAX_RETRY_AFTER_S: Final = 86_400.0

# What providers say when a conversation does not fit; they agree on no code.
TOO_LONG: Final = re.compile(
    r"context.?(length|window|size|limit)|maximum.?context|too.?many.?tokens|prompt is too long"
    r"|input is too long|exceeds? the (available |model.s )?context|exceed_context_size"
    r"|request too large|string_above_max_length|reduce the length",
    re.IGNORECASE,
)
NO_CREDIT: Final = re.compile(
    r"insufficient.?(quota|balance|credit)|exceeded your current quota|credit balance"
    r"|billing|payment required",
    re.IGNORECASE,
)
FILTERED: Final = re.compile(
    r"content.?(filter|policy|management)|safety|moderation", re.IGNORECASE
)
UNKNOWN_MODEL: Final = re.compile(
    r"model.{0,80}(not.?found|does not exist|not available|unknown|is not supported)"
    r"|(no such|unknown|invalid) model|model_not_found",
    re.IGNORECASE,
)
# What looks like a key, whoever's it is: providers repeat them in their errors.
KEY_LIKE: Final = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|key|api|AIza|ghp|hf|r8|pplx|tgp|fw|nvapi)[-_][A-Za-z0-9_\-*.]{6,}"
    r"|\bAIza[A-Za-z0-9_\-]{10,}|(?<=Bearer )[^\s\"',]+",
)

KINDS: Final[dict[int, Kind]] = {
    401: "login",
    402: "refused",
    403: "login",
    404: "not_found",
    405: "not_found",
    408: "network",
    409: "overloaded",
    413: "too_long",
    425: "overloaded",
    429: "rate_limited",
    451: "refused",
    502: "server",
    503: "overloaded",
    504: "server",
    529: "overloaded",
}

NEXT_STEPS: Final[dict[Kind, str]] = {
    "login": "check its key and what the key may do",
    "not_found": "list what there is: ksi model list",
    "too_long": "shorten the conversation, or take a model that reads more",
}


Redact = Callable[[str], str]


def unchanged(text: str) -> str:
    """Return a text as it is, where no keys are known."""
    return text


def brief(text: str, redacted: Redact = unchanged) -> str:
    """Return what a provider said as one short line that holds no key, nor what looks like one."""
    line = " ".join(KEY_LIKE.sub("***", redacted(text[:MAX_READ_CHARACTERS])).split())
    return line if len(line) <= TOLD_CHARACTERS else line[:TOLD_CHARACTERS] + "…"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return for how long a provider wants to be left alone; it says seconds, or a date."""
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER_S)
    told = headers.get("Retry-After") or headers.get("retry-after")
    seconds = _seconds(told)
    if seconds is None and told:
        seconds = _seconds_until(told)
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


def _seconds(told: str | None) -> float | None:
    try:
        seconds = float(told or "")
    except ValueError:
        return None
    return None if math.isnan(seconds) else max(0.0, seconds)


def _seconds_until(told: str) -> float | None:
    try:
        then = parsedate_to_datetime(told)
    except (ValueError, IndexError, TypeError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def kind_of(status: int | None, told: str) -> Kind:
    """Return what is to be done about a refusal, by its status and its words."""
    if status in (401, 403, 407):
        return "login"
    if TOO_LONG.search(told):
        return "too_long"
    if NO_CREDIT.search(told):
        return "refused"
    if status in KINDS:
        return KINDS[status]
    if status is None or status >= 500:
        return _kind_by_words(told)
    if FILTERED.search(told):
        return "refused"
    return "not_found" if UNKNOWN_MODEL.search(told) else "invalid"


def _kind_by_words(told: str) -> Kind:
    words = told.lower()
    if "rate" in words and "limit" in words:
        return "rate_limited"
    if "overloaded" in words or "capacity" in words or "unavailable" in words:
        return "overloaded"
    if FILTERED.search(told):
        return "refused"
    return "server"


def refusal(
    provider: str,
    status: int | None,
    body: bytes | str,
    headers: Mapping[str, str],
    redacted: Redact = unchanged,
) -> ProviderError:
    """Make the error for an answer that is a refusal, or for an error within a stream."""
    told = message_of(body)
    kind = kind_of(status, told)
    said = brief(message_of(body, only_message=True), redacted) or "no reason given"
    code = "" if status is None else f" ({status})"
    hint = "; the account has no credit left" if NO_CREDIT.search(told) else ""
    step = NEXT_STEPS.get(kind)
    next_step = f"; {step}" if step else ""
    return ProviderError(
        kind,
        f"{provider} refused{code}: {said}{hint}{next_step}",
        retry_after_s=retry_after_s(headers) if status in (429, 503, 529, 500, None) else None,
    )


def message_of(body: bytes | str, *, only_message: bool = False) -> str:
    """Return the words of an error, in whatever shape it comes: with its codes, or without."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    try:
        parsed = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return "" if text.lstrip().startswith("<") else text  # a proxy's page says nothing
    return " ".join(_words(parsed, only_message=only_message))


def _words(error: Any, *, only_message: bool) -> list[str]:
    if isinstance(error, str):
        return [error]
    if isinstance(error, list):
        return _words(error[0], only_message=only_message) if error else []
    if not isinstance(error, dict):
        return []
    members = ["error", "message", "detail"] + ([] if only_message else ["code", "type", "status"])
    found = [_words(error[name], only_message=only_message) for name in members if name in error]
    return [word for words in found for word in words]
