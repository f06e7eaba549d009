"""Keys where they are kept: made, found, bounded, ended; and the one that a home has."""

import hashlib
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ksi_client import AsyncClient, LocalTransport
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Busy, Denied, InvalidData, NotFound
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import read_log, running_daemon
from ksi_http import keys
from ksi_http.keys import Presented

ALL = {"name": "a", "scopes": ["*"]}


@pytest.fixture
def ksi_plugins(with_postgres: list[EntryPoint]) -> list[EntryPoint]:
    return with_postgres


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["http.max_keys=3"]


def presented(key: str) -> Presented:
    found = keys.read(key)
    assert found is not None
    return found


async def authenticate(client: AsyncClient, key: str) -> Any:
    shown = presented(key)
    ask = {"id": shown.id, "digest": shown.digest}
    return await client.request("http:authenticate", ask)


async def create(client: AsyncClient, **fields: Any) -> str:
    key: str = (await client.request("http:key_create", {**ALL, **fields}))["key"]
    return key


def test_a_key_has_one_form() -> None:
    key = keys.make()

    shown = presented(key)

    assert key.startswith(f"ksi_key_{shown.id}_")
    assert shown.digest == hashlib.sha256(key.encode()).hexdigest()
    for wrong in (key[:-1], f"{key}a", f"{key}\n", key.upper(), "", key.replace("ksi_key", "ksi")):
        assert keys.read(wrong) is None


def test_hashes_are_the_same_only_where_one_is_kept() -> None:
    assert keys.is_same("a" * 64, "a" * 64)
    assert not keys.is_same("a" * 64, "b" * 64)
    assert not keys.is_same("0" * 64, None)


async def test_the_first_start_makes_a_key_for_the_owner_alone(
    client: AsyncClient, daemon: Daemon
) -> None:
    file = daemon.home.root / "http.key"
    key = keys.home_key(daemon.home.root)

    assert key is not None
    assert file.stat().st_mode & 0o777 == 0o600
    caller = await authenticate(client, key)
    assert caller["scopes"] == ["*"]
    assert caller["may_act_for_others"]


