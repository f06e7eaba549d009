"""Definitions of tenants: applied, found, extended, shown, rolled back and removed."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from ksi_agents import events as e
from ksi_agents.api import Definition, Definitions
from ksi_agents.definition_handlers import DefinitionHandlers
from ksi_agents.settings import AgentsSettings, Profile
from ksi_agents.tests.defining_plugin import Toolbox
from ksi_client import AsyncClient, Busy, Conflict, InvalidData, LocalTransport, NotFound
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import installed_plugins, module_plugin, running_daemon
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.news import News
from ksi_postgres.testing import settings_for

SETTINGS = AgentsSettings(
    max_definitions=40, kept_versions=3, profiles={"clerk": Profile(allow=("memory_*",))}
)


class Seen:
    """The definitions of the daemons that run; whether the first of them has heard of a change."""

    def __init__(self) -> None:
        self.definitions: list[Definitions] = []
        self.heard = asyncio.Event()


def defining(seen: Seen) -> EntryPoint:
    """Make a plugin of definitions alone."""

    async def lifespan(plugin: Plugin) -> AsyncIterator[None]:
        database = plugin.service(Database)
        news = News("ksi_agents", database)
        definitions = Definitions(database, news, SETTINGS, plugin.bus)
        await news.listen()
        if not seen.definitions:
            ears = News("ksi_agents", database)  # it hears after the other
            ears.on("definitions", lambda _: seen.heard.set())
            await ears.listen()
        plugin.start_task("teller", news.run)
        plugin.add(DefinitionHandlers(definitions), Toolbox())
        seen.definitions.append(definitions)
        yield
        news.unlisten()

    return module_plugin(
        "defining",
        ksi_plugin=hookimpl(lambda: PluginInfo(requires=("postgres", "models"))),
        ksi_lifespan=hookimpl(lifespan),
    )


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def ksi_plugins(seen: Seen) -> list[EntryPoint]:
    needed = ("postgres", "models")
    installed = installed_plugins(*needed)
    return [*installed, defining(seen)]


def document(name: str, path: str | None = None, **fields: Any) -> dict[str, Any]:
    text = msgspec.json.encode({"name": name, **fields}).decode()
    return {"text": text, "path": path or f"{name}.json"}


async def apply(client: AsyncClient, *documents: dict[str, Any], **more: Any) -> e.AgentApplied:
    request = {"documents": documents, **more}
    found: e.AgentApplied = await client.request("agent:apply", request, result_type=e.AgentApplied)
    return found


async def applied(client: AsyncClient, *documents: dict[str, Any], **more: Any) -> dict[str, str]:
    """Apply what is sound, and return what became of each: ``changed 2``."""
    done = await apply(client, *documents, **more)
    assert [each for each in done.problems if not each.is_warning] == []
    return {each.name: f"{each.action} {each.version}" for each in done.applied}


async def problems(client: AsyncClient, *documents: dict[str, Any], **more: Any) -> list[str]:
    done = await apply(client, *documents, **more)
    return [
        f"{'warning: ' if each.is_warning else ''}{each.path}: {each.field}: {each.message}"
        for each in done.problems
    ]


async def show(client: AsyncClient, name: str, version: int | None = None) -> e.DefinitionShown:
    request = {"name": name, "version": version}
    shown: e.DefinitionShown = await client.request(
        "agent:definition", request, result_type=e.DefinitionShown
    )
    return shown


async def names(client: AsyncClient, pattern: str = "*", **more: Any) -> list[str]:
    request = {"pattern": pattern, **more}
    listed = await client.request("agent:definitions", request, result_type=e.DefinitionsListed)
    return [f"{each.name} {each.version} {each.origin}" for each in listed.definitions]


# -- applied --------------------------------------------------------------------------------------


async def test_applying_twice_is_applying_once(client: AsyncClient) -> None:
    first = await applied(client, document("a", prompt="One"), document("b"))
    again = await applied(client, document("a", prompt="One"), document("b"))
    changed = await applied(client, document("a", prompt="Two"), document("b"))

    assert first == {"a": "created 1", "b": "created 1"}
    assert again == {"a": "unchanged 1", "b": "unchanged 1"}
    assert changed == {"a": "changed 2", "b": "unchanged 1"}
    assert (await show(client, "a")).resolved["prompt"] == "Two"
    assert (await show(client, "a", 1)).resolved["prompt"] == "One"


async def test_the_diff_is_of_the_text(client: AsyncClient) -> None:
    await apply(client, {"text": "name: a\nprompt: One\n", "path": "a.yaml"})

    done = await apply(client, {"text": "name: a\nprompt: Two\n", "path": "a.yaml"}, dry_run=True)

    assert done.applied[0].diff.splitlines()[-3:] == [" name: a", "-prompt: One", "+prompt: Two"]


async def test_a_dry_run_keeps_nothing(client: AsyncClient) -> None:
    assert await applied(client, document("a"), dry_run=True) == {"a": "created 1"}

    with pytest.raises(NotFound, match="there is no definition 'a'"):
        await show(client, "a")


async def test_where_one_is_wrong_none_is_kept(client: AsyncClient) -> None:
    found = await problems(client, document("a"), document("b", limits={"requests": 0}))

    assert found == ["b.json: limits.requests: expected `int` >= 1"]
    assert await names(client, "?") == []


async def test_two_of_one_name_are_told_of(client: AsyncClient) -> None:
    found = await problems(client, document("a", path="x.json"), document("a", path="y.json"))

    assert found == ["y.json: name: there is another 'a' in x.json:1"]


async def test_those_that_are_not_applied_any_more_are_pruned_of_their_set_alone(
    client: AsyncClient,
) -> None:
    await applied(client, document("a"), document("b"), set_name="mine")
    await applied(client, document("c"), set_name="theirs")

    done = await applied(client, document("a"), set_name="mine", prune=True)

    assert done == {"a": "unchanged 1", "b": "pruned 1"}
    assert await names(client, "?") == ["a 1 applied", "c 1 applied"]


async def test_one_that_another_set_takes_over_is_told_of_and_stays_with_that(
    client: AsyncClient,
) -> None:
    await applied(client, document("a"), set_name="mine")

    found = await problems(client, document("a"), set_name="theirs")

    assert found == ["warning: a.json: name: it was applied with 'mine' before"]
    assert await applied(client, document("b"), set_name="mine", prune=True) == {"b": "created 1"}
    assert await applied(client, document("b"), set_name="theirs", prune=True) == {
        "b": "unchanged 1",
        "a": "pruned 1",
    }


async def test_only_so_many_are_kept(client: AsyncClient) -> None:
    await applied(client, *(document(f"a{n}") for n in range(40)))

    with pytest.raises(Busy, match=r"agents\.max_definitions"):
        await apply(client, document("one-more"))
    assert await applied(client, document("a1", prompt="x")) == {"a1": "changed 2"}


async def test_two_who_apply_at_once_make_two_versions(client: AsyncClient) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(8):
            tasks.create_task(apply(client, document("a", prompt=f"{n}")), name=f"apply {n}")

    listed = await client.request("agent:history", {"name": "a"}, result_type=e.HistoryListed)
    assert [each.version for each in listed.versions] == [8, 7, 6]


# -- what is named --------------------------------------------------------------------------------


async def test_a_model_that_there_is_none_of_is_told_when_it_is_applied(
    client: AsyncClient,
) -> None:
    found = await problems(client, document("a", model=["test/echo", "anthropik:claude"]))

    (problem,) = found
    assert problem.startswith("a.json: model[1]: there is no provider 'anthropik'")
    assert "did you mean anthropic" in problem


async def test_a_model_that_can_t_be_asked_now_is_a_warning(client: AsyncClient) -> None:
    found = await problems(client, document("a", model="anthropic:claude-sonnet-5-5"))

    (problem,) = found
    assert problem.startswith("warning: a.json: model: the model 'anthropic:claude-sonnet-5-5' can")


async def test_a_tool_that_is_not_there_now_is_a_warning(client: AsyncClient) -> None:
    found = await problems(client, document("a", tools=["memory_*", "calender", "web_*"]))

    assert found == [
        "warning: a.json: tools[1]: no tool 'calender' is there now; did you mean calendar?",
        "warning: a.json: tools[2]: no tool 'web_*' is there now",
    ]


async def test_a_profile_that_there_is_none_of_is_told(client: AsyncClient) -> None:
    assert await problems(client, document("a", permissions="clerk")) == []

    assert await problems(client, document("a", permissions="clark")) == [
        "a.json: permissions: there is no profile 'clark'; did you mean clerk?"
    ]


# -- what extends another -------------------------------------------------------------------------


async def test_whoever_extends_a_changed_one_gets_a_new_version(client: AsyncClient) -> None:
    await applied(client, document("base", model="test/echo", limits={"requests": 3}))
    await applied(client, document("mid", extends="base", prompt="Mid"))
    await applied(client, document("own", extends="mid", prompt="{{ base }} own"))

    done = await apply(client, document("base", model="test/other", limits={"requests": 3}))

    assert [(each.name, each.action, each.version) for each in done.applied] == [
        ("base", "changed", 2),
        ("mid", "changed", 2),
        ("own", "changed", 2),
    ]
    assert '+  "model": "test/other"' in done.applied[2].diff
    shown = await show(client, "own")
    assert shown.resolved["model"] == ["test/other"]
    assert shown.resolved["prompt"] == "Mid own"
    assert shown.resolved["limits"]["requests"] == 3
    assert (await show(client, "own", 1)).resolved["model"] == ["test/echo"]
    listed = await client.request("agent:history", {"name": "own"}, result_type=e.HistoryListed)
    assert '+  "model": "test/other"' in listed.versions[0].diff
    assert "+{" in listed.versions[1].diff


async def test_the_order_in_which_they_are_given_is_no_matter(client: AsyncClient) -> None:
    await applied(client, document("own", extends="base"), document("base", model="test/echo"))

    assert (await show(client, "own")).resolved["model"] == ["test/echo"]


async def test_what_is_extended_and_is_not_there_is_told(client: AsyncClient) -> None:
    assert await problems(client, document("a", extends="generall")) == [
        "a.json: extends: there is no definition 'generall'; did you mean general?"
    ]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_circle_is_told_of(client: AsyncClient, at_once: bool) -> None:
    circle = [document("a", extends="b"), document("b", extends="c"), document("c", extends="a")]
    if not at_once:
        await applied(client, document("a", extends="b"), document("b"))
        circle = [document("b", extends="a")]

    found = await problems(client, *circle)

    assert "leads in a circle" in found[0]
    assert ("a → b → c → a" if at_once else "b → a → b") in found[0]
    assert len(found) == len(circle)


async def test_a_chain_that_is_too_long_is_told_of_from_either_end(client: AsyncClient) -> None:
    chain = [document("a0"), *(document(f"a{n}", extends=f"a{n - 1}") for n in range(1, 16))]
    await applied(client, *chain)

    above = await problems(client, document("a16", extends="a15"))
    below = await problems(client, document("a0", extends="general"))

    assert above == ["a16.json: extends: it extends more than 15 definitions, one the other"]
    assert below == ["a15: extends: it extends more than 15 definitions, one the other"]


async def test_what_makes_no_sense_together_is_told(client: AsyncClient) -> None:
    await applied(client, document("base", restart={"max_delay_s": 5}))

    found = await problems(client, document("a", extends="base", restart={"delay_s": 9}))

    assert found == [
        "a.json: extends: with what it extends: restart: max_delay_s is shorter than delay_s"
    ]


# -- those that stand always ----------------------------------------------------------------------


async def test_built_in_ones_are_there_and_shadowed_by_applied_ones(client: AsyncClient) -> None:
    assert "critic 1 built-in" in await names(client)

    assert await applied(client, document("critic", prompt="Mine")) == {"critic": "created 2"}

    assert await names(client, "cri*") == ["critic 2 applied"]
    assert (await show(client, "critic")).resolved["prompt"] == "Mine"
    assert (await show(client, "critic", 1)).info.origin == "built-in"
    await client.request("agent:remove", {"names": ["critic"]})
    assert await names(client, "cri*") == ["critic 1 built-in"]
    assert await applied(client, document("critic")) == {"critic": "created 3"}


async def test_a_built_in_one_can_t_be_removed(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="critic is built-in: it can't be deleted"):
        await client.request("agent:remove", {"names": ["critic"]})


async def test_who_extends_a_shadow_that_goes_extends_the_built_in_one(
    client: AsyncClient,
) -> None:
    await applied(
        client, document("critic", prompt="Mine"), document("own", extends="critic", model="test/a")
    )

    await client.request("agent:remove", {"names": ["critic"]})

    shown = await show(client, "own")
    assert (shown.info.version, shown.resolved["model"]) == (2, ["test/a"])
    assert "Verdict" in shown.resolved["prompt"]


async def test_a_plugin_s_definitions_are_there_while_it_is(
    client: AsyncClient, seen: Seen
) -> None:
    (definitions,) = seen.definitions
    assert await definitions.find("default", "forecaster") is None

    with definitions.offered(Definition(name="forecaster", prompt="Rain."), provider="weather"):
        found = await definitions.find("default", "forecaster")
        assert found is not None
        assert found.definition.prompt == "Rain."
        assert await names(client, "fore*") == ["forecaster 1 plugin"]
        assert "Rain." in (await show(client, "forecaster")).text
        assert "forecaster" in [each.name for each in await definitions.all("default")]

    assert await definitions.find("default", "forecaster") is None


# -- removed, rolled back -------------------------------------------------------------------------


async def test_one_that_others_extend_is_not_removed_without_them(client: AsyncClient) -> None:
    await applied(client, document("base"), document("own", extends="base"))

    with pytest.raises(Conflict, match="base can't be deleted, since own extends it"):
        await client.request("agent:remove", {"names": ["base"]})
    assert await problems(client, document("x"), prune=True) == []
    assert await names(client, "?*") != []


async def test_one_that_others_extend_is_not_pruned_without_them(client: AsyncClient) -> None:
    await applied(client, document("base"), set_name="low")
    await applied(client, document("own", extends="base"), set_name="high")

    found = await problems(client, document("x"), set_name="low", prune=True)

    assert found == ["base: : it can't be pruned, since own extends it"]


async def test_a_removed_one_is_still_found_by_its_version(client: AsyncClient, seen: Seen) -> None:
    await applied(client, document("a", prompt="One"))

    removed = await client.request("agent:remove", {"names": ["a", "nobody"]})

    assert removed["names"] == ["a"]
    (definitions,) = seen.definitions
    assert await definitions.find("default", "a") is None
    kept = await definitions.find("default", "a", 1)
    assert kept is not None
    assert kept.definition.prompt == "One"
    assert await applied(client, document("a", prompt="One")) == {"a": "created 2"}


async def test_history_tells_who_when_and_what(client: AsyncClient) -> None:
    for prompt in ("One", "Two"):
        await apply(client, {"text": f"name: a\nprompt: {prompt}\n", "path": "a.yaml"})

    listed = await client.request("agent:history", {"name": "a"}, result_type=e.HistoryListed)

    second, first = listed.versions
    assert (second.version, second.is_current, second.by) == (2, True, "owner")
    assert "-prompt: One\n+prompt: Two\n" in second.diff
    assert "+name: a\n" in first.diff
    assert first.applied_at <= second.applied_at
    shorter = await client.request(
        "agent:history", {"name": "a", "limit": 1}, result_type=e.HistoryListed
    )
    assert shorter.versions == (second,)


async def test_a_rollback_makes_an_earlier_version_the_newest(client: AsyncClient) -> None:
    await applied(client, document("a", prompt="One"), set_name="mine")
    await applied(client, document("a", prompt="Two"), set_name="mine")

    await client.request("agent:rollback", {"name": "a"})

    shown = await show(client, "a")
    assert (shown.info.version, shown.resolved["prompt"]) == (3, "One")
    await client.request("agent:rollback", {"name": "a", "version": 2})
    assert (await show(client, "a")).resolved["prompt"] == "Two"
    assert await applied(client, document("b"), set_name="mine", prune=True) == {
        "b": "created 1",
        "a": "pruned 4",
    }
    with pytest.raises(NotFound, match="there is no definition 'a'"):
        await client.request("agent:rollback", {"name": "a", "version": 9})


async def test_a_removed_one_comes_back_by_a_rollback(client: AsyncClient) -> None:
    await applied(client, document("a", prompt="One"))
    await client.request("agent:remove", {"names": ["a"]})

    await client.request("agent:rollback", {"name": "a"})

    assert (await show(client, "a")).resolved["prompt"] == "One"


# -- found ----------------------------------------------------------------------------------------


async def test_what_was_asked_for_once_is_found_in_microseconds(
    client: AsyncClient, seen: Seen
) -> None:
    await applied(client, document("a"))
    (definitions,) = seen.definitions
    for name in ("a", "nobody"):
        await definitions.find("default", name)
        begun = time.perf_counter()

        for _ in range(1000):
            await definitions.find("default", name)

        assert (time.perf_counter() - begun) / 1000 < 50e-6


async def test_another_daemon_hears_of_a_change(
    client: AsyncClient,
    seen: Seen,
    ksi_plugins: list[EntryPoint],
    database_logins: Logins,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    await applied(client, document("a", prompt="One"))
    home = tmp_path_factory.mktemp("other")
    async with (
        running_daemon(home, *ksi_plugins, settings=settings_for(database_logins)) as other,
        AsyncClient(LocalTransport(other)) as their_client,
    ):
        ours, theirs = seen.definitions
        for each in (ours, theirs):
            found = await each.find("default", "a")
            assert found is not None
            assert found.definition.prompt == "One"

        seen.heard.clear()
        await applied(their_client, document("a", prompt="Two"))

        async with asyncio.timeout(10):
            await seen.heard.wait()
        now = await ours.find("default", "a")
        assert now is not None
        assert (now.definition.prompt, now.version) == ("Two", 2)
        assert await theirs.find("default", "a") == now


async def test_what_was_read_before_a_change_is_not_remembered_after_it(
    client: AsyncClient, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    await applied(client, document("a", prompt="One"))
    (definitions,) = seen.definitions
    find, is_read, may_go_on = definitions.store.find, asyncio.Event(), asyncio.Event()

    async def slowly(tenant: str, name: str, version: int | None) -> tuple[int, str] | None:
        row = await find(tenant, name, version)
        is_read.set()
        await may_go_on.wait()
        return row

    monkeypatch.setattr(definitions.store, "find", slowly)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(definitions.find("default", "a"), name="reading")
        await is_read.wait()
        await applied(client, document("a", prompt="Two"))
        may_go_on.set()

    early, late = reading.result(), await definitions.find("default", "a")
    assert [each and each.definition.prompt for each in (early, late)] == ["One", "Two"]


async def test_what_is_remembered_is_bounded(
    client: AsyncClient, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_agents.definitions.MAX_REMEMBERED", 3)
    (definitions,) = seen.definitions
    for n in range(10):
        await definitions.find("default", f"nobody-{n}")

    assert sum(map(len, definitions._remembered.values())) <= 3


async def test_all_are_told_of_without_their_prompts(client: AsyncClient, seen: Seen) -> None:
    (definitions,) = seen.definitions
    before = await definitions.all("default")

    await applied(client, document("critic", description="Mine", prompt="x", routes=["tax*"]))

    (critic,) = [each for each in await definitions.all("default") if each.name == "critic"]
    assert (critic.description, critic.prompt, critic.routes) == ("Mine", "", ("tax*",))
    assert len(await definitions.all("default")) == len(before)


async def test_tenants_do_not_see_one_another_s(client: AsyncClient, seen: Seen) -> None:
    (definitions,) = seen.definitions
    mine = e.Document(text="name: a\nprompt: Mine", path="a.yaml")
    theirs = e.Document(text="name: a\nprompt: Theirs", path="a.yaml")

    await definitions.apply("default", (mine,), "default", "me")
    await definitions.apply("other", (theirs,), "default", "them")

    found = [await definitions.find(tenant, "a") for tenant in ("default", "other", "third")]
    assert [each and each.definition.prompt for each in found] == ["Mine", "Theirs", None]


async def test_a_document_of_one_s_own_is_read_and_not_kept(
    client: AsyncClient, seen: Seen
) -> None:
    (definitions,) = seen.definitions
    await applied(client, document("base", model="test/echo"))

    found = await definitions.read(
        "default", e.Document(text="name: a\nextends: base", path="a.yaml")
    )

    assert found.models == ("test/echo",)
    assert await definitions.find("default", "a") is None
    for text, why in (
        ("name: a\nextends: nobody", "a.yaml:2: extends: there is no definition"),
        ("name: a\nmodel: nobody:x", "a.yaml:2: model: there is no provider"),
        ("name: a\n---\nname: b", "holds 2 definitions"),
        ("nam: a", "a.yaml:1: nam: there is no field"),
    ):
        with pytest.raises(InvalidData, match=why):
            await definitions.read("default", e.Document(text=text, path="a.yaml"))


async def test_who_asks_for_what_is_not_there_is_told_of_the_nearest(client: AsyncClient) -> None:
    await applied(client, document("helper"))

    with pytest.raises(NotFound, match="no definition 'helpr'; did you mean helper"):
        await show(client, "helpr")
    with pytest.raises(NotFound, match="no version 7 of 'helper' is kept"):
        await show(client, "helper", 7)


# -- listed ---------------------------------------------------------------------------------------


async def test_pages_go_on_where_they_ended(client: AsyncClient) -> None:
    await applied(client, *(document(name) for name in ("x_1", "xa1", "x.2", "critic")))

    async def page(cursor: str | None) -> e.DefinitionsListed:
        request = {"limit": 2, "cursor": cursor}
        found: e.DefinitionsListed = await client.request(
            "agent:definitions", request, result_type=e.DefinitionsListed
        )
        return found

    whole = [each.split()[0] for each in await names(client)]
    found: list[str] = []
    cursor = None
    while True:
        listed = await page(cursor)
        found += [each.name for each in listed.definitions]
        cursor = listed.cursor
        if cursor is None:
            break

    assert found == whole == sorted(set(whole))
    assert await names(client, "x_?") == ["x_1 1 applied"]


async def test_documents_are_checked_without_being_kept(client: AsyncClient) -> None:
    good = await client.request(
        "agent:validate",
        {"documents": [document("a", tools=["web_*"])]},
        result_type=e.AgentValidated,
    )
    bad = await client.request(
        "agent:validate", {"documents": [document("a", tolos=[])]}, result_type=e.AgentValidated
    )

    assert (good.is_valid, good.agents, len(good.problems)) == (True, ("a",), 1)
    assert (bad.is_valid, [each.field for each in bad.problems]) == (False, ["tolos"])
    assert await names(client, "a") == []


async def test_the_schema_is_given(client: AsyncClient) -> None:
    given = await client.request("agent:schema", {})

    assert given["json_schema"]["properties"]["name"]["pattern"] == (
        "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
    )
