"""The user's login is lent to the claude command, and nothing else of the user's configuration."""

import os
from pathlib import Path

import pytest

from ksi_models.providers.claude_login import NAME, Login


@pytest.fixture
def users(tmp_path: Path) -> Path:
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / NAME).write_text("old")
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.fixture
def login(users: Path, tmp_path: Path) -> Login:
    return Login(str(users), tmp_path / "ours")


async def test_only_the_login_is_in_the_command_s_folder(login: Login, users: Path) -> None:
    await login.lend(has_key=False)

    assert [each.name for each in login.folder.iterdir()] == [NAME]
    assert (login.folder / NAME).read_text() == "old"
    assert login.folder.stat().st_mode & 0o777 == 0o700


async def test_a_command_that_is_handed_a_key_has_no_login_besides(login: Login) -> None:
    await login.lend(has_key=False)
    await login.lend(has_key=True)

    assert list(login.folder.iterdir()) == []


async def test_a_login_that_was_prolonged_is_brought_back(login: Login, users: Path) -> None:
    await login.lend(has_key=False)
    new = login.folder / ".new"
    new.write_text("new")
    new.replace(login.folder / NAME)  # as programs write what must not be lost

    await login.bring_back()

    assert (users / NAME).read_text() == "new"
    assert (users / NAME).stat().st_mode & 0o777 == 0o600
    assert not (login.folder / NAME).exists()


async def test_what_is_written_through_the_link_is_there_at_once(login: Login, users: Path) -> None:
    await login.lend(has_key=False)
    (login.folder / NAME).write_text("new")
    await login.bring_back()

    assert (users / NAME).read_text() == "new"


async def test_a_newer_login_of_the_user_s_stays(login: Login, users: Path) -> None:
    await login.lend(has_key=False)
    (login.folder / NAME).unlink()
    (login.folder / NAME).write_text("stale")
    os.utime(login.folder / NAME, (1, 1))

    await login.lend(has_key=False)

    assert (users / NAME).read_text() == "old"
    assert (login.folder / NAME).is_symlink()


def test_without_a_login_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = Login(str(tmp_path / "none"), tmp_path / "ours")

    assert "log in" in str(login.why_not())
    monkeypatch.setattr("sys.platform", "darwin")
    assert "keychain" in str(login.why_not())
