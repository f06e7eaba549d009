"""The command ``ksi example``."""

import asyncio

import typer

from ksi_client import AsyncClient
from ksi_example.events import ExampleShout, ExampleShouted


def example(text: str) -> None:
    """Shout a text."""
    typer.echo(asyncio.run(shouted(text)).text)


async def shouted(text: str) -> ExampleShouted:
    """Have the daemon shout a text."""
    async with AsyncClient() as client:
        request = ExampleShout(text=text)
        return await client.request("example:shout", request, result_type=ExampleShouted)
