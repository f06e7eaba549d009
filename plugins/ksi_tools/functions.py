"""Makes tools of typed Python functions."""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_daemon.schemas import with_common_patterns
from ksi_tools.events import Effects
from ksi_tools.schemas import flattened
from ksi_tools.threads import in_thread
from ksi_tools.tool import Tool, ToolContext, check_tool_name, told_of

Function = TypeVar("Function", bound=Callable[..., Any])

_MARK: Final = "__ksi_tool__"
_TAKEN: Final = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


class Declared(Struct, frozen=True, kw_only=True):
    """What the decorator says of its function."""

    effects: Effects
    name: str
    description: str | None
    timeout_s: float | None
    is_interactive: bool
    is_for_programs: bool


def tool(
    *,
    effects: Effects,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = None,
    interactive: bool = False,
    for_programs: bool = False,
) -> Callable[[Function], Function]:
    """Make a typed function a tool.

    Its docstring is what models are told, its annotations are the schema of its arguments. A
    parameter that is annotated as `ToolContext` gets that, and is no argument. A plain function
    runs in a thread. What is returned is handed over as text, or as JSON.

    Args:
        effects: What a repetition would do: ``read_only`` nothing, ``idempotent`` the same again,
            ``effectful`` a second effect. One that is effectful is never called twice for a call.
        name: The function's unless given.
        description: The docstring unless given.
        timeout_s: How long a call may take; the setting ``tools.timeout_s`` unless given.
        interactive: Whether a person gives the answer. The function is a plain one then, has no
            effect, and returns the question.
        for_programs: Whether it is for programs and people that come from outside, and not for
            agents. The function looks itself at what a key or a token may do (`scopes_of`); other
            tools need the scope ``tools:call:NAME``, unless they are read-only.
    """

    def mark(function: Function) -> Function:
        declared = Declared(
            effects=effects,
            name=check_tool_name(name or function.__name__),
            description=description,
            timeout_s=timeout_s,
            is_interactive=interactive,
            is_for_programs=for_programs,
        )
        setattr(function, _MARK, declared)
        return function

    return mark


def tools_of(owner: object, provider: str) -> Iterator[Tool]:
    """Yield the tools of a module, of an object with decorated methods, or the function itself."""
    if isinstance(getattr(owner, _MARK, None), Declared):
        yield tool_of(owner, provider)  # type: ignore[arg-type]  # it was decorated: a function
        return
    looked_at = owner if isinstance(owner, ModuleType) else type(owner)
    for name in vars(looked_at) if isinstance(looked_at, ModuleType) else dir(looked_at):
        if isinstance(getattr(getattr(looked_at, name, None), _MARK, None), Declared):
            yield tool_of(getattr(owner, name), provider)


def tool_of(function: Callable[..., Any], provider: str) -> Tool:
    """Make a tool of a decorated function.

    Raises:
        InvalidData: Its signature can't be told to a model.
    """
    declared: Declared = getattr(function, _MARK)
    fields, context_name = _fields_of(function, declared.name)
    kind = msgspec.defstruct(
        "".join(part.capitalize() for part in declared.name.split("_")) or "Arguments",
        fields,
        kw_only=True,
        forbid_unknown_fields=True,
        module=function.__module__,
    )

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            made = msgspec.convert(arguments, kind)
        except msgspec.ValidationError as error:
            raise told_of(error, f"the arguments of {declared.name}") from error
        return {name: getattr(made, name) for name in kind.__struct_fields__}

    async def execute(arguments: dict[str, Any], context: ToolContext) -> Any:
        given = {context_name: context} if context_name else {}
        if inspect.iscoroutinefunction(function):
            return await function(**arguments, **given)
        return await in_thread(lambda: function(**arguments, **given))

    def question(arguments: dict[str, Any]) -> str:
        return str(function(**arguments))

    is_interactive = declared.is_interactive
    if is_interactive and (context_name or inspect.iscoroutinefunction(function)):
        raise InvalidData(f"{declared.name} only asks: a plain function that returns the question")
    return Tool(
        name=declared.name,
        description=declared.description or inspect.getdoc(function) or "",
        effects=declared.effects,
        provider=provider,
        parameters=parameters_of(kind),
        check=check,
        execute=execute,
        timeout_s=declared.timeout_s,
        is_interactive=is_interactive,
        question=question if is_interactive else None,
        is_for_programs=declared.is_for_programs,
    )


def _fields_of(function: Callable[..., Any], name: str) -> tuple[list[Any], str | None]:
    """Return the fields of a function's arguments, and its parameter for the context."""
    hints = get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    context_name = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _TAKEN:
            raise InvalidData(f"the tool {name}: {parameter} can't be told to a model")
        hint = hints.get(parameter.name)
        if hint is None:
            raise InvalidData(f"the tool {name}: annotate its parameter {parameter.name}")
        if ToolContext in (hint, *get_args(hint)):
            context_name = parameter.name
        elif parameter.default is inspect.Parameter.empty:
            fields.append((parameter.name, hint))
        else:
            fields.append((parameter.name, hint, _default(parameter.default)))
    return fields, context_name


def _default(value: Any) -> Any:
    """Return a default as a Struct takes it; a mutable one is made anew each time."""
    if isinstance(value, list | dict | set) and value:
        return msgspec.field(default_factory=lambda: type(value)(value))
    return value


def parameters_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type's arguments: an object, and what it refers to beside it.

    Raises:
        InvalidData: It can't be told in JSON.
    """
    try:
        (schema,), components = msgspec.json.schema_components(
            [kind], ref_template="#/$defs/{name}"
        )
    except TypeError as error:
        raise InvalidData(f"{kind}: {error}") from error
    parameters: dict[str, Any] = with_common_patterns(flattened(schema, dict(components)))
    return parameters
