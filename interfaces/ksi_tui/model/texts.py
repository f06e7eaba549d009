"""Makes whatever comes from elsewhere safe to be shown, and numbers and times short."""

import re
from datetime import datetime
from typing import Any, Final

import msgspec

# What moves a cursor, hides, or reorders a line; the tags of the last plane are unseen text.
_HIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_MAX_SHOWN: Final = 20_000


def plain(text: object) -> str:
    """Return a text of any origin as one line in which nothing steers or misleads."""
    words = " ".join(str(text)[:_MAX_SHOWN].split())
    return _HIDDEN.sub(_escaped, words)


def lines(text: object) -> str:
    """Return a text of any origin with its line breaks, and nothing else that steers."""
    shown = str(text)[:_MAX_SHOWN].expandtabs(4)
    return "\n".join(_HIDDEN.sub(_escaped, line) for line in shown.split("\n"))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def as_json(value: Any, *, indent: int = 2) -> str:
    """Write a value as JSON for people; it is safe to be shown."""
    encoded = msgspec.json.encode(value, enc_hook=str)
    return lines(msgspec.json.format(encoded, indent=indent).decode())


def count(number: float) -> str:
    """Write a count in few characters: ``7``, ``950``, ``12.4k``, ``3.1M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{number:,.0f}"


def money(usd: float) -> str:
    """Write an amount of dollars, with the cents that count."""
    if usd == 0:
        return "$0"
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}" if usd < 0.01 else f"${usd:.3f}"


def took(seconds: float | None) -> str:
    """Write how long something took, in the unit that fits."""
    if seconds is None:
        return ""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    return span(seconds)


def span(seconds: float) -> str:
    """Write a span of time in its largest two units: ``42s``, ``3m 5s``, ``2h 10m``, ``4d 1h``."""
    rest = max(int(seconds), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number or parts:
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2]) or "0s"


def size(amount_bytes: int) -> str:
    """Write how much memory something takes."""
    return f"{amount_bytes / 1024**2:,.0f} MB"


def clock(at: datetime | None) -> str:
    """Write the time of day, as the clocks of this machine show it."""
    return "" if at is None else at.astimezone().strftime("%H:%M:%S")


def day(at: datetime | None) -> str:
    """Write a date and the time of day."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def compact(value: Any, characters: int) -> str:
    """Write a value as JSON in one line, its beginning where it is long; it is safe to be shown."""
    encoded = msgspec.json.encode(value, enc_hook=str)[: 4 * characters]
    return plain(encoded.decode("utf-8", "replace"))[:characters]
