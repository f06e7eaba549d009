"""The REM dialect: reads what people and models ask of the memory, and writes it down again.

    LOOKUP key[, key…]
    SEARCH "text" [FROM table] [FIELD f] [LIMIT n] [MIN_SIMILARITY x] [CATEGORY c] [SINCE t] …
    FUZZY "text" [THRESHOLD x] [LIMIT n]
    TRAVERSE "key" [DEPTH n] [TYPE relation[, relation…]] [DIRECTION out|in|both] [LOAD]
    TIMELINE [conversation|user|key] [SINCE t] [UNTIL t] [LIMIT n]
    SQL SELECT …

A question is cut into words, strings and commas; from the first word that begins a clause on it is
clauses, and before that it is what the question is about, taken as it stands. Which word begins a
clause is the one thing that is not plain, since people leave out quotes:

- after a text in quotes, any word does;
- ``key=value`` does;
- a keyword in capitals does, unless all is in capitals;
- any other keyword does where the rest of the question is made of clauses. One that is also a
  common word, such as *from*, does only with a value that fits.

Every error has the position of what is wrong, and shows it with a caret.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_daemon.protocol.names import did_you_mean
from ksi_memory.events import MemoryQuery, Mode
from ksi_memory.querying.rem_times import EXAMPLES, looks_like_time, read_time

TABLES: Final = (
    "resources",
    "ontologies",
    "entities",
    "moments",
    "facts",
    "associations",
    "patterns",
    "schemas",
    "files",
    "feedback",
    "servers",
    "tools",
    "users",
)
COMMANDS: Final[dict[str, Mode]] = {
    "LOOKUP": "lookup",
    "SEARCH": "search",
    "FUZZY": "fuzzy",
    "TRAVERSE": "traverse",
    "TIMELINE": "timeline",
    "SQL": "sql",
}
# The words that statements of SQL begin with. Which of them may do anything, the database says.
_STATEMENT: Final = re.compile(
    r"(?:SELECT|WITH|VALUES|TABLE|EXPLAIN|SHOW|INSERT|UPDATE|DELETE|MERGE|COPY|CREATE|ALTER|DROP|"
    r"TRUNCATE|GRANT|REVOKE|SET|RESET|DO|CALL|BEGIN|COMMIT|ROLLBACK|DECLARE|FETCH|EXECUTE|PREPARE|"
    r"LISTEN|NOTIFY|LOCK|VACUUM|ANALYZE|REFRESH|COMMENT|LOAD|DISCARD)\b|[(;]",
    re.IGNORECASE,
)
_STRING: Final = r'"(?:[^"\\]|\\.)*"|“[^”]*”'
_SINGLE: Final = r"'(?:[^'\\]|\\.)*'(?=[\s,]|$)"
_TOKEN: Final = re.compile(
    rf"(?P<pair>(?P<name>[A-Za-z_]{{1,20}})=(?P<value>{_STRING}|{_SINGLE}|[^\s,]*))(?=[\s,]|$)"
    rf"|(?P<string>(?:{_STRING})(?=[\s,]|$)|{_SINGLE})"
    r"|(?P<comma>,)|(?P<word>[^\s,]+)",
    re.DOTALL,
)
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_PLAIN: Final = re.compile(r"[^\s,\"'“”=\\]+")
_TABLE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
SHOWN_CHARS: Final = 100
SHOWN_WORD_CHARS: Final = 40
MAX_LIMIT: Final = 1000
MAX_DEPTH: Final = 100
MAX_TOKENS: Final = 2**31 - 1
MAX_KEY_CHARS: Final = 1000
MAX_KEYS: Final = 1000
MAX_WORD_CHARS: Final = 200


class RemError(InvalidData):
    """A question that is none; ``details`` has the position, and the message shows it.

    Args:
        what: What is wrong.
        text: The question.
        start: Where it is wrong.
        end: Up to where.
    """

    def __init__(self, what: str, text: str, start: int, end: int) -> None:
        start = min(start, len(text))
        line = text.count("\n", 0, start) + 1
        column = start - (text.rfind("\n", 0, start) + 1) + 1
        super().__init__(
            f"{what}\n{_pointed(text, start, end)}",
            details={
                "position": start,
                "length": max(end - start, 0),
                "line": line,
                "column": column,
            },
        )


def _pointed(text: str, start: int, end: int) -> str:
    """Return the line of a position, cut to what fits on a line, with a caret below the place."""
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", start)
    stop = len(text) if stop < 0 else stop
    left = max(begin, start - SHOWN_CHARS // 2)
    right = min(stop, left + SHOWN_CHARS)
    before = ("…" if left > begin else "") + _in_a_line(text[left:start])
    under = _in_a_line(text[start : max(min(end, right), start)])
    after = _in_a_line(text[start + len(under) : right]) + ("…" if right < stop else "")
    return f"  {before}{under}{after}\n  {' ' * _width(before)}{'^' * max(_width(under), 1)}"


def _in_a_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


# -- what a question is made of -------------------------------------------------------------------


class Token(Struct, frozen=True):
    """A word, a string, a comma, or ``key=value``, and where it stands."""

    kind: str
    text: str
    start: int
    end: int
    value: str = ""
    value_start: int = 0


def _tokens(text: str, start: int) -> list[Token]:
    return [_token(match) for match in _TOKEN.finditer(text, start)]


def _token(match: re.Match[str]) -> Token:
    kind = str(match.lastgroup)
    if match["pair"] is not None:
        value, at = match["value"], match.start("value")
        return Token("pair", match["name"], match.start(), match.end(), _unquoted(value), at)
    value = _unquoted(match[0]) if kind == "string" else match[0]
    return Token(kind, match[0], match.start(), match.end(), value, match.start())


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == "“" and text[-1] == "”":
        return text[1:-1]
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        return _ESCAPED.sub(r"\1", text[1:-1])
    return text


# -- clauses --------------------------------------------------------------------------------------


class Clause(Struct, frozen=True):
    """A clause: which field it fills, and how its value is read.

    Attributes:
        field: Of `MemoryQuery`.
        wanted: What is expected, in words.
        read: Makes the value of a text; raises ValueError with what is wrong.
        is_common: Whether the keyword is also a common word of texts.
        is_list: Whether there may be several values, with commas.
        is_flag: Whether it goes without a value.
    """

    field: str
    wanted: str
    read: Callable[[str, datetime], Any]
    is_common: bool = False
    is_list: bool = False
    is_flag: bool = False


def _whole(least: int, most: int) -> Callable[[str, datetime], int]:
    def read(text: str, _: datetime) -> int:
        digits = text.replace("_", "")
        if not (digits.isascii() and digits.lstrip("+-").isdigit() and len(digits) < 20):
            raise ValueError
        if not least <= int(digits) <= most:
            raise ValueError(f"from {least} to {most:,}")
        return int(digits)

    return read


def _share(text: str, _: datetime) -> float:
    try:
        found = float(text) if text.isascii() else float("nan")
    except ValueError:
        raise ValueError from None
    if not 0 <= found <= 1:
        raise ValueError("from 0 to 1")
    return found


def _table(text: str, _: datetime) -> str:
    if not _TABLE.fullmatch(text.lower()):
        raise ValueError("of small letters, digits and underscores")
    return text.lower()


def _one_of(*words: str) -> Callable[[str, datetime], str]:
    def read(text: str, _: datetime) -> str:
        if text.lower() not in words:
            raise ValueError(did_you_mean(text.lower(), words).lstrip("; ").rstrip("?"))
        return text.lower()

    return read


def _word(text: str, _: datetime) -> str:
    if not text.strip() or len(text) > MAX_WORD_CHARS:
        raise ValueError(f"of 1 to {MAX_WORD_CHARS} characters")
    return text


def _yes(text: str, _: datetime) -> bool:
    if text.lower() not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError
    return text.lower() in ("true", "yes", "1")


_TIME: Final = f"a time, such as {EXAMPLES},"
CLAUSES: Final[dict[str, Clause]] = {
    "FROM": Clause("tables", "the name of a table", _table, is_common=True, is_list=True),
    "FIELD": Clause("field", "title or body", _one_of("title", "body"), is_common=True),
    "LIMIT": Clause("limit", "a number", _whole(1, MAX_LIMIT)),
    "MIN_SIMILARITY": Clause("min_similarity", "a number from 0 to 1", _share),
    "THRESHOLD": Clause("threshold", "a number from 0 to 1", _share),
    "CATEGORY": Clause("category", "a category", _word, is_common=True),
    "SINCE": Clause("since", _TIME, read_time, is_common=True),
    "UNTIL": Clause("until", _TIME, read_time, is_common=True),
    "AS_OF": Clause("as_of", _TIME, read_time),
    "DEPTH": Clause("depth", "a number", _whole(0, MAX_DEPTH)),
    "TYPE": Clause("relations", "a relation", _word, is_common=True, is_list=True),
    "DIRECTION": Clause("direction", "out, in or both", _one_of("out", "in", "both")),
    "LOAD": Clause("load", "true or false", _yes, is_common=True, is_flag=True),
    "MAX_TOKENS": Clause("max_tokens", "a number", _whole(1, MAX_TOKENS)),
    "EXPLAIN": Clause("explain", "true or false", _yes, is_common=True, is_flag=True),
}
_EVERY: Final = ("AS_OF", "MAX_TOKENS")
TAKEN: Final[dict[Mode, tuple[str, ...]]] = {
    "lookup": ("FROM", *_EVERY),
    "search": (
        *("FROM", "FIELD", "LIMIT", "MIN_SIMILARITY", "CATEGORY", "SINCE", "UNTIL"),
        *_EVERY,
        "EXPLAIN",
    ),
    "fuzzy": ("FROM", "THRESHOLD", "LIMIT", *_EVERY),
    "traverse": ("DEPTH", "TYPE", "DIRECTION", "LOAD", "LIMIT", *_EVERY),
    "timeline": ("FROM", "SINCE", "UNTIL", "LIMIT", *_EVERY),
    "sql": ("MAX_TOKENS",),
}
_FITTING: Final[dict[str, Callable[[str], bool]]] = {
    "FROM": lambda text: text.lower() in TABLES,
    "FIELD": lambda text: text.lower() in ("title", "body"),
    "SINCE": looks_like_time,
    "UNTIL": looks_like_time,
}


# -- reading --------------------------------------------------------------------------------------


def parse(text: str, now: datetime | None = None) -> MemoryQuery:
    """Read a question.

    Args:
        text: In the dialect, or a plain sentence, which is a search.
        now: What "yesterday" is reckoned from.

    Raises:
        RemError: What it says can't be meant; with the position.
    """
    now = now or datetime.now(UTC)
    _refuse_what_is_no_text(text)
    first = _TOKEN.search(text)
    if first is None:
        raise RemError("expected a question, found nothing", text, 0, len(text))
    mode = COMMANDS.get(first[0].upper())
    rest = text[first.end() :].lstrip()
    if mode == "sql":
        if not rest:
            raise RemError(
                "expected a query after SQL, found nothing", text, first.end(), len(text)
            )
        if _STATEMENT.match(rest):
            return MemoryQuery(mode="sql", query=rest.rstrip())
        mode = None  # a sentence about SQL
    if mode is None:
        return _Plain(text, now, "search", "SEARCH", first.start()).read()
    return _Command(text, now, mode, first[0].upper(), first.end()).read()


def _refuse_what_is_no_text(text: str) -> None:
    wrong = _NO_TEXT.search(text)
    if wrong is not None:
        raise RemError(
            "a question has no zero byte and no half of a surrogate pair", text, *wrong.span()
        )


class _Reading:
    """Reads one question.

    Args:
        text: All of it.
        now: For relative times.
        mode: What it asks for.
        command: As it is written.
        start: Where the rest begins.
    """

    def __init__(self, text: str, now: datetime, mode: Mode, command: str, start: int) -> None:
        self.text = text
        self.now = now
        self.mode = mode
        self.command = command
        self.start = start
        self.tokens = _tokens(text, start)
        self.found: dict[str, Any] = {}

    def read(self) -> MemoryQuery:
        """Read what it is about, and its clauses."""
        begin = self.first_clause()
        self.read_operand(self.tokens[:begin])
        place = begin
        while place < len(self.tokens):
            place = self.read_clause(place)
        return MemoryQuery(mode=self.mode, **self.found)

    def first_clause(self) -> int:
        """Return which token the clauses begin with."""
        raise NotImplementedError

    # -- what it is about -----------------------------------------------------------------------

    def read_operand(self, tokens: Sequence[Token]) -> None:
        """Take what the question is about."""
        if self.mode == "lookup":
            self.found["keys"] = tuple(self.keys(tokens))
        elif self.mode == "traverse":
            self.found["keys"] = (self.checked_key(tokens, "a key"),)
        elif self.mode == "timeline":
            if tokens:
                self.found["subject"] = self.checked_key(tokens, "a conversation, a user or a key")
        else:
            self.found["query"] = self.operand(tokens, "a text")

    def keys(self, tokens: Sequence[Token]) -> Iterator[str]:
        """Yield the keys that commas part."""
        commas = [place for place, token in enumerate(tokens) if token.kind == "comma"]
        if len(commas) >= MAX_KEYS:
            self.fail(f"at most {MAX_KEYS:,} keys can be looked up at once", tokens[commas[-1]])
        begin = 0
        for end in [*commas, len(tokens)]:
            at = tokens[end].start if end < len(tokens) else self.end_of(tokens)
            yield self.checked_key(tokens[begin:end], "a key", at)
            begin = end + 1

    def checked_key(self, tokens: Sequence[Token], wanted: str, at: int | None = None) -> str:
        """Return a key."""
        if self.mode != "lookup":
            for token in tokens:
                if token.kind == "comma":
                    self.fail(
                        f"{self.command} takes one key; put one with a comma into quotes", token
                    )
        key = self.operand(tokens, wanted, at)
        if not key.strip():
            self.fail(f"expected {wanted} after {self.command}, found an empty one", tokens[0])
        if len(key) > MAX_KEY_CHARS:
            self.fail(f"a key has at most {MAX_KEY_CHARS:,} characters", tokens[0])
        return key

    def operand(self, tokens: Sequence[Token], wanted: str, at: int | None = None) -> str:
        """Return what some tokens say: a string's content, or the text as it stands."""
        if not tokens:
            place = self.end_of(()) if at is None else at
            found = _shown(self.text[place:]) if self.text[place:].strip() else "nothing"
            raise RemError(
                f"expected {wanted} after {self.command}, found {found}",
                self.text,
                place,
                place + 1,
            )
        if len(tokens) == 1 and tokens[0].kind == "string":
            return tokens[0].value
        self.refuse_open_quote(tokens[0])
        return self.text[tokens[0].start : tokens[-1].end]

    def refuse_open_quote(self, token: Token) -> None:
        """See to it that a quote at the beginning is closed."""
        if token.kind == "word" and token.text[0] in '"“' and token.text[-1] not in '"”':
            raise RemError(
                "expected the end of the text in quotes, found none",
                self.text,
                token.start,
                token.start + 1,
            )

    def end_of(self, tokens: Sequence[Token]) -> int:
        """Return where something is missing: after what is there."""
        if tokens:
            return tokens[-1].end
        return self.tokens[0].start if self.tokens else len(self.text)

    # -- clauses --------------------------------------------------------------------------------

    def read_clause(self, place: int) -> int:
        """Read a clause; return the place behind it."""
        token = self.tokens[place]
        name = token.text.upper()
        clause = CLAUSES.get(name)
        if clause is None or token.kind not in ("word", "pair"):
            taken = TAKEN[self.mode]
            hint = did_you_mean(name, taken) or f"; there are {', '.join(taken)}"
            self.fail(f"expected a clause, found {_shown(token.text)}{hint}", token)
        if name not in TAKEN[self.mode]:
            self.fail(f"{self.command} takes no {name}", token)
        if clause.field in self.found:
            self.fail(f"{name} is there twice", token)
        values, place = self.values(name, clause, place)
        self.found[clause.field] = values if clause.is_list else values[0]
        return place

    def values(self, name: str, clause: Clause, place: int) -> tuple[tuple[Any, ...], int]:
        """Read the values of a clause; return them, and the place behind them."""
        token = self.tokens[place]
        if token.kind == "pair":
            values = [self.value(name, clause, token)]
        elif clause.is_flag:
            return (True,), place + 1
        else:
            place += 1
            values = [self.value(name, clause, self.joined(clause, place))]
            place += self.is_joined(clause, place)
        place += 1
        while clause.is_list and place < len(self.tokens) and self.tokens[place].kind == "comma":
            values.append(self.value(name, clause, self.at(place + 1)))
            place += 2
        return tuple(values), place

    def at(self, place: int) -> Token | None:
        """Return a token, if there is one."""
        return self.tokens[place] if place < len(self.tokens) else None

    def is_joined(self, clause: Clause, place: int) -> bool:
        """Say whether a time goes on after a blank: 2026-01-31 12:00."""
        day, clock = self.at(place), self.at(place + 1)
        return bool(
            clause.read is read_time
            and day is not None
            and clock is not None
            and re.fullmatch(r"\d{4}-\d\d-\d\d", day.text)
            and re.fullmatch(r"\d\d:\d\d\S*", clock.text)
        )

    def joined(self, clause: Clause, place: int) -> Token | None:
        """Return the token of a value; of a time in two words, both as one."""
        token = self.at(place)
        if token is None or not self.is_joined(clause, place):
            return token
        clock = self.tokens[place + 1]
        value = f"{token.text}T{clock.text}"
        return Token("word", value, token.start, clock.end, value, token.start)

    def value(self, name: str, clause: Clause, token: Token | None) -> Any:
        """Read one value.

        Raises:
            RemError: It doesn't fit.
        """
        if token is None or token.kind == "comma" or (token.kind == "pair" and not token.value):
            place = len(self.text.rstrip()) if token is None else token.end
            raise RemError(
                f"expected {clause.wanted} after {name}, found nothing", self.text, place, place + 1
            )
        # `FROM a=b`: what follows a keyword is taken as it stands
        is_own = token.kind == "pair" and token.text.upper() == name
        value = token.value if is_own or token.kind == "string" else token.text
        if token.kind == "pair" and not is_own:
            value = self.text[token.start : token.end]
        try:
            return clause.read(value, self.now)
        except ValueError as error:
            self.fail_value(name, clause, token, value, str(error))

    def fail_value(self, name: str, clause: Clause, token: Token, value: str, why: str) -> NoReturn:
        """Say which value was expected."""
        wanted, more = clause.wanted, ""
        if why.startswith("from "):
            wanted = f"a number {why}"
        elif why.startswith("of "):
            wanted += f" {why}"
        elif why and not why.startswith("such as"):
            more = f": {why}"
        start = token.value_start if token.kind == "pair" else token.start
        self.refuse(
            f"expected {wanted} after {name}, found {_shown(value)}{more}", start, token.end
        )

    def refuse(self, what: str, start: int, end: int) -> NoReturn:
        """Say what is wrong between two positions."""
        raise RemError(what, self.text, start, end)

    def fail(self, what: str, token: Token) -> NoReturn:
        """Say what is wrong with a token."""
        raise RemError(what, self.text, token.start, token.end)


