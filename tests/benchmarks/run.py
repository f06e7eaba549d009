"""Runs the benchmarks and prints what they found beside their targets.

It is a report, not a test: the exit code is 0 unless a benchmark broke, or a target was missed
and ``--check`` was given. Usage: see ``python tests/benchmarks/run.py --help``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import agents
import bench_http
import bench_journal
import bench_mcp
import bench_store
import completion
import exchange
import fanout
import kernel
import memory_finding
import memory_quality
import memory_search
import memory_writing
import report
import soak
import workflows
from report import Figure

BENCHMARKS: Final[dict[str, Callable[..., Iterator[Figure]]]] = {
    "agents": agents.measure,
    "completion": completion.measure,
    "exchange": exchange.measure,
    "fanout": fanout.measure,
    "http": bench_http.measure,
    "journal": bench_journal.measure,
    "kernel": kernel.measure,
    "mcp": bench_mcp.measure,
    "memory_finding": memory_finding.measure,
    "memory_quality": memory_quality.measure,
    "memory_search": memory_search.measure,
    "memory_writing": memory_writing.measure,
    "soak": soak.measure,
    "store": bench_store.measure,
    "workflows": workflows.measure,
}


def main() -> int:
    """Run what was asked for; return the exit code."""
    options = _options()
    figures: list[Figure] = []
    broken = False
    for name in options.only or BENCHMARKS:
        began = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            for figure in BENCHMARKS[name](quick=options.quick):
                print(f"  {' | '.join(filter(None, figure.cells()))}", file=sys.stderr, flush=True)
                figures.append(figure)
        except (RuntimeError, OSError) as error:
            print(f"{name} broke: {error}", file=sys.stderr)
            broken = True
        print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"{report.machine()}\n\n{report.table(figures)}")
    if options.write and not broken:
        report.write(figures, " (a quick run)" if options.quick else "")
    missed = any(figure.met is False for figure in figures)
    return 1 if broken or (options.check and missed) else 0


def _options() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run only this one")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a shorter soak")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
