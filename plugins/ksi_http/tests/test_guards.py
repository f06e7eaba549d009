"""What stands before every route: whose server this is, from which page, and how it answers."""

from typing import Any

import pytest
from aiohttp import ClientResponse

from ksi_http.testing import HttpServer

WHOSE = "/v1/odd/whose"
PAGE = "https://chat.example"


async def send(
    http: HttpServer, method: str = "POST", path: str = WHOSE, **headers: str
) -> ClientResponse:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {**http.authorization(), **sent}
    response = await http.session.request(method, http.url + path, headers=sent)
    await response.read()
    return response


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "ksi.example:8480"])
@pytest.mark.parametrize("http_settings", [{"hosts": ["ksi.example"]}])
async def test_a_server_answers_to_its_own_names(http: HttpServer, host: str) -> None:
    assert (await send(http, Host=host)).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("10.1.2.3", 403),
        ("0.0.0.0", 403),
        ("localhost@evil.example", 403),
        ("[::1", 400),
        ("", 403),
    ],
)
async def test_a_name_that_was_made_to_lead_here_is_refused_before_the_key_is_looked_at(
    http: HttpServer, host: str, status: int
) -> None:
    refused = await send(http, Host=host)

    assert refused.status == status
    assert http.app.callers._known == {}


async def test_probes_are_guarded_against_forged_names_too(http: HttpServer) -> None:
    assert (await send(http, "GET", "/healthz", Host="evil.example")).status == 403


@pytest.mark.parametrize("http_settings", [{"origins": [PAGE]}])
async def test_a_page_that_may_use_this_server_is_told_so(http: HttpServer) -> None:
    asked = await send(
        http,
        "OPTIONS",
        Origin=PAGE,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization,content-type",
    )
    used = await send(http, Origin=PAGE)
    failed = await send(http, path="/v1/odd/nowhere", Origin=PAGE)

    assert asked.status == 204
    assert asked.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert {r.headers["Access-Control-Allow-Origin"] for r in (asked, used, failed)} == {PAGE}
    assert (used.status, failed.status) == (200, 404)
    assert "Access-Control-Allow-Credentials" not in used.headers


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "https://chat.example.evil", "http://chat.example", ""],
)
@pytest.mark.parametrize("http_settings", [{"origins": [PAGE]}])
async def test_any_other_page_is_refused_even_with_a_key(http: HttpServer, origin: str) -> None:
    used, asked = await send(http, Origin=origin), await send(http, "OPTIONS", Origin=origin)

    assert (used.status, asked.status) == (403, 403)
    assert "Access-Control-Allow-Origin" not in used.headers


async def test_a_page_of_this_server_itself_may_use_it(http: HttpServer) -> None:
    assert (await send(http, Origin=http.url)).status == 200
    assert (await send(http, Origin=f"http://127.0.0.1:{http.port + 1}")).status == 403


async def test_a_request_s_id_comes_back_and_one_that_makes_no_sense_is_replaced(
    http: HttpServer,
) -> None:
    kept = await send(http, X_Request_Id="trace-1.2:3")
    made = [await send(http, X_Request_Id="a b"), await send(http, X_Request_Id="x" * 129)]
    failed = await send(http, path="/v1/odd/nowhere", X_Request_Id="t2")

    assert kept.headers["X-Request-Id"] == "trace-1.2:3"
    assert failed.headers["X-Request-Id"] == "t2"
    ids = {each.headers["X-Request-Id"] for each in made}
    assert len(ids) == 2
    assert not any(" " in each or len(each) > 128 for each in ids)


async def test_no_answer_is_kept_or_guessed_about(http: HttpServer) -> None:
    answered = await send(http)

    assert answered.headers["Cache-Control"] == "no-store"
    assert answered.headers["X-Content-Type-Options"] == "nosniff"
    assert answered.headers["Server"] == "ksi"


async def test_another_method_is_told_which_there_are(http: HttpServer) -> None:
    refused = await send(http, "GET", "/v1/odd/echo")
    body = await refused.json()

    assert (refused.status, refused.headers["Allow"]) == (405, "POST")
    assert body["error"]["code"] == "invalid_data"


async def test_a_long_answer_is_compressed_for_who_wants_that(http: HttpServer) -> None:
    def read(accepted: str, text: str) -> Any:
        headers = {**http.authorization(), "Accept-Encoding": accepted}
        url = http.url + "/v1/odd/echo"
        return http.session.post(url, json={"text": text}, headers=headers)

    async with read("gzip, deflate", "x" * 5000) as long:
        assert long.headers["Content-Encoding"] == "gzip"
        assert (await long.json())["text"] == "x" * 5000
    for accepted, text in (("gzip", "x"), ("identity", "x" * 5000)):
        async with read(accepted, text) as plain:
            assert "Content-Encoding" not in plain.headers
