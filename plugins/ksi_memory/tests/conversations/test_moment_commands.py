"""The commands ``ksi moments`` and ``ksi dream``."""

import asyncio

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from ksi_cli.output import UsageError
from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_memory import events as e
from ksi_memory.commands import moments as moment_commands
from ksi_memory.tests.talking import talk

GARDEN = "I am planning our garden in Porto. We decided to plant three apple trees in March."


async def ksi(daemon: Daemon, *words: str) -> Result:
    """Run a command; the first word is its name."""
    app = typer.Typer()
    app.add_typer(moment_commands.moments, name="moments")
    app.command("dream")(moment_commands.dream)
    return await asyncio.to_thread(
        CliRunner().invoke, app, list(words), env={"KSI_HOME": str(daemon.home.root)}
    )


async def test_moments_are_made_listed_and_shown_in_order(
    client: AsyncClient, daemon: Daemon
) -> None:
    none = await ksi(daemon, "moments")
    await talk(client, "c1", GARDEN, "My dentist appointment is on 14 March 2100.")
    too_little = await ksi(daemon, "moments", "compact", "c1")
    made = await ksi(daemon, "moments", "compact", "c1", "--threshold", "0")
    listed = await ksi(daemon, "moments", "--type", "session_chunk")
    every = await ksi(daemon, "moments", "list", "--json")
    shown = await ksi(daemon, "moments", "timeline", "c1")

    assert "there are no moments yet" in none.output
    assert "nothing to sum up" in too_little.output
    assert made.output.splitlines() == ["c1#1", "covered up to message 4, 0 tokens are not"]
    assert [line.split()[2:4] for line in listed.output.splitlines()[1:]] == [
        ["session_chunk", "c1#1"]
    ]
    assert len(msgspec.json.decode(every.stdout)["items"]) == 2
    assert "c1#1" in shown.output


async def test_a_dream_is_tried_and_had(client: AsyncClient, daemon: Daemon) -> None:
    for number in (1, 2):
        await talk(client, f"c{number}", "My wife Clara likes our dog Bruno.")

    tried = await ksi(daemon, "dream", "--dry-run")
    had = await ksi(daemon, "dream", "--max-cost", "0")
    again = await ksi(daemon, "dream", "--json")

    assert tried.output.startswith("it would have:\n")
    assert "strengthened" in tried.output
    assert "bruno & clara" in had.output
    assert msgspec.json.decode(again.stdout)["did"] == []


def test_a_time_is_read_and_nonsense_is_refused() -> None:
    at = moment_commands.time_of("2026-03-01T12:00+01:00")

    assert at is not None
    assert at.isoformat() == "2026-03-01T11:00:00+00:00"
    assert moment_commands.time_of(None) is None
    with pytest.raises(UsageError, match="no time"):
        moment_commands.time_of("ten")


def test_a_price_that_nobody_knows_is_told_as_that() -> None:
    dreamt = e.MemoryDreamt(run_id="r", did=(), read_items=3, tokens=7, cost_usd=None)

    text = moment_commands.dreamt_text(dreamt)

    assert text == "nothing new; read 3 items, 7 tokens of models, an unknown price"
