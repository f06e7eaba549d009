"""The rules of the tree: the kernel's size, complete plugins, what a wheel holds, reasons given."""

import ast
import io
import re
import subprocess
import sys
import tarfile
import tokenize
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta, ValidationError, convert

from ksi_daemon.schemas import schema_of

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("ksi_daemon", "ksi_client", "plugins", "interfaces")

# Router, socket server, plugin loader, supervisor, protocol. The figures may only shrink; whoever
# must raise one says in the same commit why no plugin can do the job.
KERNEL_LINES = {
    "router": 431,
    "server": 626,
    "loader": 253,
    "supervisor": 103,
    "protocol": 724,
}
KERNEL_PARTS = {
    "router": ("router.py", "routes.py", "listeners.py"),
    "server": (
        "server.py", "connection.py", "hub.py", "served.py", "subscriptions.py", "sockets.py",
    ),
    "loader": ("loader.py",),
    "supervisor": ("supervisor.py",),
    "protocol": ("protocol/*.py",),
}  # fmt: skip

NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
# In halves, so that this file does not hold what it looks for.
MACHINE = [
    "/" + "work/", "/" + "root/", "/home/" + "user", "/" + "Users/",
    "pypi" + ".org", "pythonhosted" + ".org", "registry." + "npmjs",
]  # fmt: skip


def python_files(*roots: str) -> list[Path]:
    found = [path for root in roots for path in sorted((ROOT / root).rglob("*.py"))]
    assert found
    return found


def tracked_files() -> list[Path]:
    """Return what git knows; the whole tree where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        return [path for path in ROOT.rglob("*") if path.is_file()]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# -- the kernel's size ---------------------------------------------------------------------------


def docstring_lines(tree: ast.AST) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if first is not None and is_text and ast.get_docstring(node) is not None:
                found.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def code_lines(source: str) -> int:
    """Count lines of code: neither blank, nor comment, nor docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(source)))


def test_code_lines_are_those_that_do_something() -> None:
    source = '"""Doc.\n\nMore.\n"""\n\n# why\nx = (\n    1,\n)\n\n'
    source += 'def f():\n    """Doc."""\n    return """a\nb"""\n'

    assert code_lines(source) == 3 + 1 + 2


@pytest.mark.parametrize("part", KERNEL_PARTS)
def test_the_kernel_does_not_grow(part: str) -> None:
    folder = ROOT / "ksi_daemon"
    files = [path for pattern in KERNEL_PARTS[part] for path in sorted(folder.glob(pattern))]
    sizes = {path.name: code_lines(path.read_text(encoding="utf-8")) for path in files}

    total = sum(sizes.values())

    print(part, total, sizes)  # noqa: T201  the figure, with pytest -rP
    assert total <= KERNEL_LINES[part], (total, sizes)


# -- plugins and modules -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plugin", sorted((ROOT / "plugins").glob("ksi_*")), ids=lambda path: path.name
)
def test_a_plugin_is_complete(plugin: Path) -> None:
    expected = {
        "README.md", "__init__.py", "plugin.py", "events.py", "py.typed", "tests/__init__.py",
    }  # fmt: skip

    assert [name for name in sorted(expected) if not (plugin / name).is_file()] == []
    assert ast.get_docstring(ast.parse((plugin / "__init__.py").read_text(encoding="utf-8")))


def test_source_roots_are_no_packages() -> None:
    assert [root for root in ("plugins", "interfaces", "tests") if package_in(root)] == []


def package_in(root: str) -> bool:
    return (ROOT / root / "__init__.py").exists()


