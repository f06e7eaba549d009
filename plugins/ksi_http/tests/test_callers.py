"""Who is let in, and in whose name: keys, where they belong, and what forging them leads to."""

from collections.abc import Callable
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_http import keys
from ksi_http.events import HttpCaller
from ksi_http.keys import Presented
from ksi_http.sidecar.callers import Callers
from ksi_http.sidecar.limits import Buckets
from ksi_http.testing import HttpServer
from ksi_http.tests.conftest import KeysInMemory

MakeKey = Callable[..., Any]
WHOSE = "/v1/odd/whose"


async def answer(http: HttpServer, path: str = WHOSE, **headers: str) -> tuple[int, Any]:
    """Send a request with these headers and no others that matter."""
    sent = [(name.replace("_", "-"), value) for name, value in headers.items()]
    async with http.session.post(http.url + path, headers=sent) as response:
        return response.status, await response.json()


def code(answered: tuple[int, Any]) -> tuple[int, str]:
    return answered[0], answered[1]["error"]["code"]


async def test_a_key_comes_in_either_header(http: HttpServer) -> None:
    assert (await answer(http, Authorization=f"Bearer {http.key}"))[0] == 200
    assert (await answer(http, authorization=f"bearer  {http.key} "))[0] == 200
    assert (await answer(http, X_Api_Key=http.key))[0] == 200
    same = await answer(http, X_Api_Key=http.key, Authorization=f"Bearer {http.key}")
    assert same[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"X_Api_Key": ""},
        {"X_Api_Key": "ksi_key_000000000000_" + "a" * 43},
        {"X_Api_Key": "x" * 5000},
        {"X_Api_Key": "ksi_key_'; DROP TABLE key; --"},
    ],
)
async def test_without_a_valid_key_nobody_comes_in(
    http: HttpServer, headers: dict[str, str]
) -> None:
    assert code(await answer(http, **headers)) == (401, "unauthenticated")


async def test_what_is_not_there_is_told_to_nobody_without_a_key(http: HttpServer) -> None:
    assert code(await answer(http, "/nowhere")) == (401, "unauthenticated")


async def test_a_key_whose_secret_is_another_is_refused(http: HttpServer) -> None:
    wrong = http.key[:-1] + ("a" if http.key[-1] != "a" else "b")

    assert code(await answer(http, X_Api_Key=wrong)) == (401, "unauthenticated")
    assert (await answer(http, X_Api_Key=http.key))[0] == 200


async def test_two_keys_are_one_too_many(http: HttpServer, make_key: MakeKey) -> None:
    both = {"X_Api_Key": await make_key("*"), "Authorization": f"Bearer {http.key}"}

    assert code(await answer(http, **both)) == (400, "invalid_data")


@pytest.mark.parametrize("query", ["?api_key={key}", "?x={key}", "?access_token=x", "?API_KEY=1"])
async def test_a_key_in_the_address_is_refused_even_beside_a_good_one(
    http: HttpServer, query: str
) -> None:
    answered = await answer(http, WHOSE + query.format(key=http.key), X_Api_Key=http.key)

    assert code(answered) == (400, "invalid_data")
    assert "revoke" in answered[1]["error"]["message"]
    assert http.key not in str(answered)


async def test_a_key_in_the_path_is_refused(http: HttpServer) -> None:
    assert code(await answer(http, f"/v1/{http.key}/x")) == (400, "invalid_data")


# -- in whose name --------------------------------------------------------------------------------


async def test_an_event_comes_in_the_name_of_the_key_s_tenant_and_user(
    http: HttpServer, make_key: MakeKey
) -> None:
    key = await make_key("odd:*", tenant="acme", user="ann")
    presented = keys.read(key)
    assert presented is not None

    _, whose = await http.post(WHOSE, key=key)

    assert whose["tenant"] == "acme"
    assert whose["user"] == "ann"
    assert whose["principal"] == f"token:http-{presented.id}"


async def test_a_key_that_may_act_for_others_says_for_whom(
    http: HttpServer, make_key: MakeKey
) -> None:
    key = await make_key("odd:*", user="app", may_act_for_others=True)

    _, own = await http.post(WHOSE, key=key)
    _, for_ann = await http.post(WHOSE, key=key, headers={"x-user-id": "ann"})

    assert (own["user"], for_ann["user"]) == ("app", "ann")


