"""Tests of what is saved of plugins and given back, with a real Postgres and real daemons."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from ksi_checkpoint.identity import FILE, daemon_id
from ksi_checkpoint.tests.conftest import Run
from ksi_checkpoint.tests.notes_plugin import Notes
from ksi_client import AsyncClient, Client, Denied, InvalidData, NotFound, UnixTransport
from ksi_daemon.event_system import event_contributor
from ksi_daemon.protocol import Conflict
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.database import Database


async def health_of(client: AsyncClient, plugin: str = "checkpoint") -> dict[str, Any]:
    report = await client.request("system:health")
    (found,) = [each for each in report["plugins"] if each["plugin"] == plugin]
    return dict(found)


async def restored_notes(client: AsyncClient) -> list[str]:
    answer = await client.request("notes:list")
    return list(answer["notes"])


class Other:
    """A plugin with another state."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.got: Any = None

    @event_contributor("checkpoint:collect")
    def collect(self) -> dict[str, Any]:
        return {"version": 7, "state": {"number": self.number}}

    @event_contributor("checkpoint:apply")
    def apply(self, saved: Any) -> None:
        self.got = saved


# -- there and back ------------------------------------------------------------------------------


async def test_what_plugins_had_at_the_drain_is_back_when_the_daemon_is_ready(run: Run) -> None:
    other, again = Other(42), Other()
    async with run(notes=Notes(), other=other) as client:
        await client.request("notes:add", {"text": "remember the milk"})

    async with run(notes=Notes(), other=again) as client:
        assert await restored_notes(client) == ["remember the milk"]
        assert again.got == {"version": 7, "state": {"number": 42}}  # its own alone
        (checkpoint,) = (await client.request("checkpoint:list"))["checkpoints"]
        assert (checkpoint["reason"], checkpoint["plugins"]) == ("drain", 2)


def test_a_daemon_that_is_killed_has_its_last_checkpoint_back(
    daemon_process: DaemonProcess, notes_installed: None
) -> None:
    daemon_process.start()
    with Client(daemon_process.socket) as client:
        client.request("notes:add", {"text": "saved"})
        made = client.request("checkpoint:create", {"reason": "before the kill"})
        client.request("notes:add", {"text": "said after it"})
    daemon_process.kill(signal.SIGKILL)

    daemon_process.start()

    with Client(daemon_process.socket) as client:
        assert client.request("notes:list")["notes"] == ["saved"]
        assert [each["plugin"] for each in made["plugins"]] == ["notes"]


def test_a_daemon_that_is_drained_loses_nothing(
    daemon_process: DaemonProcess, notes_installed: None
) -> None:
    daemon_process.start()
    with Client(daemon_process.socket) as client:
        client.request("notes:add", {"text": "said last"})
    assert daemon_process.kill(signal.SIGTERM) == 0

    daemon_process.start()

    with Client(daemon_process.socket) as client:
        assert client.request("notes:list")["notes"] == ["said last"]


def test_the_state_of_a_plugin_in_a_process_of_its_own_comes_back(
    daemon_process: DaemonProcess, notes_installed: None
) -> None:
    isolated = ("--set", "notes.isolate=true", "--set", "notes.environment=PYTHONPATH")
    daemon_process.start(*isolated)
    with Client(daemon_process.socket) as client:
        client.request("notes:add", {"text": "from afar"})
    daemon_process.stop()

    daemon_process.start(*isolated)

    with Client(daemon_process.socket) as client:
        answer = client.request("notes:list")
        assert answer["notes"] == ["from afar"]
        assert daemon_process.process is not None
        assert answer["pid"] != daemon_process.process.pid


async def test_a_checkpoint_is_taken_now_and_then_but_only_of_what_has_changed(run: Run) -> None:
    asked: asyncio.Queue[int] = asyncio.Queue()

    class Counting(Notes):
        async def collect(self) -> Any:
            asked.put_nowait(1)
            return await super().collect()

        collect.__ksi_events__ = Notes.collect.__ksi_events__  # type: ignore[attr-defined]  # its decorator

    async with run("checkpoint.interval_s=0.02", notes=Counting()) as client:
        created = await client.subscribe("checkpoint:created")
        for _ in range(5):
            await asked.get()
        await client.request("notes:add", {"text": "news"})
        while True:
            event = await anext(created)
            if event.data["plugins"][0]["size_bytes"] > len("[]"):
                break
        listed = (await client.request("checkpoint:list"))["checkpoints"]

    assert len(listed) <= 2
    assert listed[0]["reason"] == "interval"


async def test_nothing_is_restored_where_the_settings_say_so(run: Run) -> None:
    async with run(notes=Notes()) as client:
        await client.request("notes:add", {"text": "old"})

    async with run("checkpoint.restore_at_start=false", notes=Notes()) as client:
        assert await restored_notes(client) == []
        await client.request("checkpoint:restore")
        assert await restored_notes(client) == ["old"]


