"""Images and files in messages: what is read of them, and what is refused with a reason."""

from typing import Any

import pytest

from ksi_daemon.protocol import InvalidData
from ksi_http.agui import inputs, parts
from ksi_http.agui.inputs import InputMessage

PIXEL = "iVBORw0KGgo="
PNG = {"type": "data", "value": PIXEL, "mimeType": "image/png"}


def message(*content: dict[str, Any]) -> InputMessage:
    return InputMessage(id="u1", role="user", content=list(content))


def linked(kind: str, address: str, mime_type: str | None = None) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "url", "value": address, "mimeType": mime_type}}


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ({"type": "image", "source": PNG}, {"media_type": "image/png", "data": PIXEL}),
        (
            {"type": "document", "source": PNG, "metadata": {"filename": "a.png"}},
            {"media_type": "image/png", "data": PIXEL, "name": "a.png"},
        ),
        (
            {"type": "binary", "mimeType": "audio/wav", "data": PIXEL, "filename": "a.wav"},
            {"media_type": "audio/wav", "data": PIXEL, "name": "a.wav"},
        ),
        (
            linked("image", f"data:image/gif;base64,{PIXEL}"),
            {"media_type": "image/gif", "data": PIXEL},
        ),
        (
            linked("image", "https://h.example/a"),
            {"media_type": "image/png", "url": "https://h.example/a"},
        ),
        (
            linked("document", "https://h.example/a.pdf?x"),
            {"media_type": "application/pdf", "url": "https://h.example/a.pdf?x"},
        ),
        (
            {"type": "binary", "mimeType": "image/webp", "url": "http://h.example/b"},
            {"media_type": "image/webp", "url": "http://h.example/b"},
        ),
    ],
)
def test_a_file_goes_to_the_model_by_its_data_or_its_address(
    part: dict[str, Any], file: dict[str, Any]
) -> None:
    said = inputs.messages_of([message({"type": "text", "text": "See:"}, part)])

    expected = [{"kind": "text", "text": "See:"}, {"kind": "file", **file}]
    assert said == [{"role": "user", "parts": expected}]


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"type": "image", "source": {**PNG, "value": "no base64!"}}, "no base64"),
        ({"type": "image", "source": {**PNG, "mimeType": None}}, "needs its mimeType"),
        ({"type": "image", "source": {**PNG, "type": "file"}}, "somebody else's"),
        ({"type": "image"}, "these with a source"),
        ({"type": "smell", "source": PNG}, "'smell' is not read"),
        ({"type": "binary", "mimeType": "image/png", "id": "x"}, "its data, or by its url"),
        (linked("image", "file:///etc/passwd"), "http or https"),
        (linked("image", "https://h.example/" + "a" * 9000), "http or https"),
        (linked("image", "data:image/png,abc"), "base64"),
        (linked("video", "https://h.example/a.mp4"), "no video/mp4: send its data"),
        (linked("document", "https://h.example/a"), "no document: send its data"),
        ({"text": "no type"}, "type"),
    ],
)
def test_what_can_t_be_read_is_refused_with_the_message_and_the_reason(
    part: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidData) as refused:
        inputs.messages_of([message(part)])

    assert "the message u1" in refused.value.message
    assert why in refused.value.message


def test_files_are_bounded_in_number_over_the_whole_request() -> None:
    image = {"type": "image", "source": PNG}
    said = [message(*[image] * 10), message(*[image] * (parts.MAX_FILES - 9))]

    with pytest.raises(InvalidData, match="20 files at most, not 21"):
        inputs.messages_of(said)


def test_others_than_users_send_text_alone() -> None:
    said = InputMessage(id="t1", role="tool", content=[{"type": "image", "source": PNG}])

    with pytest.raises(InvalidData, match="the message t1 has more than text"):
        inputs.text_of(said)
