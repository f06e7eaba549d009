"""The daemon's events about itself."""

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from ksi_client import AsyncClient, InvalidData, LocalTransport, NotFound, Unavailable
from ksi_daemon import __version__
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_contributor, event_handler, event_observer
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import PROTOCOL_VERSION, Denied, Event
from ksi_daemon.settings import Secret
from ksi_daemon.testing import ModuleEntryPoint, installed_plugins, module_plugin, running_daemon


class WeatherGet(Struct, frozen=True, kw_only=True):
    """Ask for the weather."""

    place: str


class WeatherReport(Struct, frozen=True, kw_only=True):
    """The weather."""

    sky: str


class WeatherSettings(Struct, frozen=True, kw_only=True):
    """How to ask."""

    api_key: Secret = ""
    default_place: str = "Oslo"


@event_handler("weather:get", public=True)
async def get(request: WeatherGet) -> WeatherReport:
    """Report the weather at a place.

    It is always fine.
    """
    if request.place == "nowhere":
        raise NotFound("there is no such place")
    return WeatherReport(sky=f"fine in {request.place}")


@event_handler("weather:watch")
async def watch() -> AsyncIterator[WeatherReport]:
    """Report the weather whenever it changes."""
    yield WeatherReport(sky="fine")


@event_observer("weather:*")
def see(event: Event) -> None:
    """See the weather."""


@hookimpl
def ksi_plugin() -> PluginInfo:
    return PluginInfo(settings=WeatherSettings)


def broken_import() -> Any:
    raise ValueError("a broken import")


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    weather = module_plugin("weather", get=get, watch=watch, see=see, ksi_plugin=ksi_plugin)
    return [weather, ModuleEntryPoint("broken", broken_import)]


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["weather.api_key=hunter2"]


# -- hello, discovery ----------------------------------------------------------------------------


async def test_hello_tells_versions_and_who_one_is(client: AsyncClient) -> None:
    greeting = await client.request("system:hello")

    assert greeting == {
        "protocol": PROTOCOL_VERSION,
        "version": __version__,
        "principal": "owner",
        "tenant": "default",
    }


async def test_discover_lists_events_by_name_with_their_first_sentence(
    client: AsyncClient,
) -> None:
    found = await client.request("system:discover", {"pattern": "weather:*"})

    assert found["events"] == [
        {
            "event": "weather:get",
            "plugin": "weather",
            "streams": False,
            "summary": "Report the weather at a place.",
        },
        {
            "event": "weather:watch",
            "plugin": "weather",
            "streams": True,
            "summary": "Report the weather whenever it changes.",
        },
    ]


async def test_discover_can_be_narrowed_to_a_plugin(client: AsyncClient) -> None:
    found = await client.request("system:discover", {"plugin": "weather"})

    assert {event["event"] for event in found["events"]} == {"weather:get", "weather:watch"}


async def test_describe_shows_schemas_and_documentation(client: AsyncClient) -> None:
    described = await client.request("system:describe", {"event": "weather:get"})

    (event,) = described["events"]
    assert event["doc"] == "Report the weather at a place.\n\nIt is always fine."
    assert (event["plugin"], event["streams"], event["public"]) == ("weather", False, True)
    assert event["data_schema"]["$defs"]["WeatherGet"]["properties"]["place"] == {"type": "string"}
    assert event["result_schema"]["$ref"].endswith("WeatherReport")


async def test_the_schema_of_a_stream_is_that_of_a_chunk(client: AsyncClient) -> None:
    described = await client.request("system:describe", {"event": "weather:watch"})

    (event,) = described["events"]
    assert event["streams"]
    assert event["result_schema"]["$ref"].endswith("WeatherReport")


async def test_every_event_of_the_daemon_is_described(client: AsyncClient) -> None:
    described = await client.request("system:describe")

    silent = [event["event"] for event in described["events"] if not event["doc"]]
    assert silent == []
    assert len(described["events"]) > 15


async def test_describing_what_nobody_answers_names_the_nearest(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="did you mean weather:get"):
        await client.request("system:describe", {"event": "weather:gett"})


# -- plugins, settings ---------------------------------------------------------------------------


async def test_plugins_are_listed_with_their_state_and_why(client: AsyncClient) -> None:
    listed = await client.request("system:plugins")

    plugins = {each.pop("plugin"): each for each in listed["plugins"]}
    assert plugins["weather"] == {"state": "ready", "events": 2}
    assert plugins["broken"]["state"] == "failed"
    assert plugins["broken"]["why"] == "can't be loaded: ValueError: a broken import"
    assert plugins["system"]["essential"]
    assert plugins["system"]["version"] == __version__


async def test_config_shows_values_and_origins_and_no_secrets(client: AsyncClient) -> None:
    listed = await client.request("system:config", {"section": "weather"})

    shown = {each["key"]: (each["value"], each["origin"]) for each in listed["settings"]}
    assert shown["api_key"] == ("********", "--set")
    assert shown["default_place"] == ("Oslo", "default")
    assert "hunter2" not in str(listed)