async def test_a_plugin_with_nothing_to_save_has_no_entry(run: Run) -> None:
    class Silent:
        @event_contributor("checkpoint:collect")
        def collect(self) -> None:
            return None

    async with run(silent=Silent(), other=Other()) as client:
        made = await client.request("checkpoint:create")

    assert [each["plugin"] for each in made["plugins"]] == ["other"]
    assert made["problems"] == []


# -- what plugins do wrong -----------------------------------------------------------------------

WRONG = [
    (Conflict("not now"), "conflict", "not now"),
    (ValueError("secret"), "failed", "ValueError"),
    ("late", "timeout", "did not answer in"),
    ("rubbish", "failed", "not a version and a state"),
    ({"version": 1}, "failed", "not a version and a state"),
    ({"version": "one", "state": 1}, "failed", "not a version and a state"),
    ({"version": 1, "state": 1, "more": 1}, "failed", "not a version and a state"),
    ({"version": 1, "state": object()}, "failed", "not a version and a state"),
    ({"version": 1, "state": "\ud800"}, "failed", "not a version and a state"),
    ({"version": 1, "state": "x" * 5000}, "invalid_data", "checkpoint.max_state_bytes"),
]


@pytest.mark.parametrize(("answer", "code", "message"), WRONG)
async def test_who_fails_to_be_saved_is_named_and_the_rest_is_saved(
    run: Run, answer: Any, code: str, message: str
) -> None:
    bounds = ("checkpoint.collect_timeout_s=0.2", "checkpoint.max_state_bytes=4000")
    bad = Notes(answer)
    async with run(*bounds, notes=bad, other=Other(3)) as client:
        made = await client.request("checkpoint:create")
        health = await health_of(client)
        bad.answer = None
        again = await client.request("checkpoint:create")
        health_again = await health_of(client)

    assert [each["plugin"] for each in made["plugins"]] == ["other"]
    ((plugin, error),) = [(each["plugin"], each["error"]) for each in made["problems"]]
    assert (plugin, error["code"]) == ("notes", code)
    assert message in error["message"]
    assert health["health"] == "degraded"
    assert "the state of notes was not saved" in health["why"]
    assert again["problems"] == []
    assert health_again["health"] == "ok"


async def test_a_plugin_with_two_states_is_told_to_make_them_one(run: Run) -> None:
    class Two(Other):
        @event_contributor("checkpoint:collect")
        def collect_more(self) -> dict[str, Any]:
            return {"version": 1, "state": "more"}

    async with run(two=Two(), other=Other()) as client:
        made = await client.request("checkpoint:create")

    assert [each["plugin"] for each in made["plugins"]] == ["other"]
    assert made["problems"][0]["error"]["code"] == "conflict"


async def test_past_the_size_of_all_states_the_next_is_left_out_and_smaller_ones_are_kept(
    run: Run,
) -> None:
    class Big(Other):
        @event_contributor("checkpoint:collect")
        def collect(self) -> dict[str, Any]:
            return {"version": 1, "state": "x" * 600}

    bound = "checkpoint.max_checkpoint_bytes=1000"
    async with run(bound, a=Big(), b=Big(), c=Other()) as client:
        made = await client.request("checkpoint:create")

    assert [each["plugin"] for each in made["plugins"]] == ["a", "c"]
    ((plugin, error),) = [(each["plugin"], each["error"]) for each in made["problems"]]
    assert (plugin, error["code"]) == ("b", "invalid_data")
    assert "max_checkpoint_bytes" in error["message"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [(Conflict("no"), "conflict"), (ValueError("secret"), "failed"), ("late", "timeout")],
)
async def test_who_does_not_take_its_state_back_is_named_and_the_rest_is_restored(
    run: Run, answer: Any, code: str
) -> None:
    async with run(notes=Notes(), other=Other(5)) as client:
        await client.request("notes:add", {"text": "kept"})
    bad, again = Notes(answer), Other()

    async with run("checkpoint.apply_timeout_s=0.2", notes=bad, other=again) as client:
        assert again.got is not None
        health = await health_of(client)
        assert "the state of notes was not given back" in health["why"]

        answered = await client.request("checkpoint:restore")
        ((plugin, error),) = [(each["plugin"], each["error"]) for each in answered["problems"]]
        assert (plugin, error["code"]) == ("notes", code)
        assert "secret" not in str(answered)

        bad.answer = None
        await client.request("checkpoint:restore", {"plugins": ["notes"]})
        assert await restored_notes(client) == ["kept"]
        assert (await health_of(client))["health"] == "ok"


