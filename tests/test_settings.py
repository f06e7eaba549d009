"""Settings: four layers, every mistake named, every number with its unit."""

import inspect
import re
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_daemon.settings import (
    MASK,
    CommonSettings,
    DaemonSettings,
    LogSettings,
    Secret,
    Settings,
    variable,
)

# What can be measured in more than one unit, and a suffix that says in which it is.
MEASURED = {
    "timeout", "time", "interval", "delay", "grace", "period", "window", "warning", "duration",
    "age", "ttl", "size", "length", "memory", "rate", "price", "budget", "buffer", "limit",
}  # fmt: skip
UNITS = ("_s", "_ms", "_bytes", "_tokens", "_usd", "_percent")


class Sample(Struct, frozen=True, kw_only=True):
    """A section with a field of each kind."""

    name: str = "Ada"
    count: int = 3
    share: float = 0.5
    on: bool = False
    places: tuple[str, ...] = ("Oslo",)
    prices: dict[str, float] = {}
    password: Secret = ""
    url: Annotated[str, variable("KSI_DATABASE_URL")] = ""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def write(home: Path, text: str) -> None:
    (home / "ksi.toml").write_text(text, encoding="utf-8")


def test_without_anything_the_defaults_hold(home: Path) -> None:
    settings = Settings(home, environ={})

    assert settings.section("sample", Sample) == Sample()
    assert {value.origin for value in settings.values()} == {"default"}


def test_arguments_win_over_variables_over_the_file_over_defaults(home: Path) -> None:
    write(home, '[sample]\nname = "file"\ncount = 1\nshare = 0.1\n')
    environ = {"KSI_SAMPLE_NAME": "variable", "KSI_SAMPLE_COUNT": "2"}
    settings = Settings(home, ["sample.name=argument"], environ)

    made = settings.section("sample", Sample)

    assert (made.name, made.count, made.share, made.on) == ("argument", 2, 0.1, False)
    origins = {value.key: value.origin for value in settings.values()}
    assert (origins["name"], origins["count"]) == ("--set", "$KSI_SAMPLE_COUNT")
    assert (origins["share"], origins["on"]) == (str(home / "ksi.toml"), "default")


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("places=Oslo, Bergen,", "places", ("Oslo", "Bergen")),
        ('places=["a, b"]', "places", ("a, b",)),
        ('prices={"tea": 2.5}', "prices", {"tea": 2.5}),
        ("on=true", "on", True),
        ("on=1", "on", True),
        ("share=3", "share", 3.0),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
    ],
)
def test_text_is_read_as_the_type_that_is_declared(
    home: Path, argument: str, key: str, value: Any
) -> None:
    made = Settings(home, [f"sample.{argument}"], {}).section("sample", Sample)

    assert getattr(made, key) == value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("count=many", "--set: sample.count: Expected `int`, got `str` (it is 'many')"),
        ("on=maybe", "--set: sample.on"),
        ("places=[", "--set: sample.places"),
        ("prices=tea", "--set: sample.prices"),
    ],
)
def test_a_wrong_value_is_named_with_its_origin(home: Path, argument: str, message: str) -> None:
    with pytest.raises(InvalidData, match=re.escape(message)):
        Settings(home, [f"sample.{argument}"], {}).section("sample", Sample)


def test_a_setting_may_have_a_variable_of_its_own(home: Path) -> None:
    settings = Settings(home, environ={"KSI_DATABASE_URL": "postgres://"})

    assert settings.section("sample", Sample).url == "postgres://"


