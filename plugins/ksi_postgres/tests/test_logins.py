"""URLs with passwords: read right, and never shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_daemon.protocol import InvalidData
from ksi_postgres.logins import check_url, shown, socket_url, split_password

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}/PW@h/d",
        f"postgresql://u:{SECRET}#PW@h/d",
        f"postgresql://u:{SECRET}?PW@h/d",
        f"mysql://u:{SECRET}@h/d",
        f"postgresql://h/d?user=u&password={SECRET}",
        f"postgresql://[{SECRET}/d",
    ],
)
def test_what_is_wrong_with_a_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(InvalidData) as refused:
        check_url(url, "postgres.url")

    assert SECRET not in refused.value.message
    assert refused.value.__cause__ is None


def test_a_password_among_the_options_is_not_shown() -> None:
    assert shown(f"postgresql://h/d?user=u&password={SECRET}&port=1") == (
        "postgresql://h/d?user=u&port=1"
    )


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_every_password_is_read_as_it_was_written(password: str) -> None:
    url = socket_url("user", password, host="/somewhere")

    assert check_url(url, "postgres.url") == url
    bare, read = split_password(url)
    assert read == password
    assert bare == "postgresql://user@/ksi?host=%2Fsomewhere&port=5432"
