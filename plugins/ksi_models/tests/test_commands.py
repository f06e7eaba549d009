"""What the commands of the models say, without a daemon."""

from pathlib import Path

import pytest

from ksi_models.commands import logins


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
