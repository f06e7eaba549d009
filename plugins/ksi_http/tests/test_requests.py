"""Requests over HTTP: what is reached, and how it looks when it is not."""

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse

from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_daemon.protocol import Denied
from ksi_http import keys
from ksi_http.events import HttpCaller
from ksi_http.sidecar import connections
from ksi_http.sidecar.callers import Caller
from ksi_http.testing import HttpServer
from ksi_http.tests.odd_plugin import Odd

MakeKey = Callable[..., Any]


async def events_of(response: ClientResponse) -> list[tuple[str, Any]]:
    """Read a stream of server-sent events to its end."""
    text = (await response.read()).decode()
    found = []
    for block in filter(None, text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


# -- the generated routes -------------------------------------------------------------------------


async def test_an_event_with_a_scope_is_reached_by_its_name(http: HttpServer) -> None:
    status, answer = await http.post("/v1/odd/echo", {"text": "ab", "times": 2})

    assert (status, answer) == (200, {"text": "abab", "echoed": 1})


async def test_an_event_of_three_parts_has_three_in_its_address(http: HttpServer) -> None:
    assert await http.post("/v1/odd/deep/er") == (200, "deep")


async def test_an_event_without_a_scope_is_not_there(http: HttpServer) -> None:
    inside, nowhere = await http.post("/v1/odd/inside"), await http.post("/v1/odd/nowhere")

    assert inside[0] == nowhere[0] == 404
    assert inside[1]["error"]["code"] == "not_found"


async def test_an_event_that_came_later_is_found(http: HttpServer, client: AsyncClient) -> None:
    http.app.exposed.events = {}
    early = await http.post("/v1/odd/deep/er")
    http.app.exposed._looked_at -= 10.0
    later = await http.post("/v1/odd/deep/er")

    assert (early[0], later[0]) == (404, 200)


async def test_a_key_reaches_what_its_scopes_say(http: HttpServer, make_key: MakeKey) -> None:
    key = await make_key("*:read")

    allowed = await http.post("/v1/odd/echo", {"text": "a"}, key=key)
    denied = await http.post("/v1/odd/wait", key=key)

    assert allowed[0] == 200
    assert (denied[0], denied[1]["error"]["code"]) == (403, "denied")
    assert "odd:write" in denied[1]["error"]["message"]


async def test_a_request_with_a_key_of_idempotency_is_done_once_for_each_caller(
    http: HttpServer, make_key: MakeKey
) -> None:
    other = await make_key("*")
    ask = {"text": "a"}
    headers = {"Idempotency-Key": "k1"}

    first = await http.post("/v1/odd/echo", ask, headers=headers)
    again = await http.post("/v1/odd/echo", ask, headers=headers)
    different = await http.post("/v1/odd/echo", {"text": "b"}, headers=headers)
    others = await http.post("/v1/odd/echo", ask, headers=headers, key=other)

    assert first == again == (200, {"text": "a", "echoed": 1})
    assert (different[0], different[1]["error"]["code"]) == (409, "conflict")
    assert others[1]["echoed"] == 2


@pytest.mark.parametrize(
    ("how", "status", "code", "message", "retry_after_s"),
    [
        ("busy", 429, "busy", "too much at once (odd.bound)", 2.5),
        ("conflict", 409, "conflict", "that is taken", None),
        ("failed", 500, "failed", "", None),
        ("unavailable", 503, "unavailable", "", 1.0),
        ("secret in a ValueError", 500, "failed", "", None),
    ],
)
async def test_errors_have_one_shape_and_tell_nothing_of_the_inside(
    http: HttpServer, how: str, status: int, code: str, message: str, retry_after_s: float | None
) -> None:
    url, data = f"{http.url}/v1/odd/fail", json.dumps({"how": how})
    headers = {**http.authorization(), "Content-Type": "application/json"}
    async with http.session.post(url, data=data, headers=headers) as response:
        error = (await response.json())["error"]
        waited = response.headers.get("Retry-After")

    assert (response.status, error["code"], error.get("retry_after_s")) == (
        status,
        code,
        retry_after_s,
    )
    assert set(error) <= {"code", "message", "retry_after_s"}
    assert not message or error["message"] == message
    assert not any(word in error["message"] for word in ("hunter2", "10.0.0.7", "ValueError"))
    assert (waited is None) == (retry_after_s is None)


async def test_a_payload_that_does_not_fit_is_told_with_the_field(http: HttpServer) -> None:
    status, answer = await http.post("/v1/odd/echo", {"text": 3})

    assert (status, answer["error"]["code"]) == (400, "invalid_data")
    assert "text" in answer["error"]["message"]


async def test_an_answer_that_takes_too_long_is_a_time_out(http: HttpServer) -> None:
    http.app.settings = type(http.app.settings)(request_timeout_s=0.01)

    status, answer = await http.post("/v1/odd/wait")

    assert (status, answer["error"]["code"]) == (504, "timeout")


# -- streams --------------------------------------------------------------------------------------


async def stream(http: HttpServer, data: dict[str, Any]) -> list[tuple[str, Any]]:
    async with begin(http, data) as response:
        assert response.content_type == "text/event-stream"
        return await events_of(response)


def begin(http: HttpServer, data: dict[str, Any], **headers: str) -> Any:
    headers = {**http.authorization(), "Content-Type": "application/json", **headers}
    return http.session.post(http.url + "/v1/odd/count", json=data, headers=headers)


async def test_a_stream_is_an_event_for_each_chunk_and_says_when_it_ends(http: HttpServer) -> None:
    assert await stream(http, {"to": 2}) == [("", 0), ("", 1), ("end", {})]
    assert await stream(http, {"to": 0}) == [("end", {})]


async def test_a_stream_that_breaks_says_so_within_it(http: HttpServer) -> None:
    chunks = await stream(http, {"to": 9, "fail_at": 1})

    assert chunks[0] == ("", 0)
    assert chunks[1:] == [("error", {"error": {"code": "conflict", "message": "it broke"}})]


async def test_a_stream_that_fails_at_once_is_answered_with_its_status(http: HttpServer) -> None:
    status, answer = await http.post("/v1/odd/count", {"to": 9, "fail_at": 0})

    assert (status, answer["error"]["code"]) == (409, "conflict")


async def test_a_stream_takes_no_key_of_idempotency(http: HttpServer) -> None:
    headers = {"Idempotency-Key": "k"}

    assert (await http.post("/v1/odd/count", {"to": 1}, headers=headers))[0] == 400


async def test_a_stream_ends_in_the_daemon_when_its_client_goes(http: HttpServer, odd: Odd) -> None:
    async with begin(http, {"to": 1, "wait": True}) as response:
        await response.content.readline()
        assert odd.counting == 1
        assert http.app.limits.streams == 1

    await odd.stopped.wait()
    assert odd.counting == 0
    assert http.app.connections.in_flight == 0


async def test_a_stream_whose_daemon_goes_says_so_within_it(
    http: HttpServer, daemon: Daemon
) -> None:
    async with begin(http, {"to": 1, "wait": True}) as response:
        first = await response.content.readuntil(b"\n\n")
        daemon.shutdown(0.0)
        events = await events_of(response)

    assert first == b"data: 0\n\n"
    assert [(kind, told["error"]["code"]) for kind, told in events] == [("error", "unavailable")]
    assert events[0][1]["error"]["retry_after_s"] > 0


async def test_a_stream_is_told_that_its_server_ends(http: HttpServer) -> None:
    async with begin(http, {"to": 1, "wait": True}) as response:
        await response.content.readuntil(b"\n\n")
        await http.app.connections.close()
        events = await events_of(response)

    assert [(kind, told["error"]["code"]) for kind, told in events] == [("error", "unavailable")]


async def test_a_caller_s_own_connections_share_a_token_and_end_with_the_key(
    http: HttpServer, make_key: MakeKey, client: AsyncClient, daemon: Daemon
) -> None:
    key = await make_key("odd:read", user="ann")
    shown = keys.read(key)
    assert shown is not None
    told = await client.request("http:authenticate", {"id": shown.id, "digest": shown.digest})
    caller = Caller(msgspec.convert(told, HttpCaller), "ann", shown)
    issued = len(daemon.tokens.records())

    async with http.app.own.connected(caller) as one, http.app.own.connected(caller) as two:
        whose = await one.request("odd:whose")
        with pytest.raises(Denied):
            await two.request("odd:wait")
        assert len(daemon.tokens.records()) == issued + 1
        await client.request("http:key_revoke", {"id": shown.id})
        await one.closed.wait()
        await two.closed.wait()

    assert (whose["user"], whose["principal"]) == ("ann", f"token:http-{shown.id}")
    with pytest.raises(Denied):
        async with http.app.own.connected(caller):
            pass


@pytest.mark.parametrize("http_settings", [{"heartbeat_s": 0.02}])
async def test_a_stream_where_nothing_happens_says_that_it_is_alive(http: HttpServer) -> None:
    async with begin(http, {"to": 0, "wait": True}) as response:
        assert response.status == 200  # although nothing has come yet
        assert await response.content.readline() == b":\n"


@pytest.mark.parametrize("http_settings", [{"max_streams_per_key": 1, "max_streams": 2}])
async def test_streams_are_bounded_for_a_key_and_in_all(
    http: HttpServer, make_key: MakeKey
) -> None:
    other, third = await make_key("*"), await make_key("*")
    data = {"to": 1, "wait": True}

    async with begin(http, data) as first:
        await first.content.readline()
        mine = await http.post("/v1/odd/count", data)
        async with begin(http, data, Authorization=f"Bearer {other}") as second:
            await second.content.readline()
            all_ = await http.post("/v1/odd/count", data, key=third)

    assert (mine[0], all_[0]) == (429, 429)
    assert "max_streams_per_key" in mine[1]["error"]["message"]
    assert "http.max_streams)" in all_[1]["error"]["message"]


async def test_streams_are_shared_out_among_connections(
    http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FULL", 2)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    data = {"to": 1, "wait": True}
    async with AsyncExitStack() as stack:
        for _ in range(4):
            begun = await stack.enter_async_context(begin(http, data))
            await begun.content.readline()
        one_more = await http.post("/v1/odd/echo", {"text": "x"})

    assert (one_more[0], one_more[1]["error"]["code"]) == (429, "busy")


# -- pages and probes -----------------------------------------------------------------------------


async def test_the_document_describes_the_events_that_may_be_reached(http: HttpServer) -> None:
    status, document = await http.get("/openapi.json")

    paths = document["paths"]
    assert status == 200
    assert "/v1/odd/inside" not in paths
    operation = paths["/v1/odd/echo"]["post"]
    assert operation["summary"] == "Say something back."
    assert operation["x-scope"] == "odd:read"
    assert operation["requestBody"]["required"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].removeprefix("#/components/schemas/")
    assert document["components"]["schemas"][name]["properties"]["text"] == {"type": "string"}
    assert "text/event-stream" in paths["/v1/odd/count"]["post"]["responses"]["200"]["content"]


async def test_every_reference_of_the_document_leads_somewhere(http: HttpServer) -> None:
    _, document = await http.get("/openapi.json")
    text = json.dumps(document)

    found = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    assert found
    for reference in found:
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


async def test_the_page_fetches_nothing_from_elsewhere(http: HttpServer) -> None:
    async with http.session.get(http.url + "/docs") as response:
        text = await response.text()

    assert response.status == 200
    assert "http://" not in text
    assert "https://" not in text
    assert "connect-src 'self'" in response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


async def test_probes_need_no_key_and_counts_do(http: HttpServer, make_key: MakeKey) -> None:
    alive = await http.session.get(http.url + "/healthz")
    ready = await http.session.get(http.url + "/readyz")
    nobody = await http.session.get(http.url + "/metrics")
    other, _ = await http.get("/metrics", key=await make_key("odd:*"))
    counts = await http.session.get(http.url + "/metrics", headers=http.authorization())

    assert (alive.status, ready.status, nobody.status, other) == (200, 200, 401, 403)
    text = await counts.text()
    assert 'ksi_http_requests_total{method="GET",route="/healthz",status="200"} 1\n' in text
    assert 'ksi_http_requests_total{method="GET",route="/metrics",status="401"} 1\n' in text
    assert "ksi_http_daemon_up 1\n" in text


async def test_who_asks_for_readiness_again_and_again_does_not_ask_the_daemon(
    http: HttpServer, client: AsyncClient
) -> None:
    for _ in range(20):
        await http.get("/readyz")

    (stats,) = (await client.request("system:stats", {"pattern": "system:health"}))["events"]
    assert stats["count"] < 20


async def test_routes_and_methods_that_there_are_not_are_counted_as_one(http: HttpServer) -> None:
    for name in ("MKCOL", "PROPFIND"):
        await http.request(name, f"/nowhere/{name}")

    assert '{method="other",route="none",status="404"} 2' in http.app.metrics.text({})
