"""Makes a tree of causes and effects of the records that a level-by-level search has found."""

from collections.abc import Sequence

from ksi_journal.events import JournalRecord, JournalTrace, JournalTraced, TraceNode


def tree_of(
    found: Sequence[tuple[JournalRecord, int]],
    request: JournalTrace,
    *,
    root: str,
    above: int,
) -> JournalTraced:
    """Return the tree, each event before its effects.

    Args:
        found: The records, each with its distance from the root.
        request: What bounds the tree.
        root: The event at its top.
        above: How many steps the root is above the event that was asked for.
    """
    best = _one_of_each(found)
    cut = None
    if len(best) > request.limit:
        cut = f"more than {request.limit} events (limit)"
        best = dict(list(best.items())[: request.limit])
    if any(depth > request.max_depth for _, depth in best.values()):
        cut = cut or f"what is more than {request.max_depth} steps away (max_depth)"
        best = {key: item for key, item in best.items() if item[1] <= request.max_depth}
    if above >= request.max_depth:
        cut = cut or f"causes more than {request.max_depth} steps away (max_depth)"
    children: dict[str | None, list[str]] = {}
    for key, (record, _) in best.items():
        if key != root:
            children.setdefault(record.parent, []).append(key)
    top = best.get(root)
    return JournalTraced(
        id=request.id,
        root=root,
        nodes=tuple(_walk(root, best, children)),
        cut=cut,
        cause_missing=top[0].parent if top is not None else root,
    )


def _one_of_each(
    found: Sequence[tuple[JournalRecord, int]],
) -> dict[str, tuple[JournalRecord, int]]:
    """Take one record of each event: the one that says how it ended."""
    best: dict[str, tuple[JournalRecord, int]] = {}
    for record, depth in found:
        known = best.get(record.id)
        if known is None or known[0].outcome in (None, "begun"):
            best[record.id] = (record, depth if known is None else known[1])
    return best


def _walk(
    root: str, best: dict[str, tuple[JournalRecord, int]], children: dict[str | None, list[str]]
) -> list[TraceNode]:
    """List the events in the order of a tree; not by recursion, which is bounded otherwise."""
    nodes: list[TraceNode] = []
    missing = root not in best
    waiting = [
        (key, 0 if not missing else 1)
        for key in ([root] if not missing else children.get(root, []))
    ]
    waiting.reverse()
    while waiting:
        key, depth = waiting.pop()
        nodes.append(TraceNode(depth=depth, record=best[key][0]))
        below = sorted(children.get(key, ()), key=lambda each: best[each][0].position, reverse=True)
        waiting.extend((each, depth + 1) for each in below)
    return nodes
