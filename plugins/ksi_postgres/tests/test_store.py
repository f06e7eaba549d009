"""The store in a daemon: status, health, walls at work."""

from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_postgres.database import Database


async def test_a_daemon_tells_where_its_store_is(client: AsyncClient) -> None:
    report = await client.request("postgres:status")

    assert report["up"]
    assert not report["embedded"]
    assert ":" not in report["where"].partition("@")[0].removeprefix("postgresql://")


async def test_the_daemon_s_own_queries_are_no_superuser_s(daemon: Daemon) -> None:
    database = daemon._services[Database]

    assert isinstance(database, Database)
    assert await database.fetchval("SELECT current_user") == "ksi_app"
