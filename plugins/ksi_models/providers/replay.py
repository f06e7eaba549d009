"""Records what providers answer, and answers with it again: ``replay/<cassette>``.

A cassette is a file ``<home>/cassettes/<name>.jsonl`` with a line for each call: what tells its
question from others, and the answer or the error. It holds no questions and no keys.
"""

import asyncio
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ksi_models.events import TextDelta, ThinkingDelta, ToolCallDelta, Usage
from ksi_models.provider import Answered, Delta, Kind, KnownModel, Provider, ProviderError, Question

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_CASSETTE_BYTES: Final = 256 * 1024 * 1024
MAX_LISTENERS: Final = 1000
CONTEXT_TOKENS: Final = 200_000


class Failure(Struct, frozen=True, omit_defaults=True):
    """An error, as it is recorded."""

    kind: Kind
    message: str
    retry_after_s: float | None = None


class Take(Struct, frozen=True, omit_defaults=True):
    """A call, as it is recorded: its pieces, and the answer or the error that ended it."""

    question: str
    model: str
    deltas: tuple[TextDelta | ThinkingDelta | ToolCallDelta, ...] = ()
    answered: Answered | None = None
    failure: Failure | None = None


_TAKE: Final = msgspec.json.Decoder(Take)


def digest_of(question: Question) -> str:
    """Return what tells a question from others, whoever asks it, and which model."""
    asked = (
        question.system,
        question.messages,
        question.tools,
        question.settings,
        question.output_schema,
    )
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()


def cassette_file(folder: Path, name: str) -> Path:
    """Return a cassette's file.

    Raises:
        ProviderError: That is no name of a cassette.
    """
    if not NAME.fullmatch(name):
        raise ProviderError(
            "not_found", "a cassette's name is letters, digits, dots, dashes and underscores"
        )
    return folder / f"{name}.jsonl"


class Recorder:
    """A provider whose answers are recorded."""

    def __init__(self, provider: Provider, file: Path, redacted: Callable[[str], str]) -> None:
        self.name = provider.name
        self._provider = provider
        self._file = file
        self._redacted = redacted

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Ask, and record how that ended; what is given up is not recorded."""
        deltas: list[TextDelta | ThinkingDelta | ToolCallDelta] = []
        try:
            async with aclosing(self._provider.stream(question)) as answer:
                async for delta in answer:
                    if isinstance(delta, Answered):
                        await self._record(question, tuple(deltas), delta, None)
                    else:
                        deltas.append(delta)
                    yield delta
        except ProviderError as error:
            failure = Failure(error.kind, error.message, error.retry_after_s)
            await self._record(question, tuple(deltas), None, failure)
            raise

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Turn texts into vectors, which is not recorded."""
        return await self._provider.embed(model, texts)

    async def models(self) -> list[KnownModel]:
        """Ask which models there are."""
        return await self._provider.models()

    async def why_not(self) -> str | None:
        """Say why it can't be used."""
        return await self._provider.why_not()

    async def close(self) -> None:
        """End what it has opened."""
        await self._provider.close()

    async def _record(
        self,
        question: Question,
        deltas: tuple[TextDelta | ThinkingDelta | ToolCallDelta, ...],
        answered: Answered | None,
        failure: Failure | None,
    ) -> None:
        take = Take(
            question=digest_of(question),
            model=f"{self.name}:{question.model}",
            deltas=deltas,
            answered=answered,
            failure=failure,
        )
        line = self._redacted(msgspec.json.encode(take).decode()).encode() + b"\n"
        await asyncio.to_thread(_append, self._file, line)


def _append(file: Path, line: bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(opened, "ab", buffering=0) as stream:
        stream.write(line)


class Cassette(Struct):
    """A cassette as it was read, and which of its takes each conversation has had."""

    changed_at: float
    takes: list[Take]
    had: OrderedDict[str, set[int]]


class Replay:
    """Answers with what was recorded, and asks nobody.

    A question is answered with the first take of it that its conversation has not had yet. One
    that was never recorded like that gets the next take of any: a date in a prompt does not make a
    recording useless. The last take of a question is given again and again.
    """

    name = "replay"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cassettes: dict[str, Cassette] = {}

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Answer as it was recorded."""
        cassette = await asyncio.to_thread(self._load, question.model)
        take = _next_take(cassette, question)
        for delta in take.deltas:
            yield delta
        if take.answered is None:
            failure = take.failure or Failure("cut_off", "the recording ends here")
            raise ProviderError(failure.kind, failure.message, retry_after_s=failure.retry_after_s)
        yield take.answered

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Refuse: vectors are not recorded."""
        raise ProviderError("refused", "vectors are not recorded")

    async def models(self) -> list[KnownModel]:
        """Return the cassettes."""
        files = await asyncio.to_thread(lambda: sorted(self._folder.glob("*.jsonl")))
        names = (file.name.removesuffix(".jsonl") for file in files)
        return [
            KnownModel(name=name, context_tokens=CONTEXT_TOKENS)
            for name in names
            if NAME.fullmatch(name)
        ]

    async def why_not(self) -> str | None:
        """Say that nothing was recorded yet."""
        if await self.models():
            return None
        return "nothing is recorded; name a cassette in models.cassette, and ask a model"

    async def close(self) -> None:
        """Forget who has had what."""
        self._cassettes.clear()

    def _load(self, name: str) -> Cassette:
        """Read a cassette, anew where it has changed."""
        file = cassette_file(self._folder, name)
        try:
            found = file.stat()
            known = self._cassettes.get(name)
            if known is not None and known.changed_at == found.st_mtime:
                return known
            if found.st_size > MAX_CASSETTE_BYTES:
                raise ProviderError("invalid", f"the cassette {name} is too large to be read")
            takes = _TAKE.decode_lines(file.read_bytes())
        except FileNotFoundError as error:
            raise ProviderError("not_found", f"there is no cassette {name}") from error
        except OSError as error:
            raise ProviderError(
                "invalid", f"the cassette {name} can't be read: {error.strerror}"
            ) from error
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProviderError("invalid", f"the cassette {name} is broken: {error}") from error
        had = known.had if known is not None else OrderedDict()
        self._cassettes[name] = Cassette(found.st_mtime, takes, had)
        return self._cassettes[name]


def _next_take(cassette: Cassette, question: Question) -> Take:
    key = f"{question.tenant}\n{question.conversation or ''}"
    had = cassette.had.setdefault(key, set())
    cassette.had.move_to_end(key)
    if len(cassette.had) > MAX_LISTENERS:
        cassette.had.popitem(last=False)
    digest = digest_of(question)
    same = [i for i, take in enumerate(cassette.takes) if take.question == digest]
    fresh = [i for i in same if i not in had] or same[-1:]
    if not fresh:
        fresh = [i for i in range(len(cassette.takes)) if i not in had]
    if not fresh:
        raise ProviderError("not_found", "the cassette has no further answer; record it anew")
    had.add(fresh[0])
    return cassette.takes[fresh[0]]
