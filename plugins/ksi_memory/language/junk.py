"""Tells what is not worth remembering, and what of a message its sender said himself."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final


def word_set(text: str) -> frozenset[str]:
    """Return the words of a list that is written as a text."""
    return frozenset(text.split())


MAX_CHARACTERS: Final = 20_000  # of a message that is looked at: more is a document, not talk
MAX_SENTENCE: Final = 600  # characters; what is longer is no sentence
LEAST_WORDS: Final = 2
MAX_PLEASANTRY: Final = 12  # words
CODE_SHARE: Final = 0.12  # of a text's characters that code has for its own

_FENCE: Final = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)
_CODE_SPAN: Final = re.compile(r"`[^`\n]*`")
_TAG: Final = re.compile(r"<(/?)([A-Za-z][\w-]*)\b[^<>]{0,500}>")
_URL: Final = re.compile(r"\b(?:https?://|www\.)\S+")
_LOG_LINE: Final = re.compile(
    r"""^\s*(?:
        \d{4}-\d\d-\d\d[T ]\d\d:\d\d | \[?\d\d:\d\d:\d\d | \[\d+\] |
        (?:DEBUG|INFO|WARN|WARNING|ERROR|FATAL|TRACE|CRITICAL)\b[\s:\]] |
        Traceback\b | File\ "[^"]*",\ line | at\ [\w.$<>]+\( | [\w.]+(?:Error|Exception)\b: |
        [$#%❯]\s | >>>\s | \.\.\.\s | (?:@@|\+\+\+|---)\s | diff\ --git\b | [+-]\s*\w+\s*[=({;] |
        \|.*\|\s*$ | [{}\[\]()<>;,]+\s*$ | "[^"]+"\s*: |
        (?:import|from|def|class|return|const|let|var|function|public|private|SELECT|INSERT|
           UPDATE|DELETE|CREATE)\b.*[:;({=*,)]\s*$ |
        \w+\s*(?:=|:=|\+=)\s*\S
    )""",
    re.VERBOSE,
)
_SYMBOLS: Final = re.compile(r"[{}\[\]();=<>|\\$_^~#*/+]")
_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# What follows is given to be worked on, and says nothing of who gives it.
_MATERIAL: Final = re.compile(
    r"""^\W*(?:(?:can|could|would|will)\s+you\s+|please\s+|pls\s+|now\s+|i\s+(?:want|need)\s+you\s+to\s+|
        help\s+me\s+(?:to\s+)?)*
        (?:translate|rewrite|re-write|rephrase|paraphrase|proofread|proof-read|correct|summari[sz]e|
           shorten|improve|polish|fix\s+(?:the\s+)?(?:grammar|spelling|text|sentence)|classify|
           transcribe|explain|analy[sz]e|review|parse|extract|repeat|quote|say|write|draft|compose|
           generate|continue|complete|finish|edit|what\s+does|how\s+do\s+(?:you|i)\s+say|
           respond\s+to|reply\s+to|answer\s+this|make\s+this|turn\s+this|roleplay|role-play|
           pretend|imagine|act\s+as|you\s+are|suppose|let'?s\s+say|assume)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_SECRET_TOLD: Final = re.compile(
    r"""\b(?:password|passphrase|passcode|passwort|pin(?:\s+(?:code|number))?|api[\s_-]?key|
        secret(?:\s+key)?|access[\s_-]?token|auth(?:entication|orization)?\s+token|private\s+key|
        seed\s+phrase|recovery\s+(?:code|phrase|key)|cvv|cvc|credit\s+card|card\s+number|iban|
        social\s+security|ssn|passport\s+number)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_SECRET_SHAPE: Final = re.compile(
    r"""\b(?:sk|pk|rk|ghp|gho|ghs|glpat|xox[abprs]|AKIA|ASIA|AIza|hf|npm|pypi)[-_]?[A-Za-z0-9_-]{12,}
        |-----BEGIN\ [A-Z ]*PRIVATE\ KEY
        |\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}
        |\b(?:\d[ -]?){13,19}\b
        |://[^\s/:@]+:[^\s/@]+@""",
    re.VERBOSE,
)
_UNRECORDED: Final = re.compile(
    r"""\b(?:off\s+the\s+record
        |(?:do\s+not|don['’]?t|please\s+don['’]?t|no\s+need\s+to)\s+
         (?:remember|save|store|keep|memori[sz]e|record)\s+(?:this|that|it|any\s+of\s+(?:this|that))
        |forget\s+(?:i|that\s+i)\s+(?:said|told|mentioned))\b""",
    re.IGNORECASE | re.VERBOSE,
)