async def test_an_outdated_state_is_refused_by_its_version_until_somebody_has_seen_it(
    run: Run,
) -> None:
    async with run(notes=Notes({"version": 1, "state": ["old"]}), other=Other(5)):
        pass
    again = Other()

    async with run(notes=Notes(), other=again) as client:
        assert again.got is not None
        health = await health_of(client)
        seen = await client.request("checkpoint:acknowledge")
        assert (await health_of(client))["health"] == "ok"

    assert "notes" in health["why"]
    assert "$.version" in health["why"]
    assert seen["problems"] == [health["why"]]


async def test_who_is_not_there_any_more_is_named(run: Run) -> None:
    async with run(notes=Notes(), other=Other(5)):
        pass

    async with run(other=Other()) as client:
        answered = await client.request("checkpoint:restore")

    assert [each["plugin"] for each in answered["plugins"]] == ["other"]
    ((plugin, error),) = [(each["plugin"], each["error"]) for each in answered["problems"]]
    assert (plugin, error["code"]) == ("notes", "not_found")


async def test_who_could_not_be_saved_gets_what_was_saved_before(run: Run) -> None:
    bad = Notes()
    async with run("checkpoint.collect_timeout_s=0.2", notes=bad) as client:
        await client.request("notes:add", {"text": "saved in time"})
        first = await client.request("checkpoint:create")
        bad.answer = "late"

    async with run(notes=Notes()) as client:
        assert await restored_notes(client) == ["saved in time"]
        answered = await client.request("checkpoint:restore")

    assert answered["plugins"][0]["from_checkpoint"] == first["id"]


async def test_a_damaged_state_is_noticed_and_the_one_before_is_given_back(
    run: Run, database: Database
) -> None:
    async with run(notes=Notes(), other=Other(5)) as client:
        await client.request("notes:add", {"text": "first"})
        first = await client.request("checkpoint:create")
        await client.request("notes:add", {"text": "second"})
    await database.execute(
        "UPDATE ksi_checkpoint.entry SET state = convert_to('[\"forged\"]', 'UTF8') "
        "WHERE plugin = 'notes' AND checkpoint > $1",
        first["id"],
    )
    again = Other()

    async with run(notes=Notes(), other=again) as client:
        assert await restored_notes(client) == ["first"]
        assert again.got == {"version": 7, "state": {"number": 5}}
        health = await health_of(client)
        newest = (await client.request("checkpoint:list"))["checkpoints"][0]["id"]
        answered = await client.request("checkpoint:restore")

    assert health["why"] == f"what checkpoint {newest} holds of notes is damaged"
    (state,) = [each for each in answered["plugins"] if each["plugin"] == "notes"]
    assert state["from_checkpoint"] == first["id"]


async def test_a_state_that_was_put_under_another_name_is_damaged(
    run: Run, database: Database
) -> None:
    async with run(notes=Notes(), other=Other(5)):
        pass
    await database.execute("DELETE FROM ksi_checkpoint.entry WHERE plugin = 'notes'")
    await database.execute("UPDATE ksi_checkpoint.entry SET plugin = 'notes'")

    async with run(notes=Notes()) as client:
        answered = await client.request("checkpoint:restore")

    assert answered["plugins"] == []
    assert "damaged" in answered["problems"][0]["error"]["message"]


# -- keeping -------------------------------------------------------------------------------------


async def test_only_so_many_are_kept(run: Run) -> None:
    async with run("checkpoint.keep_count=3", notes=Notes()) as client:
        made = [(await client.request("checkpoint:create"))["id"] for _ in range(5)]
        listed = (await client.request("checkpoint:list"))["checkpoints"]

    assert [each["id"] for each in listed] == made[:-4:-1]


async def test_old_ones_are_forgotten_but_never_a_daemon_s_newest(
    run: Run, database: Database, ksi_home: Path
) -> None:
    other_home = ksi_home / "other"
    async with run(notes=Notes(), home=other_home) as client:
        theirs = [(await client.request("checkpoint:create"))["id"] for _ in range(2)]
    async with run(notes=Notes()) as client:
        await client.request("checkpoint:create")
        await database.execute(
            "UPDATE ksi_checkpoint.checkpoint SET taken_at = now() - interval '31 days'"
        )
        mine = await client.request("checkpoint:create")
        listed = await client.request("checkpoint:list", {"all_daemons": True})

    left = [each["id"] for each in listed["checkpoints"]]
    assert left[0] == mine["id"]
    assert len(left) == 2
    assert left[1] > max(theirs)  # that of the other's drain


