import pytest

from ksi_client import AsyncClient, InvalidData


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["example.max_letters=5"]


async def test_it_shouts(client: AsyncClient) -> None:
    assert await client.request("example:shout", {"text": "hello"}) == {"text": "HELLO!"}


async def test_it_spells(client: AsyncClient) -> None:
    assert [letter async for letter in client.stream("example:spell", {"text": "abc"})] == [
        "a",
        "b",
        "c",
    ]


async def test_a_text_may_have_only_so_many_letters(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="max_letters"):
        await client.request("example:shout", {"text": "too long"})
