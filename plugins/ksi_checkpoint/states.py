"""What a plugin gives away to be saved, in the form in which it is kept, and how it is checked."""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct

from ksi_daemon.protocol import Conflict, ErrorBody, Failed, InvalidData, KsiError
from ksi_daemon.protocol.wire import DECODE_ERRORS, ENCODE_ERRORS
from ksi_daemon.router import Contribution

MAX_NAME_LENGTH: Final = 300
MAX_MESSAGE_LENGTH: Final = 1000


class Saved(Struct, frozen=True, kw_only=True):
    """One plugin's entry: its state, or why there is none.

    Attributes:
        plugin: Whose it is.
        version: Of the state's form, as the plugin counts.
        state: JSON.
        checksum: Of all that.
        error: Why there is no state.
    """

    plugin: str
    version: int | None = None
    state: bytes | None = None
    checksum: bytes | None = None
    error: ErrorBody | None = None


class _Answer(Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, Meta(ge=0, lt=2**31)]
    state: Raw


def checksum_of(plugin: str, version: int, state: bytes) -> bytes:
    """Fingerprint a state together with whose it is, so that rows can't be mixed up either."""
    return hashlib.sha256(msgspec.json.encode((plugin, version)) + state).digest()


def is_sound(plugin: str, version: int, state: bytes, checksum: bytes) -> bool:
    """Say whether a state is what was saved."""
    return hmac.compare_digest(checksum_of(plugin, version, state), checksum)


def told(error: KsiError | ErrorBody) -> ErrorBody:
    """Return an error as it is kept and shown: in bounds, and text that a database takes."""
    message = error.message[:MAX_MESSAGE_LENGTH].encode("utf-8", "replace").decode()
    return ErrorBody(error.code, message.replace("\0", "�"))


def saved_of(
    answers: Iterable[Contribution], *, max_state_bytes: int, max_checkpoint_bytes: int
) -> list[Saved]:
    """Make the entries of what plugins have answered; one that can't be kept says why.

    A plugin that has answered nothing has no entry.
    """
    known = [each for each in answers if is_name(each.plugin)]
    several = {plugin for plugin, n in Counter(each.plugin for each in known).items() if n > 1}
    entries: dict[str, Saved] = {}
    room = max_checkpoint_bytes
    for answer in known:
        try:
            if answer.plugin in several:
                raise Conflict("it contributes several states: make them one")
            made = _saved(answer, max_state_bytes, room, max_checkpoint_bytes)
        except KsiError as error:
            made = Saved(plugin=answer.plugin, error=told(error))
        if made is not None:
            entries[answer.plugin] = made
            room -= len(made.state or b"")
    return list(entries.values())


def is_name(plugin: str) -> bool:
    """Say whether somebody has a name that can be kept; a client may bear any."""
    return len(plugin) <= MAX_NAME_LENGTH and plugin.isprintable()


def _saved(answer: Contribution, most: int, room: int, in_all: int) -> Saved | None:
    if answer.error is not None:
        return Saved(plugin=answer.plugin, error=told(answer.error))
    if answer.result is None:
        return None
    found = _read(answer.result)
    state = bytes(found.state)
    if len(state) > most:
        raise InvalidData(
            f"its state has {len(state)} bytes, and checkpoint.max_state_bytes allows {most}"
        )
    if len(state) > room:
        raise InvalidData(
            f"its state has {len(state)} bytes, and the others have left {room} of the {in_all} "
            "that checkpoint.max_checkpoint_bytes allows"
        )
    return Saved(
        plugin=answer.plugin,
        version=found.version,
        state=state,
        checksum=checksum_of(answer.plugin, found.version, state),
    )


def _read(result: Any) -> _Answer:
    try:
        return msgspec.json.decode(msgspec.json.encode(result), type=_Answer)
    except (*ENCODE_ERRORS, *DECODE_ERRORS) as error:
        raise Failed(
            f"its answer to checkpoint:collect is not a version and a state: {error}"
        ) from error
