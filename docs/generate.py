"""Writes the tables of events and settings, from the payloads' and the settings' own docstrings.

``python docs/generate.py`` writes them, ``--check`` only says which are out of date. In a plugin's
README they stand between markers; ``docs/events.md`` and ``docs/settings.md`` are made whole.
"""

import asyncio
import inspect
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from msgspec import NODEFAULT, Struct

from ksi_daemon.daemon import Daemon
from ksi_daemon.routes import Route
from ksi_daemon.settings import CommonSettings, DaemonSettings, LogSettings

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Made by docs/generate.py of the docstrings: change those. -->"
EVENTS_HEAD = f"""# The events

{NOTICE}

What the daemon and its plugins answer, with the payload and the answer of each. A `?` marks what
may be left out. `ksi events` shows the same of a running daemon, whatever it has loaded.
"""
SETTINGS_HEAD = f"""# The settings

{NOTICE}

`<home>/ksi.toml` has a section for each; `KSI_<SECTION>_<KEY>` in the environment wins over the
file, `--set section.key=value` over both. `ksi config` shows what is in force and where it came
from. An unknown key is an error that names the nearest known one.
"""


async def routes_and_settings() -> tuple[list[Route], dict[str, type[Struct]]]:
    """Run a daemon with the plugins of this tree, and return what it answers and reads."""
    found = [p for p in entry_points(group="ksi") if (ROOT / "plugins" / f"ksi_{p.name}").is_dir()]
    ready = asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="ksi-docs-") as home:
        daemon = Daemon(Path(home), ["memory.embedder=none"], entry_points=found)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(daemon.run(ready.set))
            await ready.wait()
            routes = sorted(daemon.router.routes.values(), key=lambda route: route.name)
            loaded = daemon.loader.plugins.values()
            settings = {p.name: p.info.settings for p in loaded if p.info.settings is not None}
            daemon.shutdown(0.0)
    return routes, {"daemon": DaemonSettings, "log": LogSettings, **settings}


# -- words ---------------------------------------------------------------------------------------


def type_name(hint: Any) -> str:
    """Write a type as people write it."""
    text = inspect.formatannotation(hint)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=\w)", "", text).replace("NoneType", "None")


def fields_of(kind: Any) -> Iterator[tuple[str, str, str]]:
    """Yield each field of a Struct: its name, its type, and its default where it has one."""
    hints = get_type_hints(kind)  # without what they are annotated with
    for field in msgspec.structs.fields(kind):
        default = "" if field.required else shown_default(field)
        yield field.name, type_name(hints[field.name]), default


def shown_default(field: msgspec.structs.FieldInfo) -> str:
    """Write a field's default as in ``ksi.toml``."""
    value = field.default
    if value is NODEFAULT:
        factory: Any = field.default_factory
        value = factory()
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}"
    return msgspec.json.encode(value).decode()


def is_struct(kind: Any) -> bool:
    """Say whether a type is a payload with fields of its own."""
    return isinstance(kind, type) and issubclass(kind, Struct)


def code(text: str) -> str:
    """Write a text as code in a cell of a table, where a bar would end it."""
    return "`" + text.replace("|", "\\|") + "`"


def brief(kind: Any) -> str:
    """Write a payload's fields in one cell of a table."""
    if not is_struct(kind):
        return "any" if kind is Any else code(type_name(kind))
    names = [f"`{name}{'?' if default else ''}`" for name, _, default in fields_of(kind)]
    return ", ".join(names) or "—"


def flat(text: str) -> str:
    """Write a text in one line, with the marks that Markdown has for code."""
    return " ".join(text.replace("``", "`").split())


def explained(kind: type[Struct]) -> dict[str, str]:
    """Return what a docstring says of each attribute."""
    text = inspect.getdoc(kind) or ""
    _, _, attributes = text.partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {name: flat(meaning) for name, meaning in found}


# -- tables --------------------------------------------------------------------------------------