def begins_with_a_sentence(source: str) -> bool:
    """Say whether a module's first word is its docstring; what follows is not looked at."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING:
            doc = ast.get_docstring(ast.parse(token.string)) or ""
            return doc.partition("\n\n")[0].endswith(".")
        if token.type not in NOT_CODE:
            return False
    return False


def test_every_module_begins_with_a_sentence() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in [*python_files(*SOURCES), ROOT / "daemon_control.py"]
        if "tests" not in path.parts
        and not begins_with_a_sentence(path.read_text(encoding="utf-8"))
    ]

    assert silent == []


def test_a_module_that_begins_otherwise_is_noticed() -> None:
    sources = ["", "# Why.\n", "x = 'Text.'\n", "'''Text'''\n", "f'Text.'\n", "b'Text.'\n"]

    assert not any(begins_with_a_sentence(source) for source in sources)
    assert begins_with_a_sentence('#!/bin/python\n\n"""Text.\n\nMore\n"""\nx = 1\n')


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imported_through_a_root(source: str) -> list[str]:
    """Return what a module imports through a source root; most do not look as if they did."""
    if not re.search(r"^\s*(from|import)\b.*\b(plugins|interfaces)\b", source, re.MULTILINE):
        return []
    roots = {"plugins", "interfaces"}
    return [name for name in imported(ast.parse(source)) if name.partition(".")[0] in roots]


def test_nothing_is_imported_through_a_source_root() -> None:
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in python_files(*SOURCES, "tests", "docs")
        if (names := imported_through_a_root(path.read_text(encoding="utf-8")))
    }

    assert wrong == {}


def test_an_import_through_a_source_root_is_noticed() -> None:
    source = (
        "import plugins.ksi_http\ndef f():\n    from interfaces import x\n    import a, plugins\n"
    )
    text = '"""\nfrom plugins import x\n"""\nfrom a import plugins\n'

    assert set(imported_through_a_root(source)) == {"plugins.ksi_http", "interfaces", "plugins"}
    assert imported_through_a_root(text) == []


# What a plugin may import of another: its payloads, and of those that offer objects, those.
OFFERED = {
    "ksi_postgres": {"database", "news", "patience", "reader", "queries", "logins", "testing"},
    "ksi_workflows": {"api", "testing"},
    "ksi_journal": {"journal", "testing"},
    "ksi_completion": {"tokens"},
    "ksi_models": {"api", "runtimes", "testing"},
    "ksi_memory": {"tables"},
    "ksi_tools": {"api", "schemas", "testing", "tool"},  # the sidecar can't import the api
    "ksi_http": {"rooms", "testing"},
}


def foreign(plugin: str, names: Iterable[str]) -> list[str]:
    """Return those of the imported modules that are another plugin's own business."""
    found = []
    for name in names:
        package, _, module = name.partition(".")
        is_plugin = (ROOT / "plugins" / package).is_dir() and package.startswith("ksi_")
        if is_plugin and package != plugin and module not in {"events", *OFFERED.get(package, ())}:
            found.append(name)
    return found


@pytest.mark.parametrize(
    "plugin", sorted((ROOT / "plugins").glob("ksi_*")), ids=lambda path: path.name
)
def test_a_plugin_imports_of_another_what_it_offers(plugin: Path) -> None:
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in plugin.rglob("*.py")
        if "tests" not in path.relative_to(plugin).parts
        and (names := foreign(plugin.name, imported(ast.parse(path.read_text(encoding="utf-8")))))
    }

    assert wrong == {}


def test_what_is_another_plugin_s_own_is_noticed() -> None:
    names = ["ksi_postgres.store", "ksi_postgres.database", "ksi_system.events", "ksi_daemon.bus"]

    assert foreign("ksi_journal", names) == ["ksi_postgres.store"]
    assert foreign("ksi_postgres", names) == []


def mutable_state(tree: ast.Module) -> Iterator[str]:
    """Yield what a module keeps and changes: constants in capitals that nobody writes to pass."""
    constants = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        made = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, made):
                constants.add(target.id)
                if not (target.id.isupper() or target.id == "__all__"):
                    yield target.id
    changing = {"append", "add", "update", "pop", "clear", "extend", "remove", "setdefault"}
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Global):
            yield from inner.names
            continue
        written = written_to(inner, changing)
        if isinstance(written, ast.Name) and written.id in constants:
            yield written.id


def written_to(node: ast.AST, changing: set[str]) -> ast.expr | None:
    """Return what a node changes in place, if it does: ``x.append``, ``x[…] = …``."""
    if isinstance(node, ast.Attribute) and node.attr in changing:
        return node.value
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return node.value
    return None


def test_no_module_keeps_state() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in python_files(*SOURCES)
        if "tests" not in path.parts
        and (names := sorted(mutable_state(ast.parse(path.read_text(encoding="utf-8")))))
    }

    assert found == {}


def test_state_in_a_module_is_noticed() -> None:
    source = "A = {}\nb = []\nC = [1]\ndef f():\n    global d\n    A['x'] = 1\n    C.append(2)\n"

    assert sorted(mutable_state(ast.parse(source))) == ["A", "C", "b", "d"]


# -- patterns --------------------------------------------------------------------------------------

SmallName = Annotated[str, Meta(pattern=r"^[a-z]+\Z")]


