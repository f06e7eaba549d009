"""Tests of what ``ksi ask`` and ``ksi chat`` are made of, without a daemon."""

import io
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ksi_cli import output, turns
from ksi_cli.ask import Asking, _exit_code, _file_part
from ksi_cli.chat_commands import COMMANDS, SHOWN, safe_name, text_of
from ksi_cli.chat_screen import Block, RichScreen
from ksi_cli.markdown_flow import MarkdownFlow
from ksi_cli.output import UsageError
from ksi_client import (
    AcceptedChunk,
    Completion,
    Conflict,
    Denied,
    KsiError,
    NotFound,
    RestartedChunk,
    StatusChunk,
    TextChunk,
    TimedOut,
    TokenUsage,
    ToolCallChunk,
    Unavailable,
)

# -- blocks --------------------------------------------------------------------------------------

MARKDOWN = """# Title

Some text
in two lines.

- one

  more of one
- two

```py
a

b
```
end"""
PIECES = st.sampled_from(["a", "\n", "\n\n", "```", "~~~~", "  b", "- c", "\r\n"])


def blocks_of(*texts: str) -> list[str]:
    flow = MarkdownFlow()
    blocks = [block for text in texts for block in flow.feed(text)]
    return [*blocks, flow.finish()]


def test_markdown_is_cut_where_a_block_is_complete() -> None:
    assert blocks_of(MARKDOWN) == [
        "# Title\n\n",
        "Some text\nin two lines.\n\n",
        "- one\n\n  more of one\n- two\n\n",
        "```py\na\n\nb\n```\nend",
    ]


@given(words=st.lists(PIECES, max_size=40), size=st.integers(1, 9))
def test_however_markdown_comes_its_blocks_are_the_same_and_nothing_is_lost(
    words: list[str], size: int
) -> None:
    text = "".join(words)

    whole = blocks_of(text)
    in_pieces = blocks_of(*(text[at : at + size] for at in range(0, len(text), size)))

    assert whole == in_pieces
    assert "".join(whole) == text


def test_a_fence_is_closed_only_by_one_of_its_kind() -> None:
    assert blocks_of("````\n```\n\nx\n````\n\ny") == ["````\n```\n\nx\n````\n\n", "y"]


# -- on the screen -------------------------------------------------------------------------------


def shown(*chunks: object, width: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    with RichScreen(console).answering() as answer:
        for chunk in chunks:
            answer.show(chunk)  # type: ignore[arg-type]  # of any kind
    return written(console)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def text(words: str, attempt: int = 1) -> TextChunk:
    return TextChunk(attempt=attempt, offset=0, text=words)


def test_an_answer_is_laid_out_and_nothing_in_it_steers_the_terminal() -> None:
    told = shown(text("**bold** \x1b]0;title\x07 and [a link](http://evil.example)\n\nnext"))

    assert "bold \\x1b]0;title\\x07 and a link" in told
    assert "http://evil.example" in told.replace("\n", "")
    assert "**" not in told
    assert "next" in told


def test_an_answer_that_begins_again_says_so_and_shows_the_new_one_whole() -> None:
    restarted = RestartedChunk(attempt=2, offset=0, why="the daemon died")

    told = shown(text("first\n\nsec"), restarted, text("anew", 2))

    assert "the answer begins again: the daemon died" in told
    assert told.rstrip().endswith("anew")
    assert "sec" not in told.partition("begins again")[2]


def test_what_was_not_shown_yet_can_begin_again_without_a_word() -> None:
    told = shown(text("fir"), RestartedChunk(attempt=2, offset=0, why="x"), text("anew", 2))

    assert told.strip() == "anew"


def test_blocks_have_no_empty_lines_around_them() -> None:
    console = Console(file=io.StringIO(), width=30)
    console.print(Block("\n\n- one\n- two\n\n"))

    assert written(console) == " • one\n • two\n"


# -- words ---------------------------------------------------------------------------------------


def completion(**given: object) -> Completion:
    known = {"run_id": "r", "conversation_id": "c", "request_id": "q", "turn": 1}
    return Completion(**{**known, "status": "succeeded", **given})  # type: ignore[arg-type]  # as above


def test_a_turn_is_accounted_for_in_a_line() -> None:
    usage = TokenUsage(input_tokens=1234, output_tokens=56)
    known = completion(model="m:x", usage=usage, cost_usd=0.00213, tool_calls=1)

    assert turns.account(known, took_s=4.21) == (
        "m:x · 1.23k tokens in, 56 out · $0.0021 · 1 tool call · 4.2 s"
    )
    assert "cost unknown" in turns.account(completion())
    assert turns.tokens(TokenUsage(input_tokens=1, output_tokens=1)) == "1 token in, 1 out"
    assert turns.dollars(0.00001) == "<$0.0001"
    assert turns.dollars(0) == "$0"
    assert turns.dollars(1234.5) == "$1,234.50"


def test_a_spinner_says_what_the_turn_waits_for_and_counts_down() -> None:
    progress = turns.Progress()

    progress.take(StatusChunk(waits_for="retry", message="rate limited", delay_s=4.2))
    assert str(progress) == "trying again in 4 s"
    progress.take(StatusChunk(waits_for="slot", message="3 are before this one"))
    assert str(progress) == "3 are before this one"
    progress.take(ToolCallChunk(attempt=1, offset=0, call_id="c", name="look", arguments="{}"))
    assert str(progress) == "calling look"
    progress.take(text("words"))
    assert str(progress) == ""


def test_a_countdown_that_has_ended_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = turns.Progress()
    progress.take(StatusChunk(waits_for="retry", message="", delay_s=4.0))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 9)

    assert str(progress) == "trying again"


