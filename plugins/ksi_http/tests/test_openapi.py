"""The OpenAPI document, made of descriptions of events."""

from typing import Any

from ksi_http.sidecar.openapi import made
from ksi_system.events import EventDescription


def described(event: str, **fields: Any) -> EventDescription:
    given = {
        "plugin": "p",
        "streams": False,
        "public": False,
        "scope": "a:read",
        "contributors": (),
        "doc": "Do it.\n\nWell.",
        "data_schema": None,
        "result_schema": None,
    }
    return EventDescription(event=event, **{**given, **fields})


def schema(name: str, definition: Any) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}", "$defs": {name: definition}}


def body_of(document: dict[str, Any], path: str) -> Any:
    return document["paths"][path]["post"]["requestBody"]


def test_an_event_is_an_operation() -> None:
    document = made({"a:b:c": described("a:b:c")}, {})

    operation = document["paths"]["/v1/a/b/c"]["post"]
    assert operation["operationId"] == "a_b_c"
    assert operation["summary"] == "Do it."
    assert operation["description"] == "Well."
    assert operation["tags"] == ["a"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {}
    assert operation["parameters"][0]["name"] == "Idempotency-Key"


def test_a_body_is_required_where_a_payload_must_have_a_field() -> None:
    needs = schema("Need", {"type": "object", "required": ["x"]})
    free = schema("Free", {"type": "object"})

    document = made(
        {"a:b": described("a:b", data_schema=needs), "a:c": described("a:c", data_schema=free)}, {}
    )

    assert body_of(document, "/v1/a/b")["required"]
    assert not body_of(document, "/v1/a/c")["required"]


def test_one_name_for_different_things_is_told_apart() -> None:
    inner = {"$ref": "#/$defs/Row"}
    first = {**schema("Row", {"type": "string"})}
    second = {
        "$ref": "#/$defs/Page",
        "$defs": {"Page": {"items": inner}, "Row": {"type": "integer"}},
    }
    events = {
        "a:list": described("a:list", data_schema=first),
        "b:list": described("b:list", data_schema=second),
        "c:list": described("c:list", data_schema=first),
    }

    document = made(events, {})

    schemas = document["components"]["schemas"]
    assert schemas["Row"] == {"type": "string"}
    assert schemas["b.Row"] == {"type": "integer"}
    assert schemas["Page"] == {"items": {"$ref": "#/components/schemas/b.Row"}}
    of_c = body_of(document, "/v1/c/list")["content"]["application/json"]["schema"]
    assert of_c == {"$ref": "#/components/schemas/Row"}


def test_a_name_that_no_component_may_have_is_mended() -> None:
    given = {"a:b": described("a:b", data_schema=schema("List[int]", {"type": "array"}))}

    assert "List_int_" in made(given, {})["components"]["schemas"]


def test_routes_made_by_hand_are_there_too_and_events_win() -> None:
    more = {"/chat": {"post": {"summary": "Talk."}}, "/v1/a/b": {"post": {"summary": "Not this."}}}

    document = made({"a:b": described("a:b")}, more)

    assert document["paths"]["/chat"]["post"]["summary"] == "Talk."
    assert document["paths"]["/v1/a/b"]["post"]["summary"] == "Do it."