def loose_patterns(source: str) -> list[str]:
    """Return the patterns of payloads that also match with a line break behind them."""
    found: list[ast.expr] = []
    tree = ast.parse(source if "pattern" in source.lower() else "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Meta":
            found.extend(each.value for each in node.keywords if each.arg == "pattern")
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("_PATTERN"):
            found.append(node.value)
    texts = [each.value for each in found if isinstance(each, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and not text.endswith(r"\Z")]


def test_what_a_payload_takes_fits_its_pattern_to_the_very_end() -> None:
    for path in python_files(*SOURCES):
        if "tests" not in path.parts:
            assert loose_patterns(path.read_text(encoding="utf-8")) == [], path


def test_a_loose_pattern_is_noticed_and_others_are_told_theirs() -> None:
    source = 'A_PATTERN = "^a$"\nB = Annotated[str, Meta(max_length=3, pattern="^b$")]'

    assert loose_patterns(source) == ["^a$", "^b$"]
    assert loose_patterns(source.replace("$", r"\\Z")) == []
    with pytest.raises(ValidationError):
        convert("name\n", SmallName)
    assert schema_of(list[SmallName]) == {
        "type": "array",
        "items": {"type": "string", "pattern": "^[a-z]+$"},
    }


# -- reasons, words ------------------------------------------------------------------------------

UNREASONED = re.compile(
    r"#\s*noqa(?!: [A-Z0-9, ]+ {2}\w)|#\s*type:\s*ignore(?!\[[\w, -]+\]  # \w)|#\s*fmt: off"
)


def comments(source: str) -> Iterator[tokenize.TokenInfo]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token


def test_every_exception_to_a_rule_has_its_reason_beside_it() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}"
        for path in python_files(*SOURCES, "tests", "docs")
        if UNREASONED.search(source := path.read_text(encoding="utf-8"))
        for token in comments(source)  # in a text it is none
        if UNREASONED.search(token.string)
    ]

    assert bare == []


@pytest.mark.parametrize(
    ("comment", "is_bare"),
    [
        ("# noqa", True),
        ("# noqa: T201", True),
        ("# noqa: T201  it prints tables", False),
        ("# noqa: A001, B002  both are meant", False),
        ("# type: ignore", True),
        ("# type: ignore[misc]", True),
        ("# type: ignore[misc]  # it is inline", False),
    ],
)
def test_a_missing_reason_is_noticed(comment: str, is_bare: bool) -> None:
    assert bool(UNREASONED.search(comment)) == is_bare


def test_the_tree_tells_nothing_of_the_machine_it_was_made_on() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in MACHINE if word in text]

    assert found == []


# -- what is shipped -----------------------------------------------------------------------------


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a distribution with hatchling, fetching nothing."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=50)
    (built,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_a_wheel_takes_no_names_that_are_not_ours(wheel: Path) -> None:
    plugins = {path.name for path in (ROOT / "plugins").glob("ksi_*")}

    assert {name.partition("/")[0] for name in names_in(wheel)} == {
        "daemon_control.py",
        "ksi_cli",
        "ksi_client",
        "ksi_daemon",
        "ksi_tui",
        *plugins,
    }


def test_a_wheel_holds_what_is_needed_and_no_tests(wheel: Path) -> None:
    names = names_in(wheel)

    assert {
        "daemon_control.py",
        "ksi_daemon/py.typed",
        "ksi_client/py.typed",
        "ksi_system/py.typed",
        "ksi_cli/py.typed",
        "ksi_daemon/protocol/__init__.py",
    } <= names
    units = {path.name for path in (ROOT / "plugins" / "ksi_system" / "units").iterdir()}
    assert {f"ksi_system/units/{unit}" for unit in units} <= names
    sql = ROOT / "sql"
    assert {f"ksi_postgres/_sql/{each.relative_to(sql)}" for each in sql.rglob("*.sql")} <= names
    queries = (ROOT / "plugins").glob("ksi_*/**/*.sql")
    assert {str(each.relative_to(ROOT / "plugins")) for each in queries} <= names
    assert [name for name in names if "/tests/" in name or "__pycache__" in name] == []


def test_a_wheel_holds_the_documentation_that_the_demo_reads(wheel: Path) -> None:
    documents = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "plugins" / "README.md"]
    readmes = (ROOT / "plugins").glob("ksi_*/README.md")

    names = names_in(wheel)

    shipped = {name.removeprefix("ksi_cli/_docs/") for name in names if "/_docs/" in name}
    assert shipped == {str(path.relative_to(ROOT)) for path in documents}
    assert {str(path.relative_to(ROOT / "plugins")) for path in readmes} <= names


def test_a_wheel_s_entry_points_lead_somewhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        text = archive.read(file).decode()
    modules = {
        line.split(" = ")[1].partition(":")[0] for line in text.splitlines() if " = " in line
    }

    names = names_in(wheel)
    assert [m for m in modules if f"{m.replace('.', '/')}.py" not in names] == []


def test_a_wheel_made_of_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    source = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    again = build("wheel", unpacked, tmp_path / "wheel")

    assert names_in(again) == names_in(wheel)
    assert not (unpacked / ".ci").exists()