async def test_a_key_in_the_home_is_entered_again_in_a_new_database(
    ksi_home: Path, with_postgres: list[EntryPoint], ksi_settings_of_postgres: list[str]
) -> None:
    key = keys.make()
    ksi_home.joinpath("http.key").write_text(f"{key}\n")

    async with (
        running_daemon(ksi_home, *with_postgres, settings=ksi_settings_of_postgres) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        caller = await authenticate(client, key)

    assert caller["key_id"] == presented(key).id
    assert keys.home_key(ksi_home) == key


async def test_a_file_that_holds_no_key_is_left_alone_and_told(
    ksi_home: Path, with_postgres: list[EntryPoint], ksi_settings_of_postgres: list[str]
) -> None:
    ksi_home.joinpath("http.key").write_text("my notes")

    async with running_daemon(ksi_home, *with_postgres, settings=ksi_settings_of_postgres):
        pass

    assert keys.home_key(ksi_home) == "my notes"
    assert any("the key in the home is none" in line["message"] for line in read_log(ksi_home))


async def test_what_is_kept_of_a_key_is_its_hash(client: AsyncClient, database_logins: Any) -> None:
    key = await create(client, name="secret keeper", user="ann")
    connection = await asyncpg.connect(database_logins.admin)
    try:
        text = str(await connection.fetch("SELECT to_json(k) FROM ksi_http.key k"))
    finally:
        await connection.close()

    assert "secret keeper" in text
    assert presented(key).digest in text
    assert key not in text
    assert key[-43:] not in text  # its secret, which may have an underscore in it


async def test_a_key_says_whose_it_is_and_when_it_was_used(client: AsyncClient) -> None:
    key = await create(client, name="app", scopes=["chat:*", "*:read"], tenant="acme", user="ann")

    caller = await authenticate(client, key)
    listed = (await client.request("http:key_list", {"tenant": "acme"}))["keys"]

    assert (caller["tenant"], caller["user"]) == ("acme", "ann")
    assert caller["scopes"] == ["chat:*", "*:read"]
    assert [each["name"] for each in listed] == ["app"]
    assert listed[0]["used_at"] is not None
    assert all(each["used_at"] is None or each["name"] == "app" for each in listed)


async def test_keys_of_a_tenant_are_listed_for_it_alone(client: AsyncClient) -> None:
    await create(client, tenant="acme")

    others = (await client.request("http:key_list", {"tenant": "other"}))["keys"]

    assert others == []


async def test_what_is_wrong_with_a_key_is_not_told(client: AsyncClient) -> None:
    known = await create(client)
    expired = await create(client, ttl_s=0.001)
    revoked = await create(client, tenant="acme")
    ask = {"id": presented(revoked).id, "tenant": "acme"}
    await client.request("http:key_revoke", ask)
    other_secret = f"{known[:-43]}{'a' * 43}"

    told = set()
    for key in (keys.make(), other_secret, expired, revoked):
        with pytest.raises(Denied) as refused:
            await authenticate(client, key)
        told.add(refused.value.message)

    assert len(told) == 1


async def test_a_revoked_key_is_told_to_who_listens_and_stays_as_such(client: AsyncClient) -> None:
    key_id = presented(await create(client, tenant="acme")).id
    news = await client.subscribe("http:key_revoked")

    with pytest.raises(NotFound):
        await client.request("http:key_revoke", {"id": key_id, "tenant": "default"})
    ask = {"id": key_id, "tenant": "acme"}
    await client.request("http:key_revoke", ask, context={"tenant": "acme"})
    event = await anext(news)
    listed = await client.request("http:key_list", {"tenant": "acme"})
    all_ = await client.request("http:key_list", {"tenant": "acme", "all": True})

    assert event.data == {"id": key_id}
    assert event.context.tenant == "default"  # which is the sidecar's
    assert listed["keys"] == []
    assert all_["keys"][0]["revoked_at"] is not None


async def test_the_home_s_key_goes_with_its_file_and_can_not_come_back(
    client: AsyncClient, daemon: Daemon
) -> None:
    home = daemon.home.root
    key = keys.home_key(home)
    assert key is not None

    await client.request("http:key_revoke", {"id": presented(key).id})
    assert keys.home_key(home) is None
    keys.keep_home_key(home, key)  # a copy of it, which a start finds
    with pytest.raises(Denied):
        await authenticate(client, key)


async def test_there_is_a_bound_on_a_tenant_s_keys(client: AsyncClient) -> None:
    made = [await create(client, tenant="acme") for _ in range(3)]

    with pytest.raises(Busy, match=r"http\.max_keys"):
        await create(client, tenant="acme")
    await create(client, tenant="other")
    await client.request("http:key_revoke", {"id": presented(made[0]).id, "tenant": "acme"})
    await create(client, tenant="acme")


async def test_a_key_that_makes_no_sense_is_not_made(client: AsyncClient) -> None:
    mistakes: list[dict[str, Any]] = [
        {"scopes": []},
        {"scopes": ["a b"]},
        {"name": ""},
        {"ttl_s": 0},
        {"ttl_s": 1e12},
    ]
    for wrong in mistakes:
        with pytest.raises(InvalidData):
            await create(client, **wrong)


async def test_who_came_with_a_token_has_no_say_over_keys(daemon: Daemon, connect: Any) -> None:
    token = daemon.tokens.issue(Principal("x", Grants(call=("*",))), ttl_s=60)
    bearer = await connect(token=token)

    for event, data in (
        ("http:key_create", ALL),
        ("http:key_list", {}),
        ("http:key_revoke", {"id": "0" * 12}),
    ):
        with pytest.raises(Denied, match="owner"):
            await bearer.request(event, data)


# -- connections of their own ---------------------------------------------------------------------


async def connection_of(client: AsyncClient, connect: Any, key: str, **more: Any) -> AsyncClient:
    shown = presented(key)
    ask = {"id": shown.id, "digest": shown.digest, **more}
    made = await client.request("http:connect", ask)
    connection: AsyncClient = await connect(token=made["token"])
    return connection


async def test_a_key_s_own_connection_may_do_what_the_key_may(
    client: AsyncClient, connect: Any
) -> None:
    key = await create(client, scopes=["odd:read"], tenant="acme", user="ann")
    own = await connection_of(client, connect, key)

    whose = await own.request("odd:whose")

    assert (whose["tenant"], whose["user"]) == ("acme", "ann")
    assert whose["principal"] == f"token:http-{presented(key).id}"
    for event in ("odd:wait", "odd:inside", "system:shutdown"):
        with pytest.raises(Denied):
            await own.request(event)
    with pytest.raises(Denied):
        await own.subscribe("*")
    with pytest.raises(Denied):
        await own.request("odd:whose", context={"user": "bob"})
    with pytest.raises(Denied):
        await connection_of(client, connect, key, user="bob")


async def test_a_connection_with_the_scopes_for_it_sees_and_serves(
    client: AsyncClient, connect: Any
) -> None:
    key = await create(client, scopes=["events:*"], tenant="acme")
    own = await connection_of(client, connect, key)

    async def answer(data: Any, context: Any) -> str:
        return "served"

    await own.subscribe("*")
    await own.serve("phone:ring", answer)

    assert await client.request("phone:ring", context={"tenant": "acme"}) == "served"


async def test_a_key_for_others_says_whose_a_connection_is(
    client: AsyncClient, connect: Any
) -> None:
    key = await create(client, scopes=["odd:read"], may_act_for_others=True)

    own = await connection_of(client, connect, key, user="bob")

    assert (await own.request("odd:whose"))["user"] == "bob"


async def test_the_connections_of_a_revoked_key_end(client: AsyncClient, connect: Any) -> None:
    key = await create(client)
    own = await connection_of(client, connect, key)
    await own.request("odd:whose")

    await client.request("http:key_revoke", {"id": presented(key).id})

    await own.closed.wait()
