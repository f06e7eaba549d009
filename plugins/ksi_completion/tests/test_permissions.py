"""Tests that what may be called in a conversation holds in its copies, with the real tools."""

from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_completion.tests.conversing import Started, conversing
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    needed = ("postgres", "workflows", "tools")
    installed = installed_plugins(*needed)
    return [*installed, conversing(Started())]


@pytest.fixture
def ksi_settings_of_tools() -> list[str]:
    return []


async def permitted(client: AsyncClient, conversation: str) -> dict[str, Any]:
    return dict(
        await client.request("tool:permissions", {"subject": f"conversation:{conversation}"})
    )


async def test_a_conversation_may_call_what_it_is_made_with(client: AsyncClient) -> None:
    await client.request("conversation:create", {"conversation_id": "c", "tools": ["files.*"]})

    assert (await permitted(client, "c"))["allow"] == ["files.*"]


async def test_a_copy_may_call_what_its_original_may_whoever_copies_it(
    client: AsyncClient, connect: Any
) -> None:
    token = await client.request(
        "token:create",
        {"name": "t", "ttl_s": 60, "grants": {"call": ["conversation:*"]}, "user": "bob"},
    )
    bob = await connect(token=token["token"])
    await bob.request("conversation:create", {"conversation_id": "c"})
    await client.request(
        "tool:permit",
        {"subject": "conversation:c", "allow": ["look"], "deny": ["look.at.secrets"]},
    )

    fork = await bob.request("conversation:fork", {"conversation_id": "c"})

    told = await permitted(client, fork["conversation_id"])
    assert (told["allow"], told["deny"]) == (["look"], ["look.at.secrets"])


async def test_what_a_token_names_is_not_permitted(client: AsyncClient, connect: Any) -> None:
    token = await client.request(
        "token:create",
        {"name": "t", "ttl_s": 60, "grants": {"call": ["conversation:*"]}, "user": "bob"},
    )
    bob = await connect(token=token["token"])

    await bob.request("conversation:create", {"conversation_id": "c", "tools": ["*"]})

    assert (await permitted(client, "c"))["allow"] is None


async def test_who_makes_a_conversation_anew_gets_nothing_of_the_one_that_was_deleted(
    client: AsyncClient, connect: Any
) -> None:
    token = await client.request(
        "token:create",
        {"name": "t", "ttl_s": 60, "grants": {"call": ["conversation:*"]}, "user": "bob"},
    )
    bob = await connect(token=token["token"])
    await client.request("conversation:create", {"conversation_id": "c", "tools": ["*"]})
    await client.request("conversation:delete", {"conversation_id": "c"})

    await bob.request("conversation:create", {"conversation_id": "c"})

    assert (await permitted(client, "c"))["allow"] is None