class _Command(_Reading):
    """Reads a question that begins with a command."""

    def first_clause(self) -> int:
        """Return which token the clauses begin with: see the module's text."""
        tokens = self.tokens
        if (
            self.mode not in ("lookup", "timeline")
            and len(tokens) > 1
            and self.is_quoted(tokens[0])
        ):
            return 1
        begins = self.tails()
        has_small = any(c.islower() for c in self.text)
        is_first_free = self.mode == "timeline"
        for place, token in enumerate(tokens):
            if place == 0 and not is_first_free and token.kind != "pair":
                continue
            if self.is_plainly_a_clause(place, has_small=has_small):
                return place
            if begins[place] and not self.is_word_of_text(token):
                return place
        return len(tokens)

    def is_quoted(self, token: Token) -> bool:
        """Say whether a text stands in quotes that can be nothing else."""
        return token.kind == "string" and token.text[0] != "'"

    def is_word_of_text(self, token: Token) -> bool:
        """Say whether a word that needs no value is one of the text's: what does it *explain*."""
        return token.kind == "word" and token.text.upper() == "EXPLAIN"

    def is_plainly_a_clause(self, place: int, *, has_small: bool) -> bool:
        """Say whether a token begins a clause, whatever follows."""
        token = self.tokens[place]
        name = token.text.upper()
        if name not in CLAUSES:
            return False
        if token.kind == "pair":
            return True
        after_string = place > 0 and self.is_quoted(self.tokens[place - 1])
        return token.kind == "word" and (after_string or (token.text.isupper() and has_small))

    def tails(self) -> list[bool]:
        """Say of each token whether all from there on is clauses; reckoned from the end."""
        tails = [False] * len(self.tokens) + [True]
        for place in reversed(range(len(self.tokens))):
            after = self.behind(place)
            tails[place] = after is not None and tails[after]
        return tails

    def behind(self, place: int) -> int | None:
        """Return the place behind what may be a clause; nothing where it is none."""
        token = self.tokens[place]
        name = token.text.upper()
        if name not in TAKEN[self.mode] or token.kind not in ("word", "pair"):
            return None
        clause = CLAUSES[name]
        if token.kind == "pair" or clause.is_flag:
            return self.behind_list(clause, place + 1)
        value = self.joined(clause, place + 1)
        if value is None or value.kind == "comma":
            return None
        if clause.is_common and not _FITTING.get(name, bool)(value.value):
            return None
        return self.behind_list(clause, place + 2 + self.is_joined(clause, place + 1))

    def behind_list(self, clause: Clause, place: int) -> int:
        """Return the place behind further values."""
        while (
            clause.is_list and place + 1 < len(self.tokens) and self.tokens[place].kind == "comma"
        ):
            place += 2
        return place