async def test_a_forged_identity_is_refused(http: HttpServer, make_key: MakeKey) -> None:
    bound, free = await make_key("odd:*", user="ann"), await make_key("odd:*")

    own = await http.post(WHOSE, key=bound, headers={"x-user-id": "ann"})
    forged = await http.post(WHOSE, key=bound, headers={"x-user-id": "bob"})
    forged_too = await http.post(WHOSE, key=free, headers={"x-user-id": "bob"})

    assert own[0] == 200
    assert code(forged) == code(forged_too) == (403, "denied")


@pytest.mark.parametrize("user", ["", " ", "x" * 201, "a\tb"])
async def test_a_user_that_is_nobody_is_refused(http: HttpServer, user: str) -> None:
    answered = await http.post(WHOSE, headers={"x-user-id": user})

    assert code(answered) == (400, "invalid_data")


async def test_a_body_can_not_say_in_whose_name_it_comes(
    http: HttpServer, make_key: MakeKey
) -> None:
    key = await make_key("odd:*", user="ann")
    body = {"context": {"user": "bob", "tenant": "acme"}, "principal": "owner"}

    _, whose = await http.post(WHOSE, body, key=key)

    assert (whose["tenant"], whose["user"]) == ("default", "ann")


# -- how long it is trusted -----------------------------------------------------------------------


async def test_the_daemon_is_not_asked_at_every_request(
    http: HttpServer, kept_keys: KeysInMemory
) -> None:
    for _ in range(5):
        await http.post(WHOSE)

    assert kept_keys.asked == 1


async def test_a_revoked_key_is_refused_at_once(
    http: HttpServer, make_key: MakeKey, client: AsyncClient
) -> None:
    key = await make_key("odd:*", tenant="acme")
    presented = keys.read(key)
    assert presented is not None
    before = await http.post(WHOSE, key=key)

    await client.request("http:key_revoke", {"id": presented.id, "tenant": "acme"})
    await client.request("odd:whose")  # what was published before has arrived by now
    after = await http.post(WHOSE, key=key)

    assert before[0] == 200
    assert code(after) == (401, "unauthenticated")


async def test_a_key_that_is_revoked_while_the_daemon_answers_is_asked_about_again() -> None:
    presented = keys.read(keys.make())
    assert presented is not None
    asked = 0

    async def ask(shown: Presented) -> HttpCaller:
        nonlocal asked
        asked += 1
        if asked == 1:
            known.forget(shown.id)  # the news of it overtakes the answer
        return HttpCaller(
            key_id=shown.id,
            name="a",
            tenant="default",
            user=None,
            scopes=("*",),
            may_act_for_others=False,
            expires_at=None,
        )

    known = Callers(ask, known_s=5.0)
    for _ in range(3):
        await known._valid(presented)

    assert asked == 2


@pytest.mark.parametrize("http_settings", [{"known_s": 0.0}])
async def test_a_key_that_expires_is_refused(
    http: HttpServer, make_key: MakeKey, kept_keys: KeysInMemory
) -> None:
    key = await make_key("odd:*", ttl_s=3600.0)
    before = await http.post(WHOSE, key=key)
    kept_keys.kept.clear()
    after = await http.post(WHOSE, key=key)

    assert (before[0], code(after)) == (200, (401, "unauthenticated"))


async def test_guessing_keys_is_slowed_down_and_disturbs_nobody_who_is_known(
    http: HttpServer, monkeypatch: pytest.MonkeyPatch, kept_keys: KeysInMemory
) -> None:
    assert (await http.post(WHOSE))[0] == 200
    http.app.callers._unknown = Buckets(0.001, 3)

    guesses = [await http.post(WHOSE, key=keys.make()) for _ in range(5)]
    known = await http.post(WHOSE)

    assert [each[0] for each in guesses] == [401, 401, 401, 429, 429]
    assert known[0] == 200


@pytest.mark.parametrize("http_settings", [{"requests_per_s": 0.001, "request_burst": 2}])
async def test_a_key_may_make_so_many_requests_and_others_feel_nothing_of_it(
    http: HttpServer, make_key: MakeKey
) -> None:
    other = await make_key("*")

    statuses = [(await http.post(WHOSE))[0] for _ in range(3)]
    refused = await http.post(WHOSE)

    assert statuses == [200, 200, 429]
    assert "http.requests_per_s" in refused[1]["error"]["message"]
    assert refused[1]["error"]["retry_after_s"] > 1
    assert (await http.post(WHOSE, key=other))[0] == 200
