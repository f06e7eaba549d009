"""The monitor's own colours, dark and light."""

from typing import Final

from textual.theme import Theme

DARK: Final = Theme(
    name="ksi-dark",
    primary="#6ea8e0",
    secondary="#a58fd8",
    accent="#5cc8b8",
    success="#8ccf7e",
    warning="#e8b866",
    error="#f07f86",
    foreground="#d6dde8",
    background="#0f141b",
    surface="#151c26",
    panel="#1e2836",
    dark=True,
    variables={
        "quiet": "#8494a8",
        "rule": "#2b384a",
        "cursor": "#24405a",
        "cursor-blurred": "#1c2a3a",
    },
)

LIGHT: Final = Theme(
    name="ksi-light",
    primary="#1f5fa8",
    secondary="#6a4fb0",
    accent="#00756a",
    success="#2f7a1f",
    warning="#8f5a00",
    error="#b3262e",
    foreground="#1d2733",
    background="#fafbfc",
    surface="#f0f3f6",
    panel="#e4e9ee",
    dark=False,
    variables={
        "quiet": "#566577",
        "rule": "#c9d2db",
        "cursor": "#cfe0f2",
        "cursor-blurred": "#e3ebf3",
    },
)
