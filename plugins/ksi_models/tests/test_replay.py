import asyncio
import stat
from contextlib import aclosing
from pathlib import Path

import pytest

from ksi_daemon.protocol import InvalidData
from ksi_models.events import TextPart, ToolCallPart
from ksi_models.fakes.openai_server import FakeOpenAI, Reply
from ksi_models.provider import Provider
from ksi_models.providers import Providers
from ksi_models.providers.replay import Recorder, Replay
from ksi_models.providers.scripted import ScriptedProvider
from ksi_models.settings import ModelsSettings, ProviderSettings
from ksi_models.tests.questions import ask, failing, keys, question, said

KEY = "sk-recorded-0123456789"


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(ScriptedProvider(), tmp_path / "tape.jsonl", lambda text: text)


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    return Replay(tmp_path)


async def test_what_was_recorded_is_answered_again(recorder: Recorder, replay: Replay) -> None:
    script = '{"say": "Adding", "think": "Hm", "calls": [{"name": "add", "arguments": {"a": 1}}]}'
    recorded = await ask(recorder, question(script, model="script"))

    replayed = await ask(replay, question(script, model="tape"))

    assert replayed == recorded
    assert replayed[1].message.parts[1:] == (
        TextPart("Adding"),
        ToolCallPart("call_0", "add", '{"a": 1}'),
    )


async def test_answers_are_found_by_their_questions(recorder: Recorder, replay: Replay) -> None:
    for text in ("one", "two", "three"):
        await ask(recorder, question(text, model="echo"))

    texts = [said((await ask(replay, question(t, model="tape")))[1]) for t in ("three", "one")]

    assert texts == ["three", "one"]


async def test_a_question_asked_again_gets_what_was_answered_next(
    recorder: Recorder, replay: Replay
) -> None:
    asked = question("a", model="fail-server-1", conversation="c")
    await failing(recorder, asked)
    await ask(recorder, asked)
    again = question("a", model="tape", conversation="c")

    error = await failing(replay, again)
    texts = [said((await ask(replay, again))[1]) for _ in range(2)]

    assert error.kind == "server"
    assert texts == ["ok", "ok"]


async def test_a_question_that_was_never_asked_gets_the_next_answer(
    recorder: Recorder, replay: Replay
) -> None:
    for text in ("one", "two"):
        await ask(recorder, question(text, model="echo"))

    texts = [said((await ask(replay, question(t, model="tape")))[1]) for t in ("x", "y")]
    error = await failing(replay, question("z", model="tape"))

    assert texts == ["one", "two"]
    assert error.kind == "not_found"


async def test_each_conversation_has_the_whole_recording(
    recorder: Recorder, replay: Replay
) -> None:
    await ask(recorder, question("one", model="echo"))

    for conversation in ("a", "b"):
        _, end = await ask(replay, question("x", model="tape", conversation=conversation))
        assert said(end) == "one"


async def test_what_is_given_up_is_not_recorded(recorder: Recorder, tmp_path: Path) -> None:
    async with aclosing(recorder.stream(question(model="lorem-10"))) as answer:
        await anext(answer)

    assert not (tmp_path / "tape.jsonl").exists()


async def test_calls_at_once_are_recorded_whole(recorder: Recorder, replay: Replay) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(ask(recorder, question(f"{number}" * 1000, model="echo")))

    _, end = await ask(replay, question("7" * 1000, model="tape"))

    assert said(end) == "7" * 1000


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "", ".", "..", ".hidden", "a\x00", "ä", "x" * 101]
)
async def test_a_cassette_is_no_path(replay: Replay, name: str, tmp_path: Path) -> None:
    (tmp_path.parent / "secret.jsonl").write_text("{}")

    assert (await failing(replay, question(model=name))).kind == "not_found"


@pytest.mark.parametrize("text", ["{", "[]", '{"question": 1}', "\xff"])
async def test_a_broken_cassette_is_told(replay: Replay, tmp_path: Path, text: str) -> None:
    (tmp_path / "tape.jsonl").write_bytes(text.encode("latin-1"))

    assert (await failing(replay, question(model="tape"))).kind == "invalid"


async def test_cassettes_are_listed(recorder: Recorder, replay: Replay) -> None:
    assert "nothing is recorded" in str(await replay.why_not())

    await ask(recorder, question(model="echo"))

    assert [model.name for model in await replay.models()] == ["tape"]
    assert await replay.why_not() is None


# -- the setting ----------------------------------------------------------------------------------


async def test_a_setting_has_all_calls_recorded_without_keys(
    fake_openai: FakeOpenAI, tmp_path: Path
) -> None:
    own = {"mine": ProviderSettings(base_url=fake_openai.url, key=KEY)}
    settings = ModelsSettings(providers=own, keyring=False, cassette="demo")
    providers = Providers(settings, keys(settings), tmp_path)
    fake_openai.script(Reply(text=f"your key is {KEY}"))

    await ask(found(providers, "mine"), question(model="m"))
    _, end = await ask(found(providers, "replay"), question(model="demo"))

    file = tmp_path / "cassettes" / "demo.jsonl"
    assert KEY not in file.read_text()
    assert "Hello" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert said(end).startswith("your key is")
    await providers.close()


def found(providers: Providers, name: str) -> Provider:
    provider = providers.find(name)
    assert provider is not None
    return provider


def test_a_setting_that_is_no_name_is_refused(tmp_path: Path) -> None:
    settings = ModelsSettings(cassette="../demo")

    with pytest.raises(InvalidData, match=r"models\.cassette"):
        Providers(settings, keys(settings), tmp_path)