class _Plain(_Reading):
    """Reads a plain sentence: a search, with ``key=value`` at its end at most."""

    def first_clause(self) -> int:
        """Return which token the clauses begin with."""
        place = len(self.tokens)
        while place > 1 and self.is_own_pair(self.tokens[place - 1]):
            place -= 1
        return place

    def is_own_pair(self, token: Token) -> bool:
        """Say whether a token is a clause of a search."""
        return token.kind == "pair" and token.text.upper() in TAKEN["search"]

    def refuse_open_quote(self, token: Token) -> None:
        """Let quotes be: it is a sentence."""


def _shown(text: str) -> str:
    """Return what was found, for a message."""
    text = _in_a_line(text.strip())
    cut = text if len(text) <= SHOWN_WORD_CHARS else text[:SHOWN_WORD_CHARS] + "…"
    return f"'{cut}'"


# -- writing --------------------------------------------------------------------------------------


def written(query: MemoryQuery) -> str:
    """Write a question by its mode in the dialect, so that `parse` reads the same."""
    assert query.mode is not None
    if query.mode == "sql":
        return f"SQL {query.query}"
    operand = {
        "lookup": ", ".join(map(quoted, query.keys)),
        "traverse": ", ".join(map(quoted, query.keys[:1])),
        "timeline": quoted(query.subject) if query.subject else "",
    }.get(query.mode, quoted(query.query or ""))
    clauses = (_written_clause(name, query) for name in TAKEN[query.mode])
    return " ".join(filter(None, (query.mode.upper(), operand, *clauses)))


def is_plain(text: str) -> bool:
    """Say whether a key can stand without quotes."""
    return _PLAIN.fullmatch(text) is not None


def quoted(text: str) -> str:
    """Put a text into quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_DEFAULTS: Final = {
    field.encode_name: field.default for field in msgspec.structs.fields(MemoryQuery)
}


def _written_clause(name: str, query: MemoryQuery) -> str:
    clause = CLAUSES[name]
    value = getattr(query, clause.field)
    if value == _DEFAULTS[clause.field]:
        return ""
    if clause.is_flag:
        return name
    values = value if clause.is_list else (value,)
    return f"{name} {', '.join(map(_written_value, values))}"


def _written_value(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return value if is_plain(value) else quoted(value)
    return repr(value)
