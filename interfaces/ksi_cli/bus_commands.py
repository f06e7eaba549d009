"""Send events, listen to them, and list what there are."""

import contextlib
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Client, Denied, KsiError

EventName = Annotated[str, typer.Argument(metavar="EVENT", help="Its name, as namespace:verb.")]
Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA",
        help="The payload: a JSON object, key=value pairs, or - to read JSON from stdin.",
    ),
]


def send(
    event: EventName,
    data: Data = None,
    *,
    emit: Annotated[bool, typer.Option("--emit", help="Do not wait for an answer.")] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long to wait for the answer, or for each chunk."
        ),
    ] = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Send an event and print its answer.

    The chunks of a stream are printed line by line.
    """
    payload = read_payload(data or [])
    with connect(timeout_s=timeout_s) as client:
        if emit:
            client.emit(event, payload)
            output.show({"emitted": event}, lambda _: "", as_json=as_json)
        elif streams(client, event):
            for chunk in client.stream(event, payload):
                output.write_json(chunk)
                sys.stdout.flush()
        else:
            output.show(client.request(event, payload), pretty, as_json=as_json)


def read_payload(words: list[str]) -> Any:
    """Make a payload of the arguments of ``ksi send``.

    Raises:
        UsageError: They are neither JSON nor key=value pairs.
    """
    if words == ["-"]:
        return parse_json(sys.stdin.read(), "stdin")
    if len(words) == 1 and words[0].lstrip()[:1] in ("{", "["):
        return parse_json(words[0], "the payload")
    payload = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{word!r} is neither a JSON object nor key=value; "
                """write, for example: place=Oslo days=3, or '{"place": "Oslo"}'"""
            )
        payload[key] = value_of(text)
    return payload


def parse_json(text: str, what: str) -> Any:
    """Read JSON.

    Raises:
        UsageError: It is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(f"{what} is no JSON: {error}") from error


def value_of(text: str) -> Any:
    """Read the value of a pair: JSON where it is that, or else text as it stands."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text


def streams(client: Client, event: str) -> bool:
    """Say whether an event is answered with a stream."""
    try:
        found = client.request("system:discover", {"pattern": event})["events"]
    except Denied:
        return False  # who may not ask has a token for a few events, and knows them
    except KsiError as error:
        if error.code != "invalid_data":
            raise
        return False  # no pattern: the daemon will say what is wrong with the name
    return any(each["event"] == event and each["streams"] for each in found)


def pretty(value: Any) -> str:
    """Return a value as JSON that people can read; text stands for itself."""
    if isinstance(value, str):
        return value
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def listen(
    pattern: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="Which events: * is any characters, ? is one."),
    ] = "*",
    *,
    outcomes: Annotated[
        bool, typer.Option("--outcomes", help="See events when they have been handled, and how.")
    ] = False,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after this many events.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print events as they happen; with --json one object a line."""
    with connect() as client:
        for number, event in enumerate(client.events(pattern, outcomes=outcomes), 1):
            output.show(event, event_line, as_json=as_json)
            sys.stdout.flush()
            if number == count:
                return


def event_line(event: Any) -> str:
    """Write an event in a line: when it was seen, its name, who sent it, how it went, its data."""
    parts = [
        datetime.now(UTC).astimezone().strftime("%H:%M:%S.%f")[:-3],
        event.name,
        f"({event.context.origin})",
    ]
    if event.outcome is not None:
        error = event.outcome.error
        parts.append(f"{event.outcome.duration_s * 1000:.1f} ms")
        parts.append("ok" if error is None else f"{error.code}: {error.message}")
    return " ".join([*parts, output.encode_json(event.data)])


def events(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN", help="A namespace, a pattern with * and ?, or one event's name."
        ),
    ] = "*",
    *,
    as_json: JsonFlag = False,
) -> None:
    """List the events that are answered, or describe one."""
    with connect() as client:
        if ":" in pattern and not set(pattern) & set("*?"):
            found = client.request("system:describe", {"event": pattern})
            output.show(found["events"][0], description, as_json=as_json)
            return
        if not set(pattern) & set(":*?"):
            pattern += ":*"
        found = client.request("system:discover", {"pattern": pattern})
        output.show(found, event_table, as_json=as_json)


def event_table(found: dict[str, Any]) -> str:
    """Lay out events with what they do."""
    if not found["events"]:
        return "no event matches; see: ksi events"
    rows = [
        (each["event"], each["summary"] + (" (a stream)" if each["streams"] else ""))
        for each in found["events"]
    ]
    return output.table(("EVENT", "WHAT IT DOES"), rows)


def description(found: dict[str, Any]) -> str:
    """Write an event's reference page."""
    origin = f"answered by {found['plugin'] or ', '.join(found['contributors'])}"
    if found["contributors"]:
        origin = f"contributed to by {', '.join(found['contributors'])}"
    parts = [f"{found['event']}  ({origin})", "", found["doc"], ""]
    parts += schema_lines("payload", found["data_schema"])
    answer = "each chunk of the stream" if found["streams"] else "answer"
    parts += schema_lines(answer, found["result_schema"])
    return "\n".join(parts)


def schema_lines(title: str, schema: dict[str, Any] | None) -> list[str]:
    """Lay out the fields of a JSON Schema."""
    if schema is None:
        return [f"{title}: plain data", ""]
    definitions = schema.get("$defs", {})
    shape = resolved(schema, definitions)
    rows = [
        (
            f"  {name}",
            type_of(field, definitions),
            "required" if name in shape.get("required", ()) else default_of(field),
        )
        for name, field in shape.get("properties", {}).items()
    ]
    if not rows:
        return [f"{title}: {type_of(schema, definitions)}", ""]
    widths = [max(len(row[at]) for row in rows) for at in range(2)]
    lines = [f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in rows]
    return [f"{title}:", *lines, ""]


def resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Follow a schema's reference to its definition."""
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: dict[str, Any] = definitions.get(name, schema)
    return found


def type_of(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Name the type that a schema describes."""
    schema = resolved(schema, definitions)
    if "anyOf" in schema:
        return " or ".join(type_of(each, definitions) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(output.encode_json(each) for each in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"array of {type_of(schema['items'], definitions)}"
    if kind == "object" and "title" in schema:
        return str(schema["title"])
    return str(kind)


def default_of(schema: dict[str, Any]) -> str:
    """Write a field's default, if it has one that says something."""
    if schema.get("default") in (None, ""):
        return ""
    with contextlib.suppress(TypeError):
        return f"default {output.encode_json(schema['default'])}"
    return ""
