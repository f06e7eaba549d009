"""The catalogue: ids, aliases, fall-backs, the default."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_daemon.protocol import InvalidData, NotFound
from ksi_daemon.settings import Settings
from ksi_models.catalogue import BUILTIN, HINT, MAX_CANDIDATES, Catalogue
from ksi_models.prices import Prices, split
from ksi_models.provider import KnownModel, ProviderError
from ksi_models.settings import ModelsSettings, ProviderSettings
from ksi_models.tests.kit import Acting, Table


def catalogue(*providers: Acting, **settings: Any) -> Catalogue:
    """Make one."""
    return Catalogue(ModelsSettings(**settings), Table(*providers), Prices())


def there(name: str, *models: str) -> Acting:
    """Make a provider that can be used."""
    made = Acting(name)
    made.known = [KnownModel(name=model) for model in models]
    return made


def away(name: str) -> Acting:
    """Make one that can't."""
    made = Acting(name)
    made.reason = "it has no key"
    return made


# -- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("openai:gpt-5", ("openai", "gpt-5")),
        ("claude-cli/sonnet", ("claude-cli", "sonnet")),
        ("ollama:qwen3:8b", ("ollama", "qwen3:8b")),
        ("openrouter:meta/llama-4", ("openrouter", "meta/llama-4")),
        ("replay/a:b/c", ("replay", "a:b/c")),
        ("sonnet", ("sonnet", "")),
        (":x", ("", "x")),
    ],
)
def test_an_id_is_split_at_its_first_mark(model: str, parts: tuple[str, str]) -> None:
    assert split(model) == parts


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=50))
def test_any_text_is_a_model_or_a_typed_error(text: str) -> None:
    made = catalogue(there("openai"), aliases={"fast": "openai:x"})

    try:
        found = made.expand(text)
    except NotFound:
        return
    assert all(split(each)[0] == "openai" for each in found)


def test_a_name_without_a_provider_says_how_to_write_it() -> None:
    with pytest.raises(NotFound, match=r"write provider:model.*did you mean fast"):
        catalogue(there("openai"), aliases={"fast": "openai:x"}).expand("fats")


@pytest.mark.parametrize(
    ("provider", "example"), [("openai", "openai:MODEL"), ("claude-cli", "claude-cli/MODEL")]
)
def test_a_provider_alone_is_told_how_a_model_of_it_is_written(provider: str, example: str) -> None:
    with pytest.raises(NotFound, match=f"such as {example}.*ksi model list {provider}"):
        catalogue(there(provider)).expand(provider)


def test_an_unknown_provider_says_where_one_is_added() -> None:
    with pytest.raises(NotFound, match=r"\[models\.providers\.opnai\]"):
        catalogue(there("openai")).expand("opnai:gpt-5")


# -- aliases and fall-backs -----------------------------------------------------------------------


def test_aliases_may_stand_for_several_models_and_for_each_other() -> None:
    made = catalogue(
        there("a"),
        there("b"),
        aliases={"smart": ("a:big", "fast"), "fast": "a:small"},
        fallbacks={"a:small": ("b:small", "a:big")},
    )

    assert made.expand("smart") == ("a:big", "a:small", "b:small")
    assert made.expand("fast") == ("a:small", "b:small", "a:big")
    assert made.aliases["fast"] == ("a:small", "b:small", "a:big")


def test_an_id_is_told_as_it_is_written_however_it_was_asked_for() -> None:
    made = catalogue(
        there("claude-cli"), there("openai"), fallbacks={"claude-cli:opus": "openai/gpt-5"}
    )

    assert made.expand("claude-cli:opus") == ("claude-cli/opus", "openai:gpt-5")
    assert made.expand("claude-cli/opus") == ("claude-cli/opus", "openai:gpt-5")


def test_a_circle_of_aliases_is_told() -> None:
    made = catalogue(there("a"), aliases={"x": "y", "y": ("a:1", "x")})

    with pytest.raises(InvalidData, match="x → y → x"):
        made.expand("x")


def test_models_that_fall_back_on_each_other_are_no_circle() -> None:
    made = catalogue(there("a"), fallbacks={"a:1": "a:2", "a:2": "a:1"})

    assert made.expand("a:1") == ("a:1", "a:2")


