"""What ``ksi doctor`` tells of the runtimes that call tools: each way around the gate."""

from collections.abc import Iterator
from typing import Any, Final

from ksi_cli import output
from ksi_cli.findings import Finding, fail, ok, warn
from ksi_client import Client, KsiError, Unavailable
from ksi_daemon.home import Home

TIMEOUT_S: Final = 20.0
TOLD: Final = {
    "held": "held",
    "through": "GOT THROUGH",
    "unknown": "could not be tried",
    "untried": "not tried here",
}


def runtimes() -> Iterator[Finding]:
    """Tell which ways around the gate of tools were tried at the start, and what came of each."""
    try:
        client = Client(Home().socket, timeout_s=TIMEOUT_S)
    except Unavailable:
        yield ok("runtimes", "they are tried whenever the daemon starts; it does not run")
        return
    with client:
        try:
            told = client.request("mcp:runtimes", {})
        except (KsiError, OSError) as error:
            why = output.displayed(str(error))
            yield warn("runtimes", f"the daemon doesn't tell what became of their trials: {why}")
            return
    for runtime in told["runtimes"]:
        yield from findings_of(runtime)


def findings_of(runtime: dict[str, Any]) -> Iterator[Finding]:
    """Tell of one runtime."""
    name, state, why = runtime["name"], runtime.get("state", "waiting"), runtime.get("why", "")
    for way in runtime.get("ways", ()):
        detail = way.get("detail", "")
        what = f"{way['way']}: {TOLD[way['result']]}{f' ({detail})' if detail else ''}"
        tell = {"held": ok, "untried": ok, "unknown": warn, "through": fail}[way["result"]]
        yield tell(name, output.displayed(what))
    version = f" (version {runtime['version']})" if runtime.get("version") else ""
    if state == "proven":
        yield ok(name, output.displayed(f"it can't go around the gate of tools{version}"))
    elif state == "refused":
        told = f"it is refused, as it can go around the gate of tools{version}"
        yield fail(name, output.displayed(told), output.displayed(runtime.get("advice", "")))
    elif state == "unproven":
        yield warn(name, output.displayed(f"it has no tools, as it could not be tried yet: {why}"))
    elif state in ("waiting", "absent"):
        yield ok(name, output.displayed(why) or "it is being tried")
