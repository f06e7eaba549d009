"""Requests over HTTP: what is reached, and how it looks when it is not."""

from collections.abc import Callable
from typing import Any

from ksi_http.testing import HttpServer


async def test_an_event_with_a_scope_is_reached_by_its_name(http: HttpServer) -> None:
    status, answer = await http.post("/v1/odd/echo", {"text": "ab", "times": 2})

    assert (status, answer) == (200, {"text": "abab", "echoed": 1})


async def test_an_event_without_a_scope_is_not_there(http: HttpServer) -> None:
    inside, nowhere = await http.post("/v1/odd/inside"), await http.post("/v1/odd/nowhere")

    assert inside[0] == nowhere[0] == 404
    assert inside[1]["error"]["code"] == "not_found"


async def test_a_key_reaches_what_its_scopes_say(
    http: HttpServer, make_key: Callable[..., Any]
) -> None:
    key = await make_key("*:read")

    allowed = await http.post("/v1/odd/echo", {"text": "a"}, key=key)
    denied = await http.post("/v1/odd/wait", key=key)

    assert allowed[0] == 200
    assert (denied[0], denied[1]["error"]["code"]) == (403, "denied")
    assert "odd:write" in denied[1]["error"]["message"]