def test_an_alias_for_too_many_models_is_refused() -> None:
    chain = tuple(f"a:{number}" for number in range(MAX_CANDIDATES + 1))

    with pytest.raises(InvalidData, match="more than"):
        catalogue(there("a"), aliases={"all": chain}).expand("all")


@given(
    st.dictionaries(
        st.sampled_from("pqrs"),
        st.lists(st.sampled_from(["p", "q", "r", "s", "a:1", "a:2", "b:1", "zzz"]), max_size=4),
    ),
    st.dictionaries(
        st.sampled_from(["a:1", "a:2", "b:1"]),
        st.lists(st.sampled_from(["p", "a:1", "a:2", "b:1", "c:1"]), max_size=3),
    ),
    st.sampled_from(["p", "q", "a:1", "zzz"]),
)
def test_whatever_aliases_there_are_a_name_means_models_without_repetition_or_an_error(
    aliases: dict[str, list[str]], fallbacks: dict[str, list[str]], name: str
) -> None:
    made = catalogue(
        there("a"),
        there("b"),
        aliases={key: tuple(chain) for key, chain in aliases.items()},
        fallbacks={key: tuple(chain) for key, chain in fallbacks.items()},
    )

    try:
        found = made.expand(name)
    except (InvalidData, NotFound):
        return
    assert len(set(found)) == len(found) <= MAX_CANDIDATES + 1
    assert all(split(each)[0] in ("a", "b") for each in found)


# -- the default ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        (["claude-cli", "anthropic", "openai", "ollama"], "claude-cli"),
        (["anthropic", "openai", "ollama"], "anthropic"),
        (["openai", "ollama"], "openai"),
        (["ollama"], "ollama"),
    ],
)
async def test_the_default_is_the_first_that_is_really_there(
    usable: list[str], expected: str
) -> None:
    names = ("claude-cli", "anthropic", "openai", "ollama")
    providers = [
        there(name, "nomic-embed-text", "qwen3") if name in usable else away(name) for name in names
    ]

    default = await catalogue(*providers).default()

    assert split(default.model)[0] == expected
    assert default.hint is None
    assert "embed" not in default.model


async def test_without_any_it_is_the_builtin_one_with_a_line_on_how_to_get_a_real_one() -> None:
    default = await catalogue(away("openai")).default()

    assert (default.model, default.hint) == (BUILTIN, HINT)
    assert "\n" not in HINT


async def test_a_default_that_is_set_is_not_looked_for() -> None:
    default = await catalogue(there("openai"), model="smart").default()

    assert default.model == "smart"


async def test_a_provider_that_breaks_when_looked_at_is_not_there() -> None:
    class Broken(Acting):
        async def why_not(self) -> str | None:
            raise ProviderError("network", "gone")

    assert (await catalogue(Broken("openai")).default()).model == BUILTIN


async def test_what_is_found_is_kept_for_a_while() -> None:
    provider = away("openai")
    made = catalogue(provider)
    await made.default()
    provider.reason = None

    assert (await made.default()).model == BUILTIN
    made.look_again()
    assert (await made.default()).model.startswith("openai:")


# -- sizes ----------------------------------------------------------------------------------------


async def test_how_much_a_model_reads_is_told_by_who_knows_best() -> None:
    told = there("local")
    told.known = [KnownModel(name="long", context_tokens=123_456, max_output_tokens=7)]
    made = catalogue(
        told,
        there("other"),
        there("openai"),
        providers={"other": ProviderSettings(context_tokens=9000)},
    )

    assert (await made.sizes("local:long")).context_tokens == 123_456
    assert (await made.sizes("local:long")).max_output_tokens == 7
    assert (await made.sizes("other:x")).context_tokens == 9000
    assert (await made.sizes("other:x")).max_output_tokens == 4500
    assert (await made.sizes("openai:gpt-5-mini")).context_tokens == 400_000
    assert (await made.sizes("local:unknown")).context_tokens == 32_000


async def test_a_variable_names_the_default(tmp_path: Path) -> None:
    settings = Settings(tmp_path, environ={"KSI_MODEL": "local:qwen3"})
    of_models = settings.section("models", ModelsSettings)

    made = Catalogue(of_models, Table(there("local"), there("openai")), Prices())

    assert (await made.default()).model == "local:qwen3"
