"""The protocol's inspector lists tools and calls them, over both transports."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_daemon.daemon import Daemon
from ksi_http.testing import HttpServer
from ksi_mcp.tests.conformance.programs import INSPECTOR, NODE, run

IMAGE = ("--tool-name", "test_image_content")
Target = tuple[str, ...]


async def inspected(folder: Path, target: Target, era: str, *method: str) -> Any:
    """Have it do something; return what it got."""
    options = ("--protocol-era", era, "--format", "json", "--method", *method)
    code, out, err = await run(
        NODE, INSPECTOR, "--cli", *target, *options, cwd=folder, HOME=str(folder)
    )
    assert code == 0, err
    return msgspec.json.decode(out)["result"]


async def see(folder: Path, target: Target) -> None:
    """Look whether it lists tools and calls one, by the older protocol and by the newer."""
    for era in ("legacy", "modern"):
        # It lists them for that, and calls what it has found.
        called = await inspected(folder, target, era, "tools/call", *IMAGE)

        (block,) = called["content"]
        assert (block["type"], block["mimeType"]) == ("image", "image/png")


@pytest.mark.timeout(180)  # it installs the inspector
async def test_it_lists_and_calls_over_http(http: HttpServer, front_end: Path) -> None:
    header = f"Authorization: Bearer {http.key}"
    target = (f"{http.url}/mcp", "--transport", "http", "--header", header)

    await see(front_end, target)
    listed = await inspected(front_end, target, "modern", "tools/list")

    names = {each["name"] for each in listed["tools"]}
    assert {"look", "current_time", "test_image_content"} <= names


@pytest.mark.timeout(180)
async def test_it_lists_and_calls_over_stdio(daemon: Daemon, front_end: Path) -> None:
    home = f"KSI_HOME={daemon.home.root}"
    command = (sys.executable, "-m", "ksi_cli", "mcp")

    await see(front_end, (*command, "--transport", "stdio", "-e", home))
