"""What the commands of the models say, without a daemon."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from ksi_models.commands import figures, logins
from ksi_models.store import NOTHING


def test_a_doctor_names_the_logins_there_are_and_shows_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (without,) = logins()

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "anthropic").write_text("sk-secret-2")
    (tmp_path / "claude").write_text("#!/bin/sh")
    (tmp_path / "claude").chmod(0o755)
    (found,) = logins()

    assert (without.state, without.fix) == ("warn", "export ANTHROPIC_API_KEY=…")
    assert (found.state, found.what) == (
        "ok",
        "there are: $OPENAI_API_KEY, keys/anthropic, the claude command",
    )


@pytest.mark.parametrize(
    ("cost_usd", "unpriced_calls", "told"),
    [(0.0, 0, "$0"), (1.5, 0, "$1.50"), (1.5, 2, "$1.50 +"), (0.0, 2, "unknown")],
)
def test_a_cost_that_is_not_known_is_not_told_as_nothing(
    cost_usd: float, unpriced_calls: int, told: str
) -> None:
    row = replace(NOTHING, calls=3, cost_usd=cost_usd, unpriced_calls=unpriced_calls)

    assert figures(row)[-1] == told
