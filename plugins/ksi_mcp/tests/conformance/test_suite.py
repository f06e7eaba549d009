"""The protocol's own suite, at both versions of the protocol, against KSI's server."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_http.testing import HttpServer
from ksi_mcp.tests.conformance.programs import NODE, SUITE, run

VERSIONS = {"2025-11-25": 80, "2026-07-28": 140}  # and how much is checked at the least
# What the suite says beside its verdicts.
REMARKS = ("SUCCESS", "INFO")


async def checked(folder: Path, http: HttpServer, version: str) -> list[dict[str, Any]]:
    """Run the whole suite at a version; return all that it checked."""
    results = folder / "results" / version
    suite = (SUITE, "server", "--url", f"{http.url}/mcp", "--suite", "all")
    options = ("--spec-version", version, "-o", results)
    command = (NODE, "--import", "./key.mjs", *suite, *options)
    _, out, err = await run(*command, cwd=folder, KSI_KEY=http.key)
    found = [
        each
        for path in sorted(results.glob("*/checks.json"))
        for each in msgspec.json.decode(path.read_bytes())
    ]
    assert found, out + err
    return found


def told(check: dict[str, Any]) -> str:
    """Tell of a check in a line."""
    return f"{check['status']} {check['id']}: {check.get('errorMessage', '')}"


@pytest.mark.timeout(180)  # it installs the suite
async def test_the_suite_of_the_protocol_finds_nothing_at_either_version(
    http: HttpServer, front_end: Path
) -> None:
    async with asyncio.TaskGroup() as together:
        running = {
            version: together.create_task(checked(front_end, http, version)) for version in VERSIONS
        }

    for version, least in VERSIONS.items():
        found = running[version].result()
        wrong = [told(each) for each in found if each["status"] not in REMARKS]
        assert not wrong, "\n".join([version, *wrong])
        assert sum(each["status"] == "SUCCESS" for each in found) >= least
