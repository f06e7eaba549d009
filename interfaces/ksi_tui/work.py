"""Has something done beside the drawing."""

from collections.abc import Awaitable, Callable
from typing import Any

from textual.dom import DOMNode


def begin(
    node: DOMNode, work: Callable[[], Awaitable[Any]], group: str, *, replaces: bool = False
) -> None:
    """Have something done for as long as a screen, or the app, is there.

    Args:
        node: The screen or the app.
        work: Called when its turn has come; Python complains of a coroutine that never ran.
        group: What it belongs to.
        replaces: Whether what was begun in the group before ends now.
    """
    made: Any = work  # Textual wants coroutines that send and yield nothing; none is declared so
    node.run_worker(made, group=group, exclusive=replaces)
