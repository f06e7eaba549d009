"""The looks of what is drawn by hand, from the theme's colours.

Component classes would do the same, and have each table styled a dozen times whenever the focus
moves.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from rich.style import Style
from textual.color import Color
from textual.dom import DOMNode

# By look: the theme's variable, whether it is bold, and how much of it there is.
_LOOKS: Final = {
    "text": ("foreground", False, 1.0),
    "strong": ("foreground", True, 1.0),
    "muted": ("quiet", False, 1.0),
    "title": ("quiet", False, 1.0),
    "label": ("quiet", True, 1.0),
    "heading": ("accent", True, 1.0),
    "key": ("accent", True, 1.0),
    "accent": ("accent", False, 1.0),
    "good": ("success", False, 1.0),
    "warn": ("warning", False, 1.0),
    "bad": ("error", False, 1.0),
    "ground": ("rule", False, 1.0),
    "tokens": ("accent", False, 0.75),
    "cost": ("primary", False, 0.75),
    "errors": ("error", False, 0.8),
    "events": ("secondary", False, 0.75),
}
_BACKS: Final = {"cursor": "cursor", "blurred": "cursor-blurred"}
_USED: Final = ("background", *(name for name, _, _ in _LOOKS.values()), *_BACKS.values())


def looks_of(node: DOMNode) -> Mapping[str, Style]:
    """Return a theme's looks by name; those of a cursor are backgrounds."""
    variables = node.app.theme_variables
    return _looks(tuple(variables[name] for name in _USED))


@lru_cache(maxsize=8)
def _looks(colours: tuple[str, ...]) -> dict[str, Style]:
    found = {name: Color.parse(text) for name, text in zip(_USED, colours, strict=True)}
    looks = {
        look: Style(color=found["background"].blend(found[name], part).rich_color, bold=is_bold)
        for look, (name, is_bold, part) in _LOOKS.items()
    }
    backs = {back: Style(bgcolor=found[name].rich_color) for back, name in _BACKS.items()}
    return {**looks, **backs}
