"""Answers without any model: quotes what was said, with its source, or says that nothing was."""

import asyncio
import html
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import chain
from typing import Final

from ksi_models.events import Message, TextPart, ToolResultPart, Usage
from ksi_models.provider import Delta, KnownModel, ProviderError, Question
from ksi_models.providers.answer import AnswerBuilder
from ksi_models.providers.ranking import Passage, best_passages

NAME: Final = "extractive"
WHO: Final = "I am no language model: I can only quote what was said here, or is remembered."
HOW: Final = (
    "For a real answer log in with `claude`, set ANTHROPIC_API_KEY or OPENAI_API_KEY, or run a "
    "local server such as Ollama."
)
NOTHING: Final = f"{WHO} Nothing in that is about your question.\n\n{HOW}"
MAX_QUOTES: Final = 3
MAX_PASSAGE_CHARACTERS: Final = 500
MAX_READ_CHARACTERS: Final = 1_000_000  # the newest; it takes a second or two to read them
CONTEXT_TOKENS: Final = 200_000

# How conversations set off what was looked up, and what sums up their beginning.
FENCE: Final = re.compile(
    r"^<(context|summary)( [^>\n]*)?>\n(.*?)\n</\1>", re.DOTALL | re.MULTILINE
)
ATTRIBUTE: Final = re.compile(r'(title|sources)="([^"]*)"')
# A file that was handed over with a question, as `ksi ask --file` does it.
FILE: Final = re.compile(r"\A([^\n]{1,200}):\n(`{3,})\n(.*)\n\2\Z", re.DOTALL)
PARAGRAPH: Final = re.compile(r"\n[ \t]*\n")
# A line that goes on in small letters was only wrapped.
SENTENCE: Final = re.compile(r"(?<=[.!?…。！？])[\"'”’»)]*\s+|\n(?![ \t]*[a-zäöüàéèß(])")
QUESTION: Final = re.compile(r"[?？]\W*$")


class Extractive:
    """``builtin/extractive``: it quotes, and is always there."""

    name = "builtin"

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Answer with what was said about the last thing that the user said."""
        if question.model != NAME:
            raise ProviderError("not_found", f"there is no builtin/{question.model}, only {NAME}")
        text = await asyncio.to_thread(answer_to, question)
        answer = AnswerBuilder()
        for piece in re.split(r"(?<=\n\n)", text):
            answer.text(piece)
            for delta in answer.take():
                yield delta
        yield answer.answered("stop", Usage(), served=NAME)

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Refuse: it makes no vectors."""
        raise ProviderError("refused", "builtin/extractive makes no vectors")

    async def models(self) -> list[KnownModel]:
        """Return the only one."""
        return [KnownModel(name=NAME, context_tokens=CONTEXT_TOKENS)]

    async def why_not(self) -> str | None:
        """It always can."""
        return None

    async def close(self) -> None:
        """There is nothing to end."""


def answer_to(question: Question) -> str:
    """Return the quotes that answer a question, or that there are none."""
    asked, attached, earlier = _asked(question.messages)
    passages = chain(_attachments(attached), passages_of(question.system, earlier))
    found = best_passages(asked, _newest(passages, asked), MAX_QUOTES)
    if not found:
        return NOTHING
    quotes = [f"{_quoted(passage.text)}\n— {passage.source}" for passage in found]
    return "\n\n".join([WHO, *quotes])


def _asked(
    messages: tuple[Message, ...],
) -> tuple[str, list[str], list[tuple[int, Message]]]:
    """Return what is asked, what was handed over with it, and the other messages, numbered."""
    numbered = list(enumerate(messages, 1))
    for number, message in reversed(numbered):
        if message.role == "user":
            texts = [part.text for part in message.parts if isinstance(part, TextPart)]
            others = [each for each in numbered if each[0] != number]
            return "".join(texts[:1]), texts[1:], others
    return "", [], numbered


def _attachments(texts: Iterable[str]) -> Iterator[Passage]:
    for text in texts:
        file = FILE.match(text)
        yield from _cut(file[3], file[1]) if file else _cut(text, "what came with the question")


def _newest(passages: Iterable[Passage], asked: str) -> list[Passage]:
    """Return the passages that may answer: no questions, and of no more text than is bearable."""
    kept: list[Passage] = []
    room = MAX_READ_CHARACTERS
    for passage in passages:
        room -= len(passage.text)
        if room < 0:
            break
        if not QUESTION.search(passage.text) and passage.text != asked.strip():
            kept.append(passage)
    return kept


def passages_of(system: str | None, messages: list[tuple[int, Message]]) -> Iterator[Passage]:
    """Yield what can be quoted: messages, the newest first, then what was looked up or summed up.

    Whatever else stands in a prompt tells a model what to do, and is nobody's statement.
    """
    for number, message in reversed(messages):
        if message.role == "system":
            yield from _sections(_text(message))
        elif not _text(message).startswith(WHO):
            yield from _cut(_text(message), f"message {number} ({message.role})")
        for part in message.parts:
            if isinstance(part, ToolResultPart) and not part.is_error:
                yield from _cut(part.content, f"message {number} (result of {part.name})")
    yield from _sections(system or "")


def _sections(text: str) -> Iterator[Passage]:
    for kind, attributes, body in FENCE.findall(text):
        told = {name: html.unescape(value) for name, value in ATTRIBUTE.findall(attributes)}
        source = told.get("title") or f"the {kind}"
        yield from _cut(body, f"{source} ({told['sources']})" if told.get("sources") else source)


def _cut(text: str, source: str) -> Iterator[Passage]:
    """Yield paragraphs; those that are long, by their sentences."""
    for paragraph in PARAGRAPH.split(text):
        stripped = paragraph.strip()
        if not stripped:
            continue
        if len(stripped) <= MAX_PASSAGE_CHARACTERS and "?" not in stripped:
            yield Passage(stripped, source)
        else:
            for sentence in SENTENCE.split(stripped):
                if sentence.strip():
                    yield Passage(_shortened(sentence.strip()), source)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_PASSAGE_CHARACTERS else text[:MAX_PASSAGE_CHARACTERS] + " …"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _text(message: Message) -> str:
    return "\n\n".join(part.text for part in message.parts if isinstance(part, TextPart))
