"""Where the project's documentation is: in the checkout, or in what was installed."""

import shutil
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parents[1]  # the package ksi_cli
CHECKOUT: Final = HERE.parents[1]


def gather(folder: Path) -> int:
    """Copy all documents below a folder, as they lie in the checkout; return how many."""
    found = documents()
    for name, source in found.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return len(found)


def documents(here: Path = HERE, checkout: Path = CHECKOUT) -> dict[str, Path]:
    """Return the documents by their names in the checkout.

    Args:
        here: The package that has them in an installation, as ``_docs``.
        checkout: Where the source would be.
    """
    shipped = here / "_docs"
    if not shipped.is_dir():
        found = [checkout / "README.md", checkout / "plugins" / "README.md"]
        found += sorted((checkout / "docs").rglob("*.md"))
        named = {str(path.relative_to(checkout)): path for path in found}
    else:
        named = {str(path.relative_to(shipped)): path for path in sorted(shipped.rglob("*.md"))}
    return {**named, **_of_plugins()}


def _of_plugins() -> dict[str, Path]:
    points = distribution("ksi").entry_points.select(group="ksi")
    packages = sorted({point.module.partition(".")[0] for point in points})
    found: dict[str, Path] = {}
    for package in packages:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            readme = Path(folder) / "README.md"
            if readme.is_file():
                found[f"plugins/{package}/README.md"] = readme
    return found