def test_each_kind_of_error_has_its_exit_code() -> None:
    kinds = [UsageError, output.NotRunning, NotFound, Denied, Unavailable, TimedOut, Conflict]

    assert [output.exit_code(kind("x")) for kind in kinds] == [2, 3, 4, 5, 6, 7, 1]


def test_a_plugin_that_is_not_there_is_told_with_the_next_step() -> None:
    assert "ksi health" in output.reason(NotFound("nothing answers 'completion:stream'"))
    assert output.reason(KsiError("else")) == "else"


def test_text_that_reorders_a_line_is_made_visible() -> None:
    assert output.clean("a\u202eb\x1bc") == "a\\u202eb\\x1bc"


# -- files and commands --------------------------------------------------------------------------


def test_a_text_file_is_quoted_in_a_fence_that_holds(tmp_path: Path) -> None:
    part, quoted = _file_part(Path("a.md"), b"x\n```\ny\n```\n")

    assert part is None
    assert quoted == "a.md:\n````\nx\n```\ny\n```\n````"


def test_an_image_is_handed_over_as_it_is_and_other_bytes_are_refused() -> None:
    part, _ = _file_part(Path("a.png"), b"\x89PNG")

    assert part == {"kind": "file", "media_type": "image/png", "data": "iVBORw==", "name": "a.png"}
    with pytest.raises(UsageError, match=r"a\.bin is neither text"):
        _file_part(Path("a.bin"), b"\xff\xfe\x00")


def test_every_slash_command_says_what_it_does() -> None:
    wanted = {"model", "new", "resume", "history", "export", "usage", "retry", "stop", "help"}

    assert set(SHOWN) == {*wanted, "quit"}
    assert all(command.__doc__ for command in COMMANDS.values())


def test_a_message_of_the_past_is_written_for_people() -> None:
    parts = [
        {"kind": "thinking", "text": "hm"},
        {"kind": "text", "text": "Look:"},
        {"kind": "tool_call", "id": "1", "name": "look", "arguments": '{"at": 1}'},
        {"kind": "file", "media_type": "image/png", "name": None},
    ]

    assert text_of({"parts": parts}) == 'Look:\n\n`look{"at": 1}`\n\n[image/png]'


def test_a_conversations_id_makes_a_safe_file_name() -> None:
    assert safe_name("../a b/é") == "___a_b_é"


def test_an_accepted_turn_waits_for_its_model() -> None:
    progress = turns.Progress()
    progress.take(AcceptedChunk(run_id="r", conversation_id="c", request_id="q"))

    assert str(progress) == "waiting for the model"


def test_a_turn_that_can_not_be_followed_to_its_end_has_not_failed() -> None:
    asking, refused = Asking({}, shows_text=False), Asking({}, shows_text=False)
    asking._take(AcceptedChunk(run_id="r", conversation_id="c", request_id="q"))
    lost = Unavailable("the daemon did not come back", details={"run_id": "r"})
    ids = {"run_id": "r", "conversation_id": "c", "request_id": "q"}

    report = asking._report(lost)

    assert (report.status, report.run_id, report.conversation_id) == ("running", "r", "c")
    assert report.error == lost.body
    assert _exit_code(report, is_interrupted=False) == output.TIMED_OUT
    assert asking._report(Unavailable("no model answers", details=ids)).status == "failed"
    assert refused._report(lost).status == "failed"
