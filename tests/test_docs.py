"""The documentation: what is generated is up to date, and every event and setting is in it."""

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from msgspec import Struct

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def told(generate: ModuleType) -> Any:
    """What a daemon with all plugins answers and reads."""
    return asyncio.run(generate.routes_and_settings())


def test_the_generated_tables_are_up_to_date(generate: ModuleType, told: Any) -> None:
    files = generate.generated(*told)

    stale = [
        str(path.relative_to(ROOT))
        for path, text in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: python docs/generate.py"
    assert ROOT / "plugins" / "ksi_system" / "README.md" in files


def test_the_readme_leads_to_the_page_of_each_plugin_once() -> None:
    _, _, table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Read on")

    pages = [page.parent.name for page in (ROOT / "plugins").glob("ksi_*/README.md")]
    assert [name for name in pages if table.count(f"{name}/README.md") != 1] == []


def test_every_event_and_every_setting_has_its_sentence(generate: ModuleType, told: Any) -> None:
    routes, settings = told

    assert [route.name for route in routes if not route.doc] == []
    for section, kind in settings.items():
        assert set(generate.explained(kind)) == set(kind.__struct_fields__), section


def test_every_payload_says_what_it_is(generate: ModuleType, told: Any) -> None:
    routes, _ = told
    kinds = {kind for route in routes for kind in (route.data_type, route.result_type)}

    silent = [kind for kind in kinds if generate.is_struct(kind) and not kind.__doc__]
    assert silent == []


def test_a_stale_table_is_replaced_between_its_markers(generate: ModuleType) -> None:
    text = "before\n<!-- generated: events -->\nold\n<!-- end -->\nafter\n"

    filled = generate.between_markers(text, {"events": "new"})

    assert filled == "before\n<!-- generated: events -->\nnew\n<!-- end -->\nafter\n"


def test_a_changed_default_changes_the_table(generate: ModuleType) -> None:
    def table(default: int) -> Any:
        fields = [("max_things", int, default)]
        kind: type[Struct] = msgspec.defstruct("Sample", fields, frozen=True)
        return generate.settings_table("sample", kind)

    assert "| `max_things` | `3_000` |" in table(3000)
    assert table(3000) != table(4000)
