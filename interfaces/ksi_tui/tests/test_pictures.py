"""The screens look as they should: each is compared with its picture, to the last character."""

from pathlib import Path

import pytest

from ksi_tui.testing import PICTURES, pictures

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("size", PICTURES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_screens_look_as_in_their_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    others = []
    for name, drawn in (await pictures(size)).items():
        if drawn != (ROOT / name).read_text(encoding="utf-8"):
            (tmp_path / Path(name).name).write_text(drawn, encoding="utf-8")
            others.append(name)

    assert others == [], f"as they are now: {tmp_path}; if that is right: docs/screenshot.py"
