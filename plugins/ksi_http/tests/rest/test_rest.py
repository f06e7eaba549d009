"""The routes that are made by hand: questions, content, lists."""

import io
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from ksi_client import AsyncClient
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_http.testing import HttpServer

NEEDED = ("postgres", "workflows", "tools", "models", "completion", "agents", "memory", "http")


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_settings() -> list[str]:
    """Fetch no model."""
    return ["memory.embedder=none"]


@pytest.fixture
def http_settings() -> dict[str, Any]:
    """Files of this server are small."""
    return {"max_upload_bytes": 3_000_000}


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The memory, agents, and what they need."""
    return installed_plugins(*NEEDED)


async def upload(
    http: HttpServer, data: bytes | None, file_name: str = "rent.md", **fields: str
) -> tuple[int, Any]:
    """Upload a file as browsers do."""
    headers = http.authorization() | {"Accept": fields.pop("accept", "*/*")}
    with aiohttp.MultipartWriter("form-data") as form:
        for field, value in fields.items():
            form.append(value).set_content_disposition("form-data", name=field)
        if data is not None:
            part = form.append(io.BytesIO(data))
            part.set_content_disposition("form-data", name="file", filename=file_name)
    async with http.session.post(http.url + "/content/", data=form, headers=headers) as response:
        body = await response.text()
        is_json = response.content_type == "application/json"
        return response.status, json.loads(body) if is_json else body


async def test_the_memory_is_asked_shown_and_made_to_forget(
    http: HttpServer, client: AsyncClient, make_key: Callable[..., Any]
) -> None:
    for table, key in (("facts", "Tea"), ("patterns", "late"), ("moments", "then")):
        item = {"key": key, "body": "about the rent"}
        await client.request("memory:upsert", {"table": table, "items": [item]})

    _, found = await http.post("/query/", {"query": "rent", "tables": ["facts"]})
    _, looked_up = await http.post("/query/", {"mode": "lookup", "keys": ["tea"]})
    _, raw = await http.post("/query/raw", {"query": 'LOOKUP "tea"'})
    wrong, answer = await http.post("/query/raw", {"query": "LOOKUP"})
    lists = {}
    for kind in ("core", "proactive", "episodic", "associative"):
        _, listed = await http.get(f"/memory/{kind}?limit=5")
        lists[kind] = [each["key"] for each in listed["items"]]
    (item,) = (await http.get("/memory/core"))[1]["items"]
    elsewhere, _ = await http.request("DELETE", f"/memory/episodic/{item['id']}")
    reader = await make_key("memory:read")
    denied, _ = await http.request("DELETE", f"/memory/core/{item['id']}", key=reader)
    _, gone = await http.request("DELETE", f"/memory/core/{item['id']}")

    assert [each["key"] for each in found["results"]] == ["Tea"]
    assert looked_up["results"][0]["key"] == raw["results"][0]["key"] == "Tea"
    assert (wrong, answer["error"]["code"]) == (400, "invalid_data")
    assert lists == {
        "core": ["Tea"],
        "proactive": ["late"],
        "episodic": ["then"],
        "associative": [],
    }
    assert (elsewhere, denied) == (404, 403)
    assert gone["ids"] == [item["id"]]
    assert (await http.get("/memory/core"))[1]["items"] == []


async def test_a_file_is_uploaded_and_remembered(http: HttpServer, client: AsyncClient) -> None:
    large = b"# Heron\n" + b"A heron stands in the water and waits.\n" * 40_000

    status, loaded = await upload(http, b"# Rent\nIt is due in May.\n", category="home")
    again = await upload(http, b"# Rent\nIt is due in May.\n", category="home")
    _, told = await upload(http, large, "heron.txt", name="herons", accept="text/event-stream")

    assert (status, loaded["files"]) == (200, 1)
    assert loaded["inserted"] > 0
    assert again[1]["inserted"] == 0
    _, found = await http.post("/query/", {"query": "rent due"})
    assert found["results"][0]["category"] == "home"
    events = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
    assert [each["received_bytes"] for each in events if each.get("kind") == "received"] == [
        1024 * 1024,
        len(large),
    ]
    assert events[-2]["kind"] == "loaded"
    assert "event: end" in told


async def test_a_file_that_can_t_be_taken_is_refused(
    http: HttpServer, make_key: Callable[..., Any]
) -> None:
    answers = {
        "large": await upload(http, b"x" * 3_000_001),
        "none": await upload(http, None, table="facts"),
        "field": await upload(http, b"x", colour="red"),
        "table": await upload(http, b"x", table="No Table"),
        "long": await upload(http, b"x", category="x" * 2001),
        "type": await http.post("/content/", {}),
        "broken": await http.request(
            "POST", "/content/", data=b"--x", headers={"Content-Type": "multipart/form-data"}
        ),
        "scope": await http.post("/content/", {}, key=await make_key("memory:read")),
    }

    assert {name: status for name, (status, _) in answers.items()} == {
        "large": 413,
        "none": 400,
        "field": 400,
        "table": 400,
        "long": 413,
        "type": 415,
        "broken": 400,
        "scope": 403,
    }
    assert "max_upload_bytes" in answers["large"][1]["error"]["message"]


async def test_agents_conversations_and_schemas_are_read(
    http: HttpServer, client: AsyncClient
) -> None:
    await client.request("conversation:create", {"conversation_id": "c1", "title": "Herons"})

    _, agents = await http.get("/agents?pattern=gen*")
    _, agent = await http.get("/agents/general")
    _, conversations = await http.get("/conversations?archived=false&limit=1")
    _, conversation = await http.get("/conversations/c1")
    _, messages = await http.get("/conversations/c1/messages?limit=5")
    _, schemas = await http.get("/schemas")
    _, moments = await http.get("/moments?since=2026-01-01T00:00:00Z")
    _, deleted = await http.request("DELETE", "/conversations/c1")

    assert [each["name"] for each in agents["definitions"]] == ["general"]
    assert agent["info"]["name"] == "general"
    assert [each["title"] for each in conversations["conversations"]] == ["Herons"]
    assert conversation["conversation_id"] == "c1"
    assert messages["messages"] == []
    assert "facts" in schemas["tables"]
    assert moments["items"] == []
    assert deleted["conversation_id"] == "c1"
    assert (await http.get("/conversations/c1"))[0] == 404


async def test_an_address_that_makes_no_sense_says_why(http: HttpServer) -> None:
    for path, status, told in (
        ("/agents?patern=x", 400, "pattern"),
        ("/agents?limit=many", 400, "limit"),
        ("/agents/nobody", 404, "nobody"),
        ("/memory/core?table=moments", 400, "table"),
        ("/memory/everything", 404, "nothing is here"),
        ("/schemas/none", 404, "none"),
    ):
        answer = await http.get(path)
        assert answer[0] == status, (path, answer)
        assert told in answer[1]["error"]["message"]


async def test_the_document_has_these_routes(http: HttpServer) -> None:
    _, document = await http.get("/openapi.json")

    paths = document["paths"]
    assert {"/query/", "/content/", "/v1/runs/{run_id}", "/v1/chat/completions"} <= paths.keys()
    limit = next(p for p in paths["/agents"]["get"]["parameters"] if p["name"] == "limit")
    assert limit["schema"]["maximum"] == 1000
    assert "x-type" not in json.dumps(document)
