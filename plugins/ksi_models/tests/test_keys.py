"""Keys: where they are found, and what is masked."""

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_models.keys import MASK, MIN_SECRET, Keys
from ksi_models.settings import ModelsSettings, ProviderSettings

KEY = "sk-live-0123456789"


def keys(home: Path, environ: dict[str, str] | None = None, **providers: Any) -> Keys:
    """Make keys without a keyring."""
    settings = ModelsSettings(
        keyring=False,
        providers={name: ProviderSettings(**own) for name, own in providers.items()},
    )
    return Keys(settings, home, {} if environ is None else environ)


async def test_keys_are_taken_out_of_the_environment(tmp_path: Path) -> None:
    environ = {"OPENAI_API_KEY": f" {KEY}\n", "PATH": "/bin", "WEATHER_API_KEY": "theirs"}

    made = keys(tmp_path, environ)

    assert environ == {"PATH": "/bin", "WEATHER_API_KEY": "theirs"}
    assert await made.find("openai") == KEY
    assert made.variable("OPENAI_API_KEY") == KEY


async def test_a_provider_of_one_s_own_has_a_variable_of_its_own(tmp_path: Path) -> None:
    environ = {"MY_BOX_API_KEY": KEY, "SPECIAL": "other-key", "KSI_MODELS_PROVIDERS": "{}"}

    made = keys(tmp_path, environ, **{"my-box": {}, "b": {"key_variable": "SPECIAL"}})

    assert environ == {}
    assert await made.find("my-box") == KEY
    assert await made.find("b") == "other-key"


async def test_the_settings_win_over_a_file_and_a_file_over_the_environment(
    tmp_path: Path,
) -> None:
    file = tmp_path / "key"
    file.write_text("of-the-file\n")
    environ = {"A_API_KEY": "of-the-environment", "B_API_KEY": "of-the-environment"}

    made = keys(
        tmp_path,
        environ,
        a={"key": "of-the-settings", "key_file": str(file)},
        b={"key_file": str(file)},
    )

    assert await made.find("a") == "of-the-settings"
    assert await made.find("b") == "of-the-file"


async def test_a_file_in_the_home_is_found_and_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    made = keys(tmp_path)
    assert await made.find("openai") is None

    (tmp_path / "keys" / "openai").write_text("new-key-1")
    assert await made.find("openai") == "new-key-1"

    (tmp_path / "keys" / "openai").write_text("new-key-2")
    assert await made.find("openai") == "new-key-2"
    assert made.redacted("new-key-1, new-key-2") == f"{MASK}, {MASK}"


@pytest.mark.parametrize("provider", ["../secret", "..", "", ".hidden"])
async def test_a_provider_s_name_leads_to_no_other_file(tmp_path: Path, provider: str) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "secret").write_text(KEY)
    (tmp_path / "keys" / ".hidden").write_text(KEY)

    assert await keys(tmp_path).find(provider) is None


async def test_a_file_that_is_no_key_is_told_without_its_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"sk-\xff\xfe-secret")

    assert await keys(tmp_path, a={"key_file": str(file)}).find("a") is None
    assert str(file) in str([record.__dict__ for record in caplog.records])
    assert "secret" not in caplog.text


# -- the keyring ----------------------------------------------------------------------------------


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A keyring that answers what the test says."""
    module = ModuleType("keyring")
    monkeypatch.setitem(sys.modules, "keyring", module)
    return module


async def test_the_keyring_is_asked_once_where_nothing_else_has_a_key(
    tmp_path: Path, keyring: Any
) -> None:
    asked: list[tuple[str, str]] = []

    def get_password(service: str, name: str) -> str:
        asked.append((service, name))
        return KEY

    keyring.get_password = get_password
    made = Keys(ModelsSettings(), tmp_path, {})

    assert [await made.find("openai"), await made.find("openai")] == [KEY, KEY]
    assert asked == [("ksi", "openai")]


async def test_a_keyring_that_waits_for_a_person_holds_nobody_up(
    tmp_path: Path, keyring: Any
) -> None:
    unlocked = threading.Event()
    keyring.get_password = lambda *_: unlocked.wait()
    made = Keys(ModelsSettings(keyring_timeout_s=0.01), tmp_path, {})

    assert await made.find("openai") is None
    unlocked.set()


async def test_a_keyring_that_breaks_is_one_without_a_key(tmp_path: Path, keyring: Any) -> None:
    def get_password(*_: str) -> str:
        raise RuntimeError("no backend")

    keyring.get_password = get_password

    assert await Keys(ModelsSettings(), tmp_path, {}).find("openai") is None


async def test_a_keyring_that_is_turned_off_is_not_asked(tmp_path: Path, keyring: Any) -> None:
    assert await keys(tmp_path).find("openai") is None  # it has no get_password


# -- masking --------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Z", "C"]), min_size=6))
def test_no_key_is_left_in_a_text(secret: str) -> None:
    made = keys(Path("/nonexistent"), {}, a={"key": secret})

    told = made.redacted(f"Incorrect API key provided: {secret}. Bearer {secret}!")

    assert secret not in told or secret in f"{MASK}. Bearer {MASK}"


def test_a_header_is_masked_with_and_without_its_first_word(tmp_path: Path) -> None:
    made = keys(tmp_path, {}, a={"headers": {"Authorization": "Bearer abcdef-123456"}})

    assert made.redacted("sent Bearer abcdef-123456") == f"sent {MASK}"
    assert made.redacted("abcdef-123456 is wrong") == f"{MASK} is wrong"


def test_what_is_too_short_to_be_a_key_is_left_alone(tmp_path: Path) -> None:
    made = keys(tmp_path, {}, a={"key": "x" * (MIN_SECRET - 1)})

    assert made.redacted("xxxxx") == "xxxxx"