async def test_two_daemons_on_one_postgres_have_their_own(run: Run, ksi_home: Path) -> None:
    homes = [ksi_home / "one", ksi_home / "two"]
    async with (
        run(home=homes[0], notes=Notes()) as one,
        run(home=homes[1], notes=Notes()) as two,
    ):
        await one.request("notes:add", {"text": "of the one"})
        await two.request("notes:add", {"text": "of the two"})

    for home, expected in zip(homes, ["of the one", "of the two"], strict=True):
        async with run(home=home, notes=Notes()) as client:
            assert await restored_notes(client) == [expected]
            mine = (await client.request("checkpoint:list"))["checkpoints"]
            everyone = await client.request("checkpoint:list", {"all_daemons": True})
            assert {each["daemon"] for each in mine} == {everyone["daemon"]}
            assert len({each["daemon"] for each in everyone["checkpoints"]}) == 2


async def test_a_daemon_may_be_given_a_name_that_outlasts_its_home(
    run: Run, ksi_home: Path
) -> None:
    named = "checkpoint.daemon=pod-0"
    async with run(named, home=ksi_home / "one", notes=Notes()) as client:
        await client.request("notes:add", {"text": "from the pod before"})

    async with run(named, home=ksi_home / "two", notes=Notes()) as client:
        assert await restored_notes(client) == ["from the pod before"]


def test_a_home_s_id_stays_and_is_its_owner_s(tmp_path: Path) -> None:
    first = daemon_id(tmp_path)

    assert daemon_id(tmp_path) == first
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_an_id_that_was_written_over_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("")

    with pytest.raises(InvalidData, match="holds no id"):
        daemon_id(tmp_path)


# -- asking --------------------------------------------------------------------------------------


async def test_a_checkpoint_is_shown_with_a_plugin_s_state_and_deleted(run: Run) -> None:
    async with run(notes=Notes(), other=Other(5)) as client:
        await client.request("notes:add", {"text": "look"})
        made = await client.request("checkpoint:create", {"reason": "to look at"})
        shown = await client.request("checkpoint:show", {"id": made["id"], "plugin": "notes"})
        await client.request("checkpoint:delete", {"id": made["id"]})

        for event in ("checkpoint:show", "checkpoint:delete", "checkpoint:restore"):
            with pytest.raises(NotFound, match=str(made["id"])):
                await client.request(event, {"id": made["id"]})

    assert shown["state"] == ["look"]
    assert (shown["reason"], len(shown["plugins"])) == ("to look at", 2)


async def test_what_a_checkpoint_does_not_hold_can_t_be_restored(run: Run) -> None:
    async with run(notes=Notes()) as client:
        with pytest.raises(NotFound, match="no checkpoint"):
            await client.request("checkpoint:restore")
        await client.request("checkpoint:create")
        with pytest.raises(NotFound, match="nobody"):
            await client.request("checkpoint:restore", {"plugins": ["nobody"]})


async def test_only_the_owner_has_to_do_with_checkpoints(ksi_home: Path, run: Run) -> None:
    grants = {"call": ["*"], "subscribe": ["*"]}
    async with run(notes=Notes()) as client:
        issued = await client.request(
            "token:create", {"name": "guest", "ttl_s": 60, "grants": grants}
        )
        transport = UnixTransport(ksi_home / "run" / "ksi.sock")
        async with AsyncClient(transport, token=issued["token"]) as guest:
            for verb in ("create", "list", "restore", "acknowledge"):
                with pytest.raises(Denied, match="owner"):
                    await guest.request(f"checkpoint:{verb}")
            for verb in ("show", "delete"):
                with pytest.raises(Denied, match="owner"):
                    await guest.request(f"checkpoint:{verb}", {"id": 1})


async def test_nobody_is_handed_the_states_of_all_or_hands_one_to_all(run: Run) -> None:
    async with run(notes=Notes()) as client:
        with pytest.raises(Denied, match="checkpoint:create"):
            await client.request("checkpoint:collect")
        with pytest.raises(Denied, match="checkpoint:restore"):
            await client.request("checkpoint:apply", {"version": 2, "state": ["forged"]})

        assert await restored_notes(client) == []


async def test_a_tenant_s_subscriber_sees_no_plugin_s_state(ksi_home: Path, run: Run) -> None:
    grants = {"call": ["*"], "subscribe": ["*"], "publish": ["*"]}
    async with run(notes=Notes()) as client:
        issued = await client.request(
            "token:create", {"name": "guest", "ttl_s": 60, "grants": grants}
        )
        transport = UnixTransport(ksi_home / "run" / "ksi.sock")
        async with AsyncClient(transport, token=issued["token"]) as guest:
            seen = await guest.subscribe("*")
            await client.request("notes:add", {"text": "private"})
            await client.request("checkpoint:create")
            await client.request("checkpoint:restore")
            await client.publish("test:done")
            names = []
            async for event in seen:
                names.append(event.name)
                if event.name == "test:done":
                    break

    assert "checkpoint:create" in names
    assert not {"checkpoint:apply", "checkpoint:collect"} & set(names)
