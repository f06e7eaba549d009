"""What the protocol's conformance suite calls: tools, prompts and resources of fixed names.

A plugin like any other: its tools are KSI's tools, called through the gate, and what they can't
say as text they say by `ksi_mcp.api`. Only tests load it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Conflict, InvalidData
from ksi_daemon.testing import module_plugin
from ksi_mcp.api import (
    Content,
    Exchange,
    Offers,
    Prompt,
    Resource,
    ResourceTemplate,
    asking,
    current_exchange,
)
from ksi_tools.api import ProviderRegistration, ToolContext, Tools, ToolSpec

Block = dict[str, Any]

PNG_HEAD: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4"
PNG: Final = f"{PNG_HEAD}2mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV: Final = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
STATE: Final = "kept between two rounds"
CITIES: Final = ("paris", "park", "party")

NOTHING: Final[dict[str, Any]] = {"type": "object", "properties": {}}
MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"message": {"type": "string"}},
    "required": ["message"],
}
PROMPT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}},
    "required": ["prompt"],
}
MIRRORED: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"message": {"type": "string", "x-mcp-header": "Message"}},
    "required": ["message"],
}
NEWER_SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "address",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "allOf": [{"anyOf": [{"required": ["name"]}, {"required": ["address"]}]}],
    "if": {"required": ["address"]},
    "then": {"properties": {"name": {"minLength": 1}}},
    "else": {},
    "additionalProperties": False,
}
WITH_DEFAULTS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "A name", "default": "John Doe"},
        "age": {"type": "integer", "description": "In years", "default": 30},
        "score": {"type": "number", "description": "Of a hundred", "default": 95.5},
        "status": {
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "default": True},
    },
    "required": [],
}
WITH_CHOICES: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {
            "type": "string",
            "oneOf": [
                {"const": "value1", "title": "First Option"},
                {"const": "value2", "title": "Second Option"},
            ],
        },
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2"],
            "enumNames": ["Option One", "Option Two"],
        },
        "untitledMulti": {
            "type": "array",
            "items": {"type": "string", "enum": ["option1", "option2", "option3"]},
        },
        "titledMulti": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"const": "value1", "title": "First Choice"},
                    {"const": "value2", "title": "Second Choice"},
                ]
            },
        },
    },
    "required": [],
}


def text(said: str) -> Block:
    return {"type": "text", "text": said}


def image() -> Block:
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def embedded(uri: str, said: str, mime_type: str = "text/plain") -> Block:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": said}}


def form(message: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Ask the person for something."""
    params = {"mode": "form", "message": message, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def field(message: str, name: str, kind: str = "string") -> dict[str, Any]:
    """Ask the person for one thing."""
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return form(message, schema)


def sample(question: str) -> dict[str, Any]:
    """Ask the program's model."""
    message = {"role": "user", "content": text(question)}
    params = {"messages": [message], "maxTokens": 100}
    return {"method": "sampling/createMessage", "params": params}


def roots() -> dict[str, Any]:
    """Ask for the program's roots."""
    return {"method": "roots/list", "params": {}}


def answers() -> dict[str, Any]:
    """Return what was answered; nothing where nothing was asked."""
    return exchange().answers or {}


def exchange() -> Exchange:
    found = current_exchange()
    assert found is not None
    return found


def typed(key: str, name: str) -> str:
    """Return what a person typed into a field."""
    return str((answers()[key].get("content") or {}).get(name))


def sampled(key: str) -> str:
    """Return what the model said."""
    content = answers()[key]["content"]
    return str(content["text"] if isinstance(content, dict) else content[0]["text"])


class Fixtures:
    """The tools; each method is one."""

    name = "conformance"

    def __init__(self) -> None:
        self.registration: ProviderRegistration | None = None
        self.offers: Offers | None = None
        self.more = False

    async def call_tool(self, name: str, arguments: dict[str, Any], context: ToolContext) -> Any:
        """Call the method of the tool's name."""
        tool: Callable[..., Any] = getattr(self, name)
        return await tool(context, **arguments)

    def specs(self) -> list[ToolSpec]:
        """Tell of the tools."""
        schemas = {
            "test_elicitation": MESSAGE,
            "test_sampling": PROMPT,
            "test_custom_headers": MIRRORED,
            "json_schema_2020_12_tool": NEWER_SCHEMA,
        }
        found = [each for each in dir(self) if each.startswith(("test_", "json_"))]
        found.remove("test_appeared") if not self.more else None
        return [
            ToolSpec(
                name=each,
                description=str(getattr(self, each).__doc__),
                parameters=schemas.get(each, NOTHING),
                effects="read_only",
            )
            for each in found
        ]

    # -- content --------------------------------------------------------------------------------

    async def test_simple_text(self, context: ToolContext) -> str:
        """Returns text."""
        return "This is a simple text response for testing."

    async def test_image_content(self, context: ToolContext) -> Content:
        """Returns an image."""
        return Content(blocks=[image()])

    async def test_audio_content(self, context: ToolContext) -> Content:
        """Returns a sound."""
        return Content(blocks=[{"type": "audio", "data": WAV, "mimeType": "audio/wav"}])

    async def test_embedded_resource(self, context: ToolContext) -> Content:
        """Returns a resource."""
        return Content(
            blocks=[embedded("test://embedded-resource", "This is an embedded resource content.")]
        )

    async def test_multiple_content_types(self, context: ToolContext) -> Content:
        """Returns a text, an image and a resource."""
        data = '{"test":"data","value":123}'
        return Content(
            blocks=[
                text("Multiple content types test:"),
                image(),
                embedded("test://mixed-content-resource", data, "application/json"),
            ]
        )

    async def test_error_handling(self, context: ToolContext) -> str:
        """Fails."""
        raise Conflict("This tool intentionally returns an error for testing")

    async def json_schema_2020_12_tool(self, context: ToolContext, **given: Any) -> str:
        """Has a schema of the newer kind."""
        return f"called with {given}"

    async def test_custom_headers(self, context: ToolContext, message: str) -> str:
        """Has an argument that is told in a header as well."""
        return message

    # -- while it runs --------------------------------------------------------------------------

    async def test_tool_with_logging(self, context: ToolContext) -> str:
        """Logs."""
        for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            exchange().log("info", said)
        return "It has been logged."

    async def test_logging_tool(self, context: ToolContext) -> str:
        """Logs, too."""
        return await self.test_tool_with_logging(context)

    async def test_tool_with_progress(self, context: ToolContext) -> str:
        """Tells of its progress."""
        for done in (0, 50, 100):
            context.progress(f"Completed step {done} of 100", done, 100)
            await asyncio.sleep(0)  # what is published is called on the loop
        return "It is done."

    async def test_reconnection(self, context: ToolContext) -> str:
        """Returns text, to whoever comes back for it."""
        return "Reconnection test completed"

    # -- what changes ---------------------------------------------------------------------------

    async def test_trigger_tool_change(self, context: ToolContext) -> str:
        """Makes a tool appear, or go."""
        assert self.registration is not None
        self.more = not self.more
        self.registration.update(self.specs())
        return "There are other tools."

    async def test_appeared(self, context: ToolContext) -> str:
        """Is there now and then."""
        return "here"

    async def test_trigger_prompt_change(self, context: ToolContext) -> str:
        """Makes a prompt appear, and go."""
        assert self.offers is not None
        with self.offers.add(prompts=[prompt_of("test_appeared", simple_prompt)]):
            return "There are other prompts."

    # -- what is asked --------------------------------------------------------------------------

    async def test_elicitation(self, context: ToolContext, message: str) -> Any:
        """Asks the person."""
        if not answers():
            return asking(answer=field(message, "response"))
        return f"User response: {answers()['answer']}"

    async def test_elicitation_sep1034_defaults(self, context: ToolContext) -> Any:
        """Asks the person by a form with defaults."""
        if not answers():
            return asking(answer=form("Please look these over", WITH_DEFAULTS))
        return f"Elicitation completed: {answers()['answer']}"

    async def test_elicitation_sep1330_enums(self, context: ToolContext) -> Any:
        """Asks the person by a form of choices."""
        if not answers():
            return asking(answer=form("Please choose", WITH_CHOICES))
        return f"Elicitation completed: {answers()['answer']}"

    async def test_streaming_elicitation(self, context: ToolContext) -> Any:
        """Asks the person, too."""
        return await self.test_input_required_result_elicitation(context)

    async def test_sampling(self, context: ToolContext, prompt: str) -> Any:
        """Asks the program's model."""
        if not answers():
            return asking(answer=sample(prompt))
        return f"LLM response: {sampled('answer')}"

    async def test_missing_capability(self, context: ToolContext) -> Any:
        """Asks the program's model, whether it has one or not."""
        return asking(answer=sample("Is there anybody?"))

    async def test_input_required_result_elicitation(self, context: ToolContext) -> Any:
        """Asks for a name, until there is one."""
        if "user_name" not in answers():
            return asking(user_name=field("What is your name?", "name"))
        return f"Hello, {typed('user_name', 'name')}!"

    async def test_input_required_result_sampling(self, context: ToolContext) -> Any:
        """Asks the model for a capital."""
        if not answers():
            return asking(capital_question=sample("What is the capital of France?"))
        return f"The model says: {sampled('capital_question')}"

    async def test_input_required_result_list_roots(self, context: ToolContext) -> Any:
        """Asks for roots."""
        if not answers():
            return asking(client_roots=roots())
        found = answers()["client_roots"]["roots"]
        return f"Roots: {', '.join(str(each['uri']) for each in found)}"

    async def test_input_required_result_request_state(self, context: ToolContext) -> Any:
        """Keeps something between two rounds."""
        if not answers():
            return asking(STATE, confirm=field("Please confirm", "ok", "boolean"))
        if exchange().state != STATE:
            raise InvalidData("that is not what was to be kept")
        return "state-ok"

    async def test_input_required_result_multiple_inputs(self, context: ToolContext) -> Any:
        """Asks for three things at once."""
        if not answers():
            return asking(
                STATE,
                user_name=field("What is your name?", "name"),
                greeting=sample("Generate a greeting"),
                client_roots=roots(),
            )
        return f"{typed('user_name', 'name')}: {sampled('greeting')}"

    async def test_input_required_result_multi_round(self, context: ToolContext) -> Any:
        """Asks twice."""
        if not answers():
            return asking("first", step1=field("Step 1: What is your name?", "name"))
        if "step1" in answers():
            state = f"second:{typed('step1', 'name')}"
            return asking(state, step2=field("Step 2: What is your favorite color?", "color"))
        name = str(exchange().state).partition(":")[2]
        return f"{name} likes {typed('step2', 'color')}"

    async def test_input_required_result_tampered_state(self, context: ToolContext) -> Any:
        """Keeps something that nobody else is to change."""
        if not answers():
            return asking(STATE, confirm=field("Please confirm", "ok", "boolean"))
        return f"state: {exchange().state}"

    async def test_input_required_result_capabilities(self, context: ToolContext) -> Any:
        """Asks for what the program can do, and no more."""
        possible = {
            "sampling": ("capital_question", sample("What is the capital of France?")),
            "elicitation": ("user_name", field("What is your name?", "name")),
            "roots": ("client_roots", roots()),
        }
        asked = [ask for name, ask in possible.items() if name in exchange().capabilities]
        if answers() or not asked:
            return f"{len(answers())} answers"
        return asking(**dict(asked))


# -- prompts ------------------------------------------------------------------------------------


def prompted(*blocks: Block) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": each} for each in blocks]}


async def simple_prompt(arguments: dict[str, str]) -> dict[str, Any]:
    """A prompt without arguments."""
    return prompted(text("This is a simple prompt for testing."))


async def prompt_with_arguments(arguments: dict[str, str]) -> dict[str, Any]:
    """A prompt with two arguments."""
    told = ", ".join(f"{name}='{value}'" for name, value in sorted(arguments.items()))
    return prompted(text(f"Prompt with arguments: {told}"))


async def prompt_with_embedded_resource(arguments: dict[str, str]) -> dict[str, Any]:
    """A prompt with a resource in it."""
    said = "Embedded resource content for testing."
    return prompted(
        embedded(arguments["resourceUri"], said),
        text("Please process the embedded resource above."),
    )


async def prompt_with_image(arguments: dict[str, str]) -> dict[str, Any]:
    """A prompt with an image in it."""
    return prompted(image(), text("Please analyze the image above."))


async def prompt_that_asks(arguments: dict[str, str]) -> dict[str, Any]:
    """A prompt that wants to know something first."""
    if not answers():
        return dict(asking(user_context=field("What context should it use?", "context")))
    return prompted(text(f"Context: {typed('user_context', 'context')}"))


async def cities(argument: str, typed_so_far: str, others: dict[str, str]) -> list[str]:
    return [each for each in CITIES if each.startswith(typed_so_far)]


def prompt_of(name: str, get: Callable[..., Any], *arguments: str) -> Prompt:
    told = {
        "name": name,
        "description": str(get.__doc__),
        "arguments": [{"name": each, "required": True} for each in arguments],
    }
    return Prompt(told=told, get=get, complete=cities if arguments else None)


def prompts() -> Sequence[Prompt]:
    """The prompts."""
    return (
        prompt_of("test_simple_prompt", simple_prompt),
        prompt_of("test_prompt_with_arguments", prompt_with_arguments, "arg1", "arg2"),
        prompt_of(
            "test_prompt_with_embedded_resource", prompt_with_embedded_resource, "resourceUri"
        ),
        prompt_of("test_prompt_with_image", prompt_with_image),
        prompt_of("test_input_required_result_prompt", prompt_that_asks),
    )


# -- resources ----------------------------------------------------------------------------------


async def read_text(uri: str) -> list[Block]:
    return [{"uri": uri, "mimeType": "text/plain", "text": f"What is at {uri}."}]


async def read_image(uri: str) -> list[Block]:
    return [{"uri": uri, "mimeType": "image/png", "blob": PNG}]


async def read_data(uri: str, variables: dict[str, str]) -> list[Block]:
    said = f'{{"id":"{variables["id"]}","templateTest":true}}'
    return [{"uri": uri, "mimeType": "application/json", "text": said}]


def resources() -> Sequence[Resource]:
    """The resources."""
    kinds = {
        "static-text": ("text/plain", read_text),
        "static-binary": ("image/png", read_image),
        "watched-resource": ("text/plain", read_text),
    }
    return tuple(
        Resource(told={"uri": f"test://{name}", "name": name, "mimeType": mime_type}, read=read)
        for name, (mime_type, read) in kinds.items()
    )


def templates() -> Sequence[ResourceTemplate]:
    """The templates of resources."""
    told = {"uriTemplate": "test://template/{id}/data", "name": "data"}
    return (ResourceTemplate(told={**told, "mimeType": "application/json"}, read=read_data),)


def plugin() -> Any:
    """The plugin."""
    fixtures = Fixtures()

    @hookimpl
    def ksi_plugin() -> PluginInfo:
        return PluginInfo(requires=("tools", "mcp"))

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        fixtures.offers = plugin.service(Offers)
        fixtures.registration = plugin.service(Tools).add_provider(fixtures)
        fixtures.registration.update(fixtures.specs())
        offered = fixtures.offers.add(
            prompts=prompts(), resources=resources(), templates=templates()
        )
        with fixtures.registration, offered:
            yield

    return module_plugin("conformance", ksi_plugin=ksi_plugin, ksi_lifespan=ksi_lifespan)