async def test_config_lists_all_sections_unless_one_is_named(client: AsyncClient) -> None:
    listed = await client.request("system:config")

    assert {each["section"] for each in listed["settings"]} >= {"daemon", "log", "weather"}


async def test_config_of_an_unknown_section_names_the_nearest(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="did you mean weather"):
        await client.request("system:config", {"section": "wether"})


# -- health --------------------------------------------------------------------------------------


def contributor(answer: Any) -> Callable[..., Any]:
    @event_contributor("health:check")
    async def check() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return check


async def health_with(home: Path, *plugins: EntryPoint, settings: tuple[str, ...] = ()) -> Any:
    async with (
        running_daemon(home, *plugins, settings=settings) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        return await client.request("system:health")


async def test_all_is_well(ksi_home: Path) -> None:
    report = await health_with(ksi_home, module_plugin("mine", check=contributor({})))

    assert (report["health"], report["state"], report["problems"]) == ("ok", "ready", [])
    assert {each["plugin"]: each["health"] for each in report["plugins"]} == {
        "mine": "ok",
        "system": "ok",
    }


async def test_a_plugin_that_failed_degrades_the_whole(client: AsyncClient) -> None:
    report = await client.request("system:health")

    assert report["health"] == "degraded"
    broken = next(each for each in report["plugins"] if each["plugin"] == "broken")
    assert broken["health"] == "failed"
    assert "a broken import" in broken["why"]


@pytest.mark.parametrize(
    ("answer", "health", "why"),
    [
        ({"health": "degraded", "why": "slow"}, "degraded", "slow"),
        ({"health": "failed", "why": "gone"}, "failed", "gone"),
        (Unavailable("no database"), "degraded", "no database"),
        (ValueError("a bug"), "degraded", "health:check"),
        ({"health": "splendid"}, "degraded", "its answer to health:check is wrong"),
        ("fine", "degraded", "its answer to health:check is wrong"),
    ],
)
async def test_what_a_plugin_says_of_itself_counts_and_harms_no_other(
    ksi_home: Path, answer: Any, health: str, why: str
) -> None:
    plugins = [
        module_plugin("good", check=contributor({})),
        module_plugin("odd", check=contributor(answer)),
    ]

    report = await health_with(ksi_home, *plugins)

    found = {each["plugin"]: each for each in report["plugins"]}
    assert found["odd"]["health"] == health
    assert why in found["odd"]["why"]
    assert found["good"]["health"] == "ok"
    assert report["health"] == "degraded"


async def test_the_worst_of_a_plugin_s_answers_counts(ksi_home: Path) -> None:
    answers = [{"health": "ok"}, {"health": "degraded", "why": "tired"}, {"health": "ok"}]
    members = {f"check_{n}": contributor(answer) for n, answer in enumerate(answers)}

    report = await health_with(ksi_home, module_plugin("many", **members))

    found = next(each for each in report["plugins"] if each["plugin"] == "many")
    assert (found["health"], found["why"]) == ("degraded", "tired")


async def test_a_background_task_that_can_not_be_kept_running_is_a_problem(
    ksi_home: Path,
) -> None:
    failed = asyncio.Event()

    async def work() -> None:
        failed.set()
        raise ValueError("no luck")

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        plugin.start_task("work", work)
        await failed.wait()
        yield

    report = await health_with(ksi_home, module_plugin("mine", ksi_lifespan=ksi_lifespan))

    assert report["health"] == "degraded"
    assert report["problems"] == ["task mine: work backing off: ValueError: no luck"]


# -- statistics ----------------------------------------------------------------------------------


async def test_stats_count_answers_and_errors_with_latencies(client: AsyncClient) -> None:
    for _ in range(3):
        await client.request("weather:get", {"place": "Oslo"})
    with pytest.raises(NotFound):
        await client.request("weather:get", {"place": "nowhere"})

    stats = await client.request("system:stats", {"pattern": "weather:*"})

    (event,) = stats["events"]
    assert (event["event"], event["count"], event["errors"]) == ("weather:get", 4, 1)
    assert 0 < event["p50_ms"] <= event["p95_ms"] <= event["p99_ms"] <= event["max_ms"]


async def test_stats_tell_queues_connections_tasks_and_memory(client: AsyncClient) -> None:
    await client.subscribe("weather:*")
    with pytest.raises(NotFound):
        await client.request("no:such")

    stats = await client.request("system:stats")

    assert stats["observers"] == [
        {"plugin": "weather", "pattern": "weather:*", "queued": 0, "missed": 0}
    ]
    assert (stats["connections"], stats["subscriptions"]) == (1, 1)
    assert {"heartbeat", "weather: observer of weather:*"} <= {t["task"] for t in stats["tasks"]}
    assert stats["refusals"] == {"not_found": 1}
    assert stats["rss_bytes"] > 10_000_000
    assert stats["loop_lag_ms"] >= 0
    assert stats["lost_log_lines"] == 0


# -- shutdown, log level -------------------------------------------------------------------------


async def test_shutdown_stops_the_daemon(ksi_home: Path) -> None:
    daemon = Daemon(ksi_home, entry_points=[*system_only()])
    ready = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(daemon.run(ready.set))
        await ready.wait()
        async with AsyncClient(LocalTransport(daemon)) as client:
            stopping = await client.request("system:shutdown", {"grace_s": 0.0})

    assert stopping["in_flight"] <= 1  # itself
    assert daemon.state == "stopped"


def system_only() -> list[EntryPoint]:

    return installed_plugins("system")


async def test_the_log_level_is_set_for_a_while(client: AsyncClient) -> None:
    before = await client.request("system:log_level", {"level": "debug", "logger": "ksi.sample"})
    again = await client.request("system:log_level", {"level": "error", "logger": "ksi.sample"})

    assert before == {"before": "info", "level": "debug"}
    assert again == {"before": "debug", "level": "error"}


async def test_a_level_that_is_none_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="loud"):
        await client.request("system:log_level", {"level": "loud"})