class Door(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table with a secret."""

    address: str = ""
    key: Secret = ""
    words: dict[str, Secret] = {}
    bolts: tuple[Secret, ...] = ()


class House(Struct, frozen=True, kw_only=True):
    """A section with tables in it."""

    doors: dict[str, Door] = {}


DOORS = """{"front": {
    "address": "here", "key": "hunter2", "words": {"a": "hunter3", "b": ""}, "bolts": ["hunter4"]
}}"""


def test_secrets_within_tables_are_masked_and_the_rest_is_shown(home: Path) -> None:
    settings = Settings(home, environ={"KSI_HOUSE_DOORS": DOORS})

    made = settings.section("house", House)

    (shown,) = settings.values()
    assert made.doors["front"].key == "hunter2"
    words = {"a": MASK, "b": ""}
    front = {"address": "here", "key": MASK, "words": words, "bolts": [MASK]}
    assert shown.value == {"front": front}


def test_a_wrong_table_is_told_without_the_secrets_in_it(home: Path) -> None:
    wrong = DOORS.replace("address", "adress")
    settings = Settings(home, environ={"KSI_HOUSE_DOORS": wrong})

    with pytest.raises(InvalidData, match="adress") as caught:
        settings.section("house", House)

    assert "hunter" not in str(caught.value)


def test_a_secret_is_masked_also_where_it_is_wrong(home: Path) -> None:
    settings = Settings(home, environ={"KSI_SAMPLE_PASSWORD": "hunter2"})
    settings.section("sample", Sample)

    (shown,) = [value for value in settings.values() if value.key == "password"]
    assert (shown.value, shown.origin) == (MASK, "$KSI_SAMPLE_PASSWORD")

    write(home, "[sample]\npassword = [4711]\n")
    with pytest.raises(InvalidData) as caught:
        Settings(home, environ={}).section("sample", Sample)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sample]\nnmae = 1\n", "[sample] has no key 'nmae'; did you mean name"),
        ("[sampel]\nname = 1\n", "there is no section [sampel]; did you mean sample"),
        ("sample = 1\n", "sample is a section: write [sample] above its keys"),
    ],
)
def test_what_nobody_knows_in_the_file_is_refused_with_the_nearest(
    home: Path, text: str, message: str
) -> None:
    write(home, text)
    settings = Settings(home, environ={})
    if "[sample]" in text:
        settings.section("sample", Sample)

    with pytest.raises(InvalidData, match=re.escape(message)):
        settings.check(["sample"])


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["sample.nmae=1"], {}, "--set: [sample] has no key 'nmae'; did you mean name"),
        (["sampel.name=1"], {}, "--set: there is no section 'sampel'; did you mean sample"),
        ([], {"KSI_SAMPLE_NMAE": "1"}, "$KSI_SAMPLE_NMAE: [sample] has no key 'nmae'"),
    ],
)
def test_what_nobody_knows_elsewhere_is_refused_too(
    home: Path, arguments: list[str], environ: dict[str, str], message: str
) -> None:
    settings = Settings(home, arguments, environ)
    settings.section("sample", Sample)

    with pytest.raises(InvalidData, match=re.escape(message)):
        settings.check(["sample"])


@pytest.mark.parametrize("argument", ["name=1", "sample.name", "=1", ".name=1", "sample.=1"])
def test_an_argument_of_another_form_is_refused(home: Path, argument: str) -> None:
    with pytest.raises(InvalidData, match=r"--set takes section\.key=value"):
        Settings(home, [argument], {})


def test_a_variable_of_nobody_is_only_a_warning(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(home, environ={"KSI_WHATEVER": "1", "KSI_HOME": "/elsewhere"})

    settings.check([])

    assert [vars(record)["variable"] for record in caplog.records] == ["KSI_WHATEVER"]


def test_the_section_of_a_plugin_that_can_not_be_loaded_is_left_alone(home: Path) -> None:
    write(home, "[heavy]\nanything = 1\n")
    settings = Settings(home, ["heavy.more=2"], {"KSI_HEAVY_MOST": "3"})

    settings.check([], unread=["heavy"])


@pytest.mark.parametrize("content", [b"[sample\n", b"\xff\xfe", b"[a]\nb=1\n[a]\nb=2\n"])
def test_a_file_that_is_no_toml_is_refused_with_its_path(home: Path, content: bytes) -> None:
    (home / "ksi.toml").write_bytes(content)

    with pytest.raises(InvalidData, match=re.escape(str(home / "ksi.toml"))):
        Settings(home, environ={})


def test_a_directory_in_the_file_s_place_is_refused(home: Path) -> None:
    (home / "ksi.toml").mkdir()

    with pytest.raises(InvalidData, match="can't be read"):
        Settings(home, environ={})


def test_a_host_gets_the_layers_of_its_section_and_of_no_other(home: Path) -> None:
    write(home, '[sample]\nname = "file"\n[other]\npassword = "theirs"\n')
    environ = {"KSI_SAMPLE_COUNT": "7", "KSI_OTHER_PASSWORD": "theirs", "HOME": "/"}
    layers = Settings(home, ["sample.on=true", "other.x=theirs"], environ).layers_of("sample")

    theirs = Settings(home, layers.arguments, layers.variables, {"sample": layers.table})

    assert "theirs" not in str(layers)
    assert theirs.section("sample", Sample) == Sample(name="file", count=7, on=True)


@pytest.mark.parametrize("section", [DaemonSettings, LogSettings, CommonSettings])
def test_every_setting_has_a_unit_or_counts_something(section: type[Struct]) -> None:
    assert unclear(section) == []


def unclear(section: type[Struct]) -> list[str]:
    """List the numbers of a section whose name does not say what they are."""
    found = []
    for name, hint in get_type_hints(section).items():
        unitless = not name.endswith(UNITS)
        vague = name.rsplit("_", 1)[-1] in MEASURED
        if vague or (hint is float and unitless) or (hint is int and unitless and not counts(name)):
            found.append(name)
    return found


def counts(name: str) -> bool:
    """Say whether a name counts something: it has a plural noun, or says what is in flight."""
    return any(part.endswith("s") for part in name.split("_")) or name.endswith("in_flight")


def test_a_setting_without_its_unit_is_noticed() -> None:
    class Vague(Struct):
        timeout: float = 1.0
        max_size: int = 1
        retry_delay: float = 1.0
        max_line: int = 1
        shutdown_grace_s: float = 1.0
        max_frame_bytes: int = 1
        max_connections: int = 1

    assert unclear(Vague) == ["timeout", "max_size", "retry_delay", "max_line"]


@pytest.mark.parametrize("section", [DaemonSettings, LogSettings, CommonSettings])
def test_every_setting_is_explained(section: type[Struct]) -> None:
    documented = set(re.findall(r"^ {4}(\w+): ", inspect.getdoc(section) or "", re.MULTILINE))

    assert documented == set(section.__struct_fields__)