_PLEASANTRIES: Final = word_set(
    """a again ahead all alright am and appreciate are as awesome be best bye care cheers clear
    cool correct cya day did do done evening everything exactly excellent fantastic fine for
    friday fun gladly go going good goodbye goodnight got great guess haha hahaha have hello
    help hey hi hiya hm hmm hope how i i'll i'm im in is it it's job just know later lol looks
    love lot lots makes many me morning much my nah nice night nm no noon nope not now of oh ok
    okay okey on perfect please pleasure pm problem really right see sense sir so sounds sup
    super sure take talk thank thanks that that's thats the then there this thx time to today
    tomorrow too ty understood up very wait was weekend welcome well what's wonderful works wow
    yeah yep yes yo you you're your afternoon amazing brilliant absolutely agreed bot buddy dude
    friend mate man assistant one moment second sec"""
)
_THANKS: Final = re.compile(r"\b(?:thanks?|thank\s+you|thx|ty|cheers|appreciate)\b", re.IGNORECASE)
_GREETING: Final = re.compile(
    r"^\W*(?:hi|hello|hey|hiya|yo|good\s+(?:morning|evening|afternoon|night)|bye|goodbye|see\s+you)\b",
    re.IGNORECASE,
)
_QUESTION: Final = re.compile(
    r"""^\W*(?:(?:and|but|so|ok|okay|hey|hi|hello|then|well|btw|by\s+the\s+way)[,\s]+)*
        (?:who|whom|whose|what|what's|which|when|where|why|how|is|are|am|was|were|do|does|did|can|
           could|would|will|should|shall|may|might|has|have\s+(?:you|i|we|they)|had|isn't|aren't|
           don't\s+(?:you|i|we|they)|doesn't|didn't|can't\s+(?:you|i|we)|won't)\s""",
    re.IGNORECASE | re.VERBOSE,
)
_POINTING: Final = re.compile(
    r"""^\W*(?:this|that|these|those|it|they|them|he|she|him|her|here|there|the\s+above|the\s+below|
        the\s+(?:following|previous|last|first|second|third|other|former|latter|same)\b)
        (?=\W|$)""",
    re.IGNORECASE | re.VERBOSE,
)
_TOOL_NOISE: Final = re.compile(
    r"""^\W*(?:ok|success|succeeded|done|error|failed|failure|exit\s+code|status|stdout|stderr|
        null|none|true|false|undefined|nan|no\s+(?:results?|matches|output|such\s+file)|
        \d+\s+(?:passed|failed|rows?|files?|results?|matches|errors?|warnings?|bytes?))\b
        [\s:=,.]*[\w./:-]*\W*$""",
    re.IGNORECASE | re.VERBOSE,
)
_ABBREVIATIONS: Final = word_set(
    "dr mr mrs ms prof st jr sr vs etc no approx inc ltd co e.g i.e a.m p.m al fig dept mt"
)