# -- tokens --------------------------------------------------------------------------------------


async def test_a_token_lets_its_bearer_do_what_it_grants_and_no_more(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    created = await client.request(
        "token:create",
        {"name": "ci", "ttl_s": 60, "tenant": "t1", "grants": {"call": ["system:he*"]}},
    )

    other = await connect(token=created["token"])

    assert (await other.request("system:hello"))["principal"] == "token:ci"
    assert (await other.request("system:hello"))["tenant"] == "t1"
    await other.request("system:health")
    with pytest.raises(Denied, match="token:ci may not send system:shutdown"):
        await other.request("system:shutdown")


async def test_the_bearer_of_a_token_issues_none_whatever_was_granted(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    everything = {"name": "ci", "ttl_s": 60, "grants": {"call": ["*"]}}
    created = await client.request("token:create", everything)
    bearer = await connect(token=created["token"])

    with pytest.raises(Denied, match="issues none"):
        await bearer.request("token:create", everything)


async def test_tokens_are_listed_without_their_secret(client: AsyncClient) -> None:
    created = await client.request("token:create", {"name": "ci", "ttl_s": 60, "user": "ada"})

    listed = await client.request("token:list")

    (token,) = listed["tokens"]
    assert (token["name"], token["user"], token["tenant"]) == ("token:ci", "ada", "default")
    assert created["token"].startswith(f"ksi_{token['id']}_")
    assert created["token"].split("_", 2)[2] not in str(listed)
    assert token["expires_at"] == pytest.approx(created["expires_at"], abs=1)


async def test_a_revoked_token_ends_its_connections(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    created = await client.request("token:create", {"name": "ci", "ttl_s": 60})
    other = await connect(token=created["token"])
    (token,) = (await client.request("token:list"))["tokens"]

    assert await client.request("token:revoke", {"id": token["id"]}) == {"id": token["id"]}

    async with asyncio.timeout(10):
        await other.closed.wait()
    assert (await client.request("token:list"))["tokens"] == []
    with pytest.raises(Denied):
        await connect(token=created["token"])


async def test_revoking_what_is_no_token_is_told(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="there is no token 'nope'"):
        await client.request("token:revoke", {"id": "nope"})


@pytest.mark.parametrize("ttl_s", [0, -1, 1e300])
async def test_a_token_must_be_valid_for_some_time_that_ends(
    client: AsyncClient, ttl_s: float
) -> None:
    with pytest.raises(InvalidData, match="ttl_s"):
        await client.request("token:create", {"name": "ci", "ttl_s": ttl_s})


async def test_tokens_outlive_the_daemon_in_a_private_file(ksi_home: Path) -> None:
    async with running_daemon(ksi_home) as daemon, AsyncClient(LocalTransport(daemon)) as client:
        created = await client.request("token:create", {"name": "ci", "ttl_s": 60})

    async with running_daemon(ksi_home) as daemon, AsyncClient(LocalTransport(daemon)) as client:
        listed = await client.request("token:list")
        file = daemon.home.tokens_file

    assert [token["name"] for token in listed["tokens"]] == ["token:ci"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert created["token"].split("_", 2)[2] not in file.read_text()


async def test_a_broken_tokens_file_stops_the_start_and_says_so(ksi_home: Path) -> None:
    (ksi_home / "run").mkdir()
    (ksi_home / "run" / "tokens.json").write_text("[{")
    daemon = Daemon(ksi_home, entry_points=system_only())

    with pytest.raises(InvalidData, match=r"tokens\.json"):
        await daemon.run()
