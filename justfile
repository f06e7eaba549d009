# One-line recipes; what the checks are is listed in daemon_control.py.

# Run the linters and the type checker.
check:
    python3 daemon_control.py test --only checks

# Mend what the linter and the formatter can mend.
fix:
    .venv/bin/ruff check --fix . ; .venv/bin/ruff format .

# Run the tests; arguments are pytest's.
test *arguments:
    python3 daemon_control.py test --only pytest {{arguments}}

# Run the daemon in the foreground.
run:
    python3 daemon_control.py start --foreground

# Build the distribution, into dist/.
build:
    .venv/bin/python -m pip wheel --no-deps --wheel-dir dist .

# Measure.
bench:
    .venv/bin/python tests/benchmarks/run.py

# Write the tables in READMEs and docs/, which are made from the code.
docs:
    .venv/bin/python docs/generate.py

# Kill the daemon at 200 random points of durable work, and at 200 of turns; keep the results beside the benchmarks.
faults:
    FAULT_KILLS=200 FAULT_DOWN_S=10 FAULT_OUTAGE_S=60 FAULT_REPORT=tests/benchmarks/faults.md FAULT_REPORT_TURNS=tests/benchmarks/faults_turns.md .venv/bin/python -m pytest -q plugins/ksi_workflows/tests/test_kills.py plugins/ksi_workflows/tests/test_faults.py plugins/ksi_completion/tests/test_kills.py plugins/ksi_completion/tests/test_outages.py
