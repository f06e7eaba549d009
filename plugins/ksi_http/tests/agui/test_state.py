"""States and what changes them, whatever they are."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ksi_http.agui.state import changed, operations

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("a/~", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("a/~", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def patched(state: Any, patch: list[dict[str, Any]]) -> Any:
    """Apply a patch of changes to objects, as a client does (RFC 6902)."""
    whole = {"": state}
    for operation in patch:
        steps: list[str] = ["", *operation["path"].split("/")[1:]]
        last = steps.pop()
        at: Any = whole
        for step in steps:
            at = at[step.replace("~1", "/").replace("~0", "~")]
        key = last.replace("~1", "/").replace("~0", "~")
        assert (key in at) == (operation["op"] != "add")
        if operation["op"] == "remove":
            del at[key]
        else:
            at[key] = operation["value"]
    return whole[""]


@given(before=values, after=values)
def test_a_patch_makes_one_state_of_the_other(before: Any, after: Any) -> None:
    result = patched(before, list(operations(before, after)))

    assert msgspec.json.encode(result, order="sorted") == msgspec.json.encode(after, order="sorted")


def test_what_is_given_takes_the_place_of_what_is_there_and_null_takes_away() -> None:
    state = {"a": {"b": 1, "c": 2}, "d": [1]}

    assert changed(state, {"a": {"b": None, "e": 3}, "d": "x"}) == {"a": {"c": 2, "e": 3}, "d": "x"}
    assert state == {"a": {"b": 1, "c": 2}, "d": [1]}