def folded(text: str) -> str:
    """Return a text as it is compared: without case, accents, punctuation and outer blanks."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(each for each in plain if not unicodedata.combining(each))
    return " ".join(_WORD.findall(kept))


def words_of(text: str) -> list[str]:
    """Return the words of a text, as they are written."""
    return _WORD.findall(text)


def is_off_the_record(text: str) -> bool:
    """Say whether a message asks that it be not remembered."""
    return _UNRECORDED.search(text[:MAX_CHARACTERS]) is not None


def is_material(text: str) -> bool:
    """Say whether a message hands over a text to be worked on, and is not about its sender.

    Only where something follows: a colon, a quote or another line; "explain recursion" has none.
    """
    return _MATERIAL.match(text) is not None and re.search(r"[:\n\"“”«]", text) is not None


def own_sentences(text: str) -> Iterator[str]:
    """Yield the sentences that a message's sender says himself: no code, quotes, logs or material.

    Args:
        text: The message; of a long one the beginning and the end are looked at.
    """
    if not is_off_the_record(text) and not is_material(text[:MAX_CHARACTERS]):
        yield from plain_sentences(text)


def plain_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text that are no code, quotes or logs."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS // 2]}\n{text[-MAX_CHARACTERS // 2 :]}"
    text = _FENCE.sub("\n", text)
    text = _without_elements(text)
    for line in text.splitlines():
        if line.startswith((" " * 4, "\t", ">")) or line.lstrip().startswith((">", "|")):
            continue
        if _LOG_LINE.match(line):
            continue
        yield from _sentences(line)


def _without_elements(text: str) -> str:
    """Take out what stands between an opening tag and its end: a paste, marked as one."""
    for _ in range(20):
        opening = next((found for found in _TAG.finditer(text) if not found[1]), None)
        if opening is None:
            return _TAG.sub(" ", text)
        end = re.compile(rf"</{re.escape(opening[2])}\s*>", re.IGNORECASE).search(
            text, opening.end()
        )
        stop = end.end() if end else opening.end()
        text = f"{text[: opening.start()]}\n{text[stop:]}"
    return _TAG.sub(" ", text)


def _sentences(line: str) -> Iterator[str]:
    line = re.sub(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+", "", line)
    start = 0
    for stop in re.finditer(r"[.!?…]+[\"”'’)\]]*(?=\s|$)", line):
        before = line[start : stop.start()].split()
        last = before[-1].lower().lstrip("(") if before else ""
        is_short = last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i")
        if stop[0].startswith(".") and is_short and stop.end() < len(line):
            continue
        yield from _sentence(line[start : stop.end()])
        start = stop.end()
    yield from _sentence(line[start:])


def _sentence(text: str) -> Iterator[str]:
    text = " ".join(text.split())
    if text and len(text) <= MAX_SENTENCE:
        yield text


def is_question(sentence: str) -> bool:
    """Say whether a sentence asks."""
    return sentence.rstrip("\"”'’) ").endswith("?") or _QUESTION.match(sentence) is not None


def is_pointing(text: str) -> bool:
    """Say whether a text means something only beside what it points at."""
    return _POINTING.match(text) is not None


def is_secret(text: str) -> bool:
    """Say whether a text tells a password, a key or a card's number."""
    return _SECRET_TOLD.search(text) is not None or _SECRET_SHAPE.search(text) is not None


def is_code(text: str) -> bool:
    """Say whether a text is code, a log or markup for the most part."""
    without = _CODE_SPAN.sub(" ", _FENCE.sub("\n", text))
    if len(without.strip()) < len(text.strip()) / 2:
        return True
    lines = [line for line in without.splitlines() if line.strip()]
    noisy = sum(1 for line in lines if _LOG_LINE.match(line) or line.startswith((" " * 4, "\t")))
    symbols = len(_SYMBOLS.findall(_URL.sub("", without)))
    return noisy * 2 > len(lines) or symbols > CODE_SHARE * max(len(without), 40)


def is_pleasantry(text: str) -> bool:
    """Say whether a text is a greeting, thanks or a nod, and nothing else."""
    words = folded(text).split()
    strange = [word for word in words if word not in _PLEASANTRIES]
    if not strange and len(words) <= MAX_PLEASANTRY:
        return True
    begins = _THANKS.search(text) or _GREETING.match(text)
    return begins is not None and len(words) <= 8 and len(strange) <= 1


def why_junk(text: str, known: Collection[str] = ()) -> str | None:
    """Return why a text is not worth remembering; ``None`` where it is.

    Args:
        text: What might be remembered, on its own.
        known: What is remembered already, `folded`.
    """
    text = text.strip()
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: len(words_of(text)) < LEAST_WORDS, "it is too short to mean anything"),
        (lambda: is_secret(text), "it tells a secret, which has no place in a model's window"),
        (lambda: _TOOL_NOISE.match(text) is not None, "it is a tool's noise"),
        (lambda: is_pleasantry(text), "it is a pleasantry"),
        (lambda: is_question(text), "it is a question"),
        (lambda: is_code(text), "it is code or a log"),
        (lambda: not words_of(_URL.sub("", text)), "it is an address and nothing else"),
        (lambda: is_pointing(text), "it points at something that is not there"),
        (lambda: folded(text) in known, "it is remembered already"),
    )
    return next((why for is_so, why in checks if is_so()), None)


def first_said(texts: Sequence[str]) -> list[str]:
    """Return texts without those that say what one before has said."""
    seen: set[str] = set()
    kept = []
    for text in texts:
        plain = folded(text)
        if plain and plain not in seen:
            seen.add(plain)
            kept.append(text)
    return kept