def events_table(routes: Iterable[Route]) -> str:
    """Make the table of a plugin's events."""
    lines = ["| event | does | payload | answer |", "|---|---|---|---|"]
    for route in routes:
        answer = ("a stream of " if route.streams else "") + brief(route.result_type)
        does = flat(route.doc.partition("\n\n")[0])
        lines.append(f"| `{route.name}` | {does} | {brief(route.data_type)} | {answer} |")
    return "\n".join(lines)


def settings_table(section: str, kind: type[Struct]) -> str:
    """Make the table of a section's settings."""
    meanings = explained(kind)
    lines = [f"| `[{section}]` | default | what it is |", "|---|---|---|"]
    for name, _, default in fields_of(kind):
        lines.append(f"| `{name}` | {code(default)} | {meanings.get(name, '')} |")
    return "\n".join(lines)


def payload_section(title: str, kind: Any) -> Iterator[str]:
    """Describe a payload with its fields."""
    if not is_struct(kind):
        yield f"{title}: {brief(kind)}.\n"
        return
    yield f"{title} `{kind.__name__}`: {flat(inspect.getdoc(kind) or '')}\n"
    rows = [f"| `{n}` | {code(t)} | {code(d) if d else ''} |" for n, t, d in fields_of(kind)]
    if rows:
        yield "\n".join(["| field | type | default |", "|---|---|---|", *rows, ""]).replace(
            " | None`", " \\| None`"
        )


def events_page(routes: Iterable[Route]) -> str:
    """Make the whole catalogue of events."""
    parts = [EVENTS_HEAD]
    for route in routes:
        parts.append(f"## `{route.name}`\n\n{inspect.cleandoc(route.doc).replace('``', '`')}\n")
        if route.scope is not None:
            parts.append(f"From outside with the scope `{route.scope}`.\n")
        parts += payload_section("Payload", route.data_type)
        parts += payload_section("Chunk" if route.streams else "Answer", route.result_type)
    return "\n".join(parts)


def settings_page(settings: dict[str, type[Struct]]) -> str:
    """Make the whole list of settings."""
    tables = [settings_table(section, kind) for section, kind in settings.items()]
    common = "Every plugin's section may have these besides:\n"
    return "\n".join(
        [SETTINGS_HEAD, *(f"{table}\n" for table in tables), common, common_table(), ""]
    )


def common_table() -> str:
    """Make the table of what every plugin's section may have."""
    return settings_table("<plugin>", CommonSettings)


# -- files ---------------------------------------------------------------------------------------


def between_markers(text: str, tables: dict[str, str]) -> str:
    """Put the tables into a text, between ``<!-- generated: NAME -->`` and ``<!-- end -->``."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables[match[2]]}\n{match[3]}"

    marked = re.compile(r"(<!-- generated: ([\w ]+) -->).*?(<!-- end -->)", re.DOTALL)
    return marked.sub(fill, text)


def generated(
    routes: list[Route], settings: dict[str, type[Struct]], root: Path = ROOT
) -> dict[Path, str]:
    """Return what each generated file should hold."""
    own = [route for route in routes if not route.name.startswith("host:")]
    files = {
        root / "docs" / "events.md": events_page(own),
        root / "docs" / "settings.md": settings_page(settings),
    }
    for readme in sorted((root / "plugins").glob("ksi_*/README.md")):
        name = readme.parent.name.removeprefix("ksi_")
        tables = {f"settings {section}": settings_table(section, settings[section])
                  for section in settings}  # fmt: skip
        tables["settings common"] = common_table()
        tables["events"] = events_table(route for route in own if route.plugin == name)
        tables["events router"] = events_table(route for route in own if route.plugin == "router")
        files[readme] = between_markers(readme.read_text(encoding="utf-8"), tables)
    return files


def main(arguments: list[str]) -> int:
    """Write what has changed, or with ``--check`` only name it; return the exit code."""
    files = generated(*asyncio.run(routes_and_settings()))
    stale = [
        path
        for path, text in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        else:
            path.write_text(files[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
