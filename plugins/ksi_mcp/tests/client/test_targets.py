"""What a person means who says where a server is."""

from pathlib import Path

import pytest

from ksi_cli.output import UsageError
from ksi_mcp.client.targets import read_target


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the command is given."""
    (tmp_path / "server.py").touch()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_are_those_that_are_found_from_here(here: Path) -> None:
    def read(*words: str) -> list[str]:
        url, command = read_target(words)
        assert url == ""
        return command

    assert read("python", "server.py") == ["python", f"{here}/server.py"]
    assert read("./server.py", "--root=./data") == [f"{here}/server.py", f"--root={here}/data"]
    assert read("uv", "--directory", ".", "run", "x") == [
        "uv",
        "--directory",
        f"{here}",
        "run",
        "x",
    ]
    for words in (
        ("npx", "-y", "@far/server", "/data", "not/there"),
        ("python", "-m", "data"),  # a module, or a folder: nobody knows
        ("far", "x" * 5_000, "./no-such-file"),
    ):
        assert read(*words) == list(words)


def test_a_url_is_taken_as_it_is() -> None:
    assert read_target(["https://far.test/mcp"]) == ("https://far.test/mcp", [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["htp://far.test/mcp"], "begins with https://"),
        (["far.test/mcp"], "a URL begins with https://"),
        (["localhost:8000"], "a URL begins with https://"),
        (["./server.pi"], "there is no ./server.pi here"),
        (["python server.py"], "words of their own"),
        (["https://far.test/mcp", "more"], "no arguments"),
    ],
)
def test_what_can_be_neither_is_told_before_anything_is_kept(
    here: Path, words: list[str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        read_target(words)
