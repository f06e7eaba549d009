"""Finds what a user said to be remembered, by rules for English: facts, people, dates.

Each rule is about one sentence that the user says himself, from its beginning or after a comma; a
sentence that asks, supposes, reports what another said or points at something is left alone. Facts
have a key for each attribute, so that a newer one supersedes the one before.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from itertools import islice
from typing import Final

from msgspec import Struct

from ksi_memory.events import Edge, NewItem, Origin
from ksi_memory.language import dates, junk

MAX_VALUE: Final = 200  # characters of what a fact says
MAX_NOTE: Final = 500
MAX_FINDINGS: Final = 20  # of one message: more is a document
MAX_SENTENCES: Final = 500  # of one message
USER: Final = "user"
SLUG_WORDS: Final = 8
_ARTICLES: Final = frozenset({"the", "a", "an", "my", "our"})

_FLAGS: Final = re.IGNORECASE | re.VERBOSE
_LEAD: Final = r"""
    ^\W*(?:(?:and|but|so|also|oh|ok|okay|well|actually|no|nope|yes|yeah|yep|sorry|hi|hello|hey|
    there|thanks|thank\s+you|please|right|by\s+the\s+way|btw|fyi|just\s+so\s+you\s+know|for\s+context|
    for\s+the\s+record|i\s+should\s+(?:mention|say|add)(?:\s+that)?|you\s+should\s+know(?:\s+that)?|
    correction|update|good\s+(?:morning|afternoon|evening)|to\s+be\s+clear|in\s+fact|
    as\s+of\s+(?:now|today)|these\s+days|nowadays|currently|now)\b[\s,.!:;–—-]*)*"""
_UNREAL: Final = re.compile(
    r"""^\W*(?:if|suppose|supposing|imagine|pretend|assume|assuming|say|let'?s\s+say|what\s+if|when|
        whenever|unless|maybe|perhaps|for\s+(?:example|instance)|e\.g\.|i\s+wish|i\s+would|i['’]d(?!\s+prefer)|
        i\s+might|i\s+used\s+to|once)\b""",
    _FLAGS,
)
_REPORTED: Final = re.compile(
    r"""\b(?:he|she|they|it|who|\w+)\s+(?:said|says|wrote|writes|told|claims?|claimed|asked|replied|
        answered|goes|went)\b\s*(?:me\s+)?(?:[,:]|that\b|["“])""",
    _FLAGS,
)
_ASKED_TO_KEEP: Final = re.compile(
    r"""(?:please\s+|can\s+you\s+|could\s+you\s+|i\s+(?:want|need|would\s+like|'d\s+like)\s+you\s+to\s+)*
    (?:remember|don['’]?t\s+forget|do\s+not\s+forget|keep\s+in\s+mind|bear\s+in\s+mind|
       memori[sz]e|note\s+down|make\s+a\s+note|take\s+a\s+note|note|save\s+(?:this|to\s+memory)|
       note\s+to\s+self|for\s+future\s+reference|for\s+your\s+memory)
    (?:\s*[:,–—-]\s*(?:that\s+)?|\s+(?:for\s+(?:me|later|next\s+time)\s*[:,]?\s*)?
       (?:that|this\s*:|of\s+(?:this\s*:|that)|the\s+following\s*:)\s+)
    (?P<what>.+)$""",
    _FLAGS,
)
_REMEMBER_MY: Final = re.compile(
    r"(?:please\s+)?(?:remember|note|save|memori[sz]e)\s+(?P<what>(?:my|our)\s.+\b(?:is|are)\b.+)$",
    _FLAGS,
)

_NAME: Final = (
    r"(?-i:[A-Z][\w'’-]*(?:\s+(?:(?:van|von|de|der|da|di|la|le|el|bin|al)\s+)*[A-Z][\w'’-]*){0,3})"
)
# One of these is in whatever a rule is about.
_HINT: Final = re.compile(
    r"""\b(?:i|i['’]\w+|my|our|we|we['’]\w+|me|remember|forget|mind|memori[sz]e|note|save|reference|
        memory|always|never|ever|from\s+now|in\s+(?:the\s+)?future|going\s+forward|the\s+project|
        (?:the|\w+['’]s)\s.*\b(?:is|are|moved|starts|begins|ends|will\s+be|falls|takes|was|has)|this\s+is)\b""",
    _FLAGS,
)
_END: Final = r"(?=\s*(?:[,.;:!?()]|$|\s(?:and|but|so|because|who|which|from|not|by)\b))"
_NOT_NAMES: Final = junk.word_set(
    """i i'm im a an the not sure here there back done new good fine ok okay sorry happy german
    french english british american italian spanish portuguese dutch polish russian ukrainian
    chinese japanese korean indian turkish greek swedish danish norwegian finnish swiss austrian
    belgian brazilian mexican canadian australian irish scottish welsh czech hungarian romanian
    european african asian christian muslim jewish hindu buddhist catholic monday tuesday
    wednesday thursday friday saturday sunday january february march april may june july august
    september october november december"""
)
_PROFESSION: Final = r"""(?:[\w-]+\s+){0,2}(?:accountant|actor|actress|analyst|architect|artist|
    attorney|author|baker|barber|biologist|builder|butcher|carpenter|chef|chemist|cleaner|coach|
    consultant|cook|dancer|dentist|designer|developer|director|doctor|driver|economist|editor|
    electrician|engineer|entrepreneur|farmer|firefighter|freelancer|gardener|geologist|historian|
    journalist|judge|lawyer|lecturer|librarian|linguist|manager|mathematician|mechanic|midwife|
    musician|nurse|nutritionist|painter|paramedic|pharmacist|photographer|physician|physicist|
    pianist|pilot|plumber|police\s+officer|principal|professor|programmer|psychologist|researcher|
    sailor|salesperson|scientist|secretary|singer|soldier|statistician|student|surgeon|teacher|
    technician|therapist|translator|tutor|veterinarian|vet|waiter|waitress|writer)"""
_DIET: Final = r"""
    vegan|vegetarian|pescatarian|lactose[\s-]intolerant|gluten[\s-](?:free|intolerant)|
    celiac|coeliac|diabetic|kosher|halal"""
_TRAIT: Final = r"""colou?r[\s-]blind|left[\s-]handed|right[\s-]handed|deaf|blind|dyslexic|autistic|
    pregnant|retired|self[\s-]employed|unemployed|married|divorced|widowed|single|engaged"""
_ONE: Final = r"""
    wife|husband|partner|spouse|girlfriend|boyfriend|fianc[ée]e?|mother|mom|mum|father|dad|
    boss|manager|landlord|landlady|dentist|doctor|therapist|supervisor|advisor|tutor"""
_MANY: Final = r"""
    son|daughter|child|kid|baby|brother|sister|sibling|cousin|uncle|aunt|nephew|niece|
    grandmother|grandma|grandfather|grandpa|grandson|granddaughter|friend|colleague|coworker|
    co-worker|teammate|flatmate|roommate|neighbou?r|assistant|client|customer|teacher|
    dog|cat|horse|rabbit|hamster|parrot|pet"""
_PETS: Final = frozenset({"dog", "cat", "horse", "rabbit", "hamster", "parrot", "pet"})
_BUSINESS: Final = frozenset({"client", "customer"})
_OWN: Final = r"""
    (?:full\s+|first\s+|last\s+|middle\s+|nick\s*)?name|nickname|surname|e-?mail(?:\s+address)?|
    (?:phone|mobile|cell|telephone)(?:\s+number)?|(?:home\s+|postal\s+|work\s+)?address|birthday|
    date\s+of\s+birth|time\s?zone|pronouns|employer|company|job(?:\s+title)?|profession|occupation|
    (?:native|first|mother)\s+(?:language|tongue)|nationality|citizenship|shoe\s+size|clothing\s+size|
    blood\s+type|height|weight|diet|hobby|hobbies|username|user\s+name|handle|
    (?:github|gitlab|twitter|mastodon|slack)(?:\s+(?:handle|user\s*name|name|account))?|
    license\s+plate|licence\s+plate|(?:wedding\s+)?anniversary|hometown|home\s+town|
    favou?rite\s+(?:[\w-]+\s+){0,2}[\w-]+|preferred\s+(?:[\w-]+\s+){0,2}[\w-]+|
    default\s+(?:language|editor|shell|browser|currency|timezone|airport)|
    (?:editor|shell|browser|home\s+airport|car|bike|laptop|phone\s+model|operating\s+system|os)"""
_EVENT: Final = r"""
    appointment|meeting|deadline|birthday|anniversary|wedding|flight|exam|interview|release|
    launch|vacation|holidays?|trip|conference|presentation|talk|lecture|surgery|operation|move|party|
    concert|delivery|due\s+date|review|demo|graduation|ceremony|funeral|check-?up|course|workshop|
    call|visit|departure|arrival|marathon|race|match|game|tournament|election|renewal|thesis\s+defen[cs]e"""
_LANGUAGES: Final = r"""
    english|german|french|spanish|italian|portuguese|dutch|polish|russian|ukrainian|
    chinese|mandarin|japanese|korean|hindi|arabic|turkish|greek|swedish|danish|norwegian|finnish|
    czech|hungarian|romanian|hebrew|latin"""

_POINTS: Final = re.compile(
    r"""^(?:it|its|that|this|these|those|them|him|her|you|your|yours|how|what|when|where|the|to\s+(?:see|
        know|think|hear|say)|your\s|his|their|one|ones|both|either|neither|all|everything|something|
        anything|nothing|option|answer|my\s+(?:answer|question))\b""",
    _FLAGS,
)
_PASSING: Final = re.compile(
    r"""\b(?:error|errors|bug|exception|stack\s*trace|traceback|output|warning|undefined|null|
        this|that\s+one|here|above|below)\b""",
    _FLAGS,
)
_TAIL: Final = re.compile(
    r"""\s*(?:[,;]|\s[–—-]\s|\b(?:because|since|but|so\s+(?:that|please|i|we|you)|though|although|which|
        by\s+the\s+way|btw|these\s+days|at\s+the\s+moment|right\s+now|nowadays|currently|for\s+now|
        by\s+now|now|today|last\s+(?:week|month|year|spring|summer|autumn|fall|winter|weekend)|
        this\s+(?:week|month|year|spring|summer)|(?:two|three|four|five|six|a\s+few|\d+)\s+
        (?:days|weeks|months|years)\s+ago|a\s+(?:week|month|year)\s+ago|recently|yesterday|
        (?:and|where|while|with|after|as)\s+(?:i|we|my|it|the|a)\b)).*$""",
    _FLAGS,
)


class Finding(Struct, frozen=True, kw_only=True):
    """Something that is to be remembered, before it has an owner and a source."""

    table: str
    item: NewItem
    origin: Origin = "said"


Maker = Callable[[re.Match[str], str], "Finding | None"]


def find(text: str, at: datetime) -> list[Finding]:
    """Return what a message says that is to be remembered, the latest word on each thing.

    Args:
        text: What a user wrote.
        at: When, to know what "tomorrow" is.
    """
    found: dict[tuple[str, str], Finding] = {}
    for sentence in islice(junk.own_sentences(text), MAX_SENTENCES):
        if len(found) >= MAX_FINDINGS:
            break
        if not _HINT.search(sentence):
            continue
        for finding in in_sentence(sentence, at):
            place = finding.table, junk.folded(finding.item.key)
            found.pop(place, None)
            found[place] = finding
    return list(found.values())[:MAX_FINDINGS]


def in_sentence(sentence: str, at: datetime) -> Iterator[Finding]:
    """Yield what a sentence says that is to be remembered."""
    asked = _asked_to_keep(sentence)
    if asked is not None:
        findings = list(_facts(asked, at, sentence)) if _is_said(asked) else []
        note = _note(asked, sentence)
        yield from findings or ([note] if note is not None else [])
        return
    if not _is_said(sentence):
        return
    yield from _facts(sentence, at, sentence)


def _asked_to_keep(sentence: str) -> str | None:
    """Return what a sentence asks to be remembered, if it asks that."""
    begins = re.match(_LEAD, sentence, _FLAGS)
    rest = sentence[begins.end() :] if begins else sentence
    for pattern in (_ASKED_TO_KEEP, _REMEMBER_MY):
        asked = pattern.match(rest)
        if asked is not None:
            return str(asked["what"]).strip()
    return None


def _is_said(sentence: str) -> bool:
    """Say whether a sentence claims something in its sender's own name."""
    return not (
        junk.is_question(sentence)
        or _UNREAL.match(sentence)
        or _REPORTED.search(sentence)
        or junk.is_secret(sentence)
        or junk.is_code(sentence)
    )


def _facts(text: str, at: datetime, sentence: str) -> Iterator[Finding]:
    """Yield the facts of a sentence, clause by clause, with the people and dates in it."""
    for clause in _clauses(text):
        for pattern, make in RULES:
            match = pattern.match(clause)
            made = make(match, sentence) if match else None
            if made is not None:
                yield made
                break
    yield from _people(text, sentence)
    yield from _days(text, at, sentence)


def _clauses(text: str) -> Iterator[str]:
    """Yield a sentence, and what begins behind a comma or an "and" with the speaker himself."""
    begins = re.match(_LEAD, text, _FLAGS)
    yield text[begins.end() :] if begins else text
    for rest in re.finditer(
        r"(?:[,;:–—]\s*(?:(?:and|but|so|also)\s+)?|\s(?:and|but)\s+)(?=(?:i|i['’]m|i['’]ve|my|we|call\s+me)\b)",
        text,
        re.IGNORECASE,
    ):
        yield text[rest.end() :]


# -- making ---------------------------------------------------------------------------------------


def slug(text: str) -> str:
    """Return a text as part of a key."""
    words = junk.folded(text.replace("'", "").replace("’", "")).split()
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return "-".join(words[:SLUG_WORDS])


def _value(text: str) -> str:
    """Return what a fact says, without what trails behind."""
    text = _TAIL.sub("", text.strip())
    return text.strip(" \t.,;:!?\"“”'()").strip()


def fact(
    attribute: str, value: str, body: str, sentence: str, *, category: str = "about"
) -> Finding | None:
    """Make a fact about the user; none where there is nothing in it."""
    if not value or len(value) > MAX_VALUE or junk.is_secret(body) or junk.is_code(value):
        return None
    return Finding(
        table="facts",
        item=NewItem(
            key=f"{USER}:{attribute}",
            title=attribute.replace(":", " ").replace("-", " "),
            body=body,
            category=category,
            attributes={"attribute": attribute, "value": value, "said": sentence[:MAX_NOTE]},
        ),
    )


def _note(text: str, sentence: str) -> Finding | None:
    """Make a note of what the user asked to be remembered, as he said it."""
    text = text.strip().rstrip(" ")
    plain = text.rstrip(".!").strip()
    if junk.why_junk(plain) is not None or len(plain) > MAX_NOTE:
        return None
    about = re.match(
        r"(?:the|our|my|a|an)\s+(?P<what>[^,.;:]{2,60}?)\s+(?:is|are|was|were|has|have|lives?|starts?|"
        r"costs?|needs?|will\s+be)\s",
        plain,
        re.IGNORECASE,
    )
    key = slug(about["what"]) if about else slug(plain)
    return Finding(
        table="facts",
        item=NewItem(
            key=f"note:{key}",
            title=(about["what"] if about else plain)[:80],
            body=plain[0].upper() + plain[1:] + ".",
            category="note",
            attributes={"value": plain, "said": sentence[:MAX_NOTE]},
        ),
    )


def _is_name(text: str) -> bool:
    return all(word.casefold() not in _NOT_NAMES for word in text.split())


def _simple(attribute: str, body: str) -> Maker:
    def make(match: re.Match[str], sentence: str) -> Finding | None:
        value = _value(match["value"])
        if _POINTS.match(value) and not value.casefold().startswith("the "):
            return None
        return fact(attribute, value, body.format(value), sentence)

    return make


def _placed(attribute: str, body: str) -> Maker:
    def make(match: re.Match[str], sentence: str) -> Finding | None:
        value = _value(_AFTER_PLACE.split(match["value"], maxsplit=1)[0])
        return fact(attribute, value, body.format(value), sentence)

    return make


def _named(attribute: str, body: str) -> Maker:
    def make(match: re.Match[str], sentence: str) -> Finding | None:
        value = " ".join(match["value"].split())
        return fact(attribute, value, body.format(value), sentence) if _is_name(value) else None

    return make


def _ended(attribute: str, body: str) -> Maker:
    def make(match: re.Match[str], sentence: str) -> Finding | None:
        value = _value(re.sub(r"\s+any\s?(?:more|longer)\b.*", "", match["value"]))
        return fact(attribute, f"not {value}", body.format(value), sentence)

    return make


def _own(match: re.Match[str], sentence: str) -> Finding | None:
    attribute = " ".join(match["what"].casefold().replace("favorite", "favourite").split())
    value = _value(match["value"])
    if re.match(
        r"(?:not|n't|no)\b|(?:being|getting|going|broken|slow|down|the\s+problem)\b", value
    ):
        return None
    if not value or (_POINTS.match(value) and not value.casefold().startswith(("the ", "all "))):
        return None
    if attribute in ("name", "full name", "first name") and not re.match(_NAME, value):
        value = value.title() if re.fullmatch(r"[a-z'’-]+(?: [a-z'’-]+)?", value) else ""
    alias = {"full name": "name", "first name": "name", "date of birth": "birthday",
             "email": "e-mail", "email address": "e-mail", "e-mail address": "e-mail",
             "hometown": "home town", "time zone": "timezone", "occupation": "job",
             "profession": "job", "job title": "job", "company": "employer"}  # fmt: skip
    kept = alias.get(attribute, attribute)
    verb = "are" if attribute.endswith(("s", "pronouns")) and match["verb"] == "are" else "is"
    return fact(slug(kept), value, f"The user's {attribute} {verb} {value}.", sentence)


def _preference(match: re.Match[str], sentence: str) -> Finding | None:
    wanted, unwanted = _value(match["value"]), _value(match["other"] or "")
    if not wanted or _POINTS.match(wanted) or _PASSING.search(wanted):
        return None
    if unwanted:
        pair = "-or-".join(sorted((slug(wanted), slug(unwanted))))
        body = f"The user prefers {wanted} to {unwanted}."
        return fact(f"prefers:{pair}", wanted, body, sentence, category="preference")
    about = re.search(r"\s(?:for|when|in)\s+(?P<about>.+)$", wanted)
    key = slug(about["about"]) if about else slug(wanted)
    return fact(
        f"prefers:{key}", wanted, f"The user prefers {wanted}.", sentence, category="preference"
    )


def _liking(match: re.Match[str], sentence: str) -> Finding | None:
    value = _value(match["value"])
    words = value.split()
    if _POINTS.match(value) or _PASSING.search(value) or not 1 <= len(words) <= 5:
        return None
    verb = " ".join(match["verb"].casefold().replace("’", "'").split())
    said = {"can't stand": "can't stand", "do not like": "doesn't like",
            "don't like": "doesn't like"}.get(verb, f"{verb}s")  # fmt: skip
    return fact(
        f"likes:{slug(value)}",
        f"{said} {value}",
        f"The user {said} {value}.",
        sentence,
        category="preference",
    )


def _habit(match: re.Match[str], sentence: str) -> Finding | None:
    value = _value(match["value"])
    words = value.split()
    if _PASSING.search(value) or not 2 <= len(words) <= 14:
        return None
    how = match["how"].casefold()
    key = slug(" ".join(words[:4]))
    return fact(
        f"habit:{key}", f"{how} {value}", f"The user says: I {how} {value}.", sentence,
        category="preference",
    )  # fmt: skip


def _language(match: re.Match[str], sentence: str) -> Finding | None:
    value = match["value"].title()
    body = f"The user wants answers in {value}."
    return fact("language", value, body, sentence, category="instruction")


def _standing(match: re.Match[str], sentence: str) -> Finding | None:
    value = _value(match["value"])
    if _PASSING.search(value) or not 2 <= len(value.split()) <= 25:
        return None
    how = match["how"].casefold().rstrip(",")
    wish = f"never {value}" if how in ("never", "don't ever") else f"always {value}"
    key = slug(" ".join(value.split()[:4]))
    return fact(
        f"wants:{key}", wish, f"The user wants the assistant to {wish}.", sentence,
        category="instruction",
    )  # fmt: skip


def _allergy(match: re.Match[str], sentence: str) -> Finding | None:
    value = _value(match["value"])
    body = f"The user is allergic to {value}."
    return fact(f"allergy:{slug(value)}", value, body, sentence)


def _is_a(attribute: str, body: str) -> Maker:
    def make(match: re.Match[str], sentence: str) -> Finding | None:
        value = " ".join(match["value"].split())
        return fact(attribute, value, body.format(value), sentence)

    return make


def _rule(pattern: str, make: Maker) -> tuple[re.Pattern[str], Maker]:
    return re.compile(pattern, _FLAGS), make


_I_AM: Final = r"(?:i['’]?m|i\s+am)\s+(?:also\s+|now\s+|currently\s+|actually\s+|still\s+)?"
_NOW: Final = (
    r"(?:now\s+|currently\s+|still\s+|actually\s+|just\s+|recently\s+|have\s+|['’]ve\s+|also\s+)*"
)
_AFTER_PLACE: Final = re.compile(r"\s(?:and|but|with|for|as|where|while|or)\s(?=[a-z])")
_WHERE: Final = r"(?P<value>(?-i:[A-Z0-9])[^,.;:!?]*)"

_STANDING_WORD: Final = re.compile(
    r"\b(?:from\s+now\s+on|always|in\s+(?:the\s+)?future|going\s+forward|only)\b", re.IGNORECASE
)

# The first that fits a clause makes of it what is to be remembered.
RULES: Final[Sequence[tuple[re.Pattern[str], Maker]]] = (
    _rule(
        rf"(?:you\s+can\s+|please\s+|just\s+)*call\s+me\s+(?P<value>{_NAME}){_END}",
        _named("called", "The user wants to be called {}."),
    ),
    _rule(
        rf"(?:i['’]?m|i\s+am|this\s+is)\s+(?:called\s+)?(?P<value>{_NAME})(?=\s*(?:[,.!;]|$|\s(?:and\s+i|from)\b))",
        _named("name", "The user's name is {}."),
    ),
    _rule(
        r"(?:i|we)\s+(?:do\s+not|don['’]?t)\s+live\s+in\s+(?P<value>.+?\sany\s?(?:more|longer)\b.*)",
        _ended("home", "The user no longer lives in {}."),
    ),
    _rule(
        r"(?:i|we)\s+no\s+longer\s+live\s+in\s+(?P<value>.+)",
        _ended("home", "The user no longer lives in {}."),
    ),
    _rule(
        r"i\s+(?:no\s+longer\s+work|(?:do\s+not|don['’]?t)\s+work)\s+(?:at|for)\s+(?P<value>.+?)"
        r"(?:\s+any\s?(?:more|longer)\b.*)?$",
        _ended("employer", "The user no longer works for {}."),
    ),
    _rule(
        rf"(?:i|we|i['’]ve|we['’]ve)\s+{_NOW}(?:live|reside|moved|relocated)\s+(?:in|to|near)\s+{_WHERE}",
        _placed("home", "The user lives in {}."),
    ),
    _rule(
        rf"(?:{_I_AM}|we['’]re\s+|we\s+are\s+)(?:living|based|located)\s+(?:in|near)\s+{_WHERE}",
        _placed("home", "The user lives in {}."),
    ),
    _rule(
        rf"(?:{_I_AM}(?:originally\s+)?from|i\s+(?:originally\s+)?come\s+from|i\s+grew\s+up\s+in|"
        rf"i\s+was\s+born\s+in)\s+(?P<value>(?-i:[A-Z])[^\d,.;:!?]*)",
        _placed("origin", "The user comes from {}."),
    ),
    _rule(
        r"i\s+was\s+born\s+on\s+(?:the\s+)?(?P<value>.*\d.*)",
        _simple("birthday", "The user was born on {}."),
    ),
    _rule(
        rf"(?:i|i['’]ve)\s+{_NOW}(?:started\s+(?:working\s+)?|work|joined)\s*(?:at|for|with)?\s+"
        rf"(?P<value>(?-i:[A-Z]){{1}}[^,.;:!?]*?)(?=\s+(?:as|on|in|since|and)\b|[,.;:!?]|$)",
        _simple("employer", "The user works for {}."),
    ),
    _rule(
        rf"i\s+{_NOW}work\s+as\s+(?:an?|the)\s+(?P<value>[\w\s-]{{3,60}}?)(?=\s+(?:at|for|in|with|and)\b|[,.;:!?]|$)",
        _is_a("job", "The user works as {}."),
    ),
    _rule(
        rf"{_I_AM}(?:an?|the)\s+(?P<value>{_PROFESSION})(?=\s+(?:at|for|in|from|with|and|who|by)\b|[,.;:!?]|$)",
        _is_a("job", "The user is a {}."),
    ),
    _rule(
        rf"{_I_AM}(?:an?\s+)?(?P<value>{_DIET})\b(?!\s+friend)", _is_a("diet", "The user is {}.")
    ),
    _rule(
        rf"{_I_AM}(?P<value>{_TRAIT})(?=[,.;:!]|$|\s+(?:and|so|but|since|because)\b)",
        lambda m, s: fact(slug(m["value"]), m["value"], f"The user is {m['value']}.", s),
    ),
    _rule(rf"{_I_AM}(?:severely\s+|very\s+)?allergic\s+to\s+(?P<value>.+)", _allergy),
    _rule(
        r"i\s+have\s+an?\s+(?P<value>[\w-]+(?:\s[\w-]+)?)\s+allergy",
        _allergy,
    ),
    _rule(
        r"(?:i['’]d|i|we)\s+(?:really\s+|much\s+|would\s+|strongly\s+|generally\s+|usually\s+)*prefer\s+"
        r"(?P<value>.+?)(?:\s+(?:over|to|rather\s+than|instead\s+of|than)\s+(?P<other>.+))?$",
        _preference,
    ),
    _rule(
        r"i\s+(?:really\s+|absolutely\s+|also\s+|just\s+)*(?P<verb>like|love|hate|dislike|enjoy|adore|"
        r"can['’]?t\s+stand|do\s+not\s+like|don['’]?t\s+like)\s+(?P<value>.+)$",
        _liking,
    ),
    _rule(
        r"i\s+(?P<how>always|never)\s+(?P<value>(?:use|eat|drink|work|write|take|wear|travel|run|start|"
        r"sleep|buy|book|commute|cook|read|fly|smoke|drive|walk|deploy|commit)\b.+)$",
        _habit,
    ),
    _rule(
        r"i\s+(?:do\s+not|don['’]?t)\s+(?P<value>(?:eat|drink|smoke|drive|fly)\b.*)$",
        lambda m, s: fact(
            f"habit:{slug(_value(m['value']))}",
            f"not {_value(m['value'])}",
            f"The user doesn't {_value(m['value'])}.",
            s,
            category="preference",
        ),
    ),
    _rule(
        rf"(?:from\s+now\s+on\s*,?\s*|always\s+|in\s+(?:the\s+)?future\s*,?\s*|please\s+|i\s+want\s+you\s+to\s+)+"
        rf"(?:always\s+)?(?:answer|reply|respond|write|speak|talk)(?:\s+to\s+me)?(?:\s+only)?\s+in\s+"
        rf"(?P<value>{_LANGUAGES})\b(?=.*\b(?:from\s+now\s+on|always|future|only)\b|(?<=\bnow\b)|.*$)",
        lambda m, s: _language(m, s) if _STANDING_WORD.search(s) else None,
    ),
    _rule(
        r"(?:please\s+)?(?P<how>always|never|from\s+now\s+on,?|in\s+(?:the\s+)?future,?|going\s+forward,?|"
        r"don['’]?t\s+ever)\s+(?:please\s+)?(?P<value>(?:answer|reply|respond|write|use|call|start|end|"
        r"give|include|show|explain|format|keep|ask|add|address|avoid|cite|mention|provide|send|"
        r"speak|put|round|convert|check|be)\b.+)$",
        _standing,
    ),
    _rule(
        rf"(?:my|our)\s+(?P<what>{_OWN})\s*(?P<verb>is|are|['’]s|=|:)\s+(?:now\s+|actually\s+|called\s+)?(?P<value>.+)$",
        _own,
    ),
)

_RELATIVE: Final = re.compile(
    rf"""\b(?:my|our)\s+(?:(?:new|old|older|younger|elder|oldest|youngest|best|little|big|late|close|former|ex-?)\s*)*
        (?P<what>{_ONE}|{_MANY})
        (?:['’]s\s+name\s+is\s+|\s+is\s+(?:called|named)\s+|\s+is\s+|,\s+|\s+(?:called|named)\s+|\s+)
        (?P<name>(?:(?:Dr|Mr|Mrs|Ms|Prof)\.?\s+)?{_NAME})""",
    _FLAGS,
)
_PROJECT: Final = re.compile(
    rf"""\b(?:(?:my|our|the)\s+(?:new\s+)?project\s+(?:is\s+(?:called|named)\s+|called\s+|named\s+)?|
        (?:work|working)\s+on\s+(?:the\s+)?project\s+)(?P<name>{_NAME})""",
    _FLAGS,
)
_TITLED: Final = re.compile(
    r"\b(?P<title>Dr|Mr|Mrs|Ms|Prof|Professor)\.?\s+(?P<name>[A-Z][\w'’-]+(?:\s+[A-Z][\w'’-]+)?)"
)


def _people(text: str, sentence: str) -> Iterator[Finding]:
    """Yield the people, pets and projects that a sentence introduces by what they are to him."""
    for match in _RELATIVE.finditer(text):
        name = _person(match["name"])
        if not name:
            continue
        what = " ".join(match["what"].casefold().split())
        kind = "pet" if what in _PETS else "organisation" if what in _BUSINESS else "person"
        yield _entity(name, kind, f"{name} is the user's {what}.", sentence, what)
        is_one = re.fullmatch(_ONE, what, _FLAGS) is not None
        attribute = what if is_one else f"{what}:{slug(name)}"
        made = fact(attribute, name, f"The user's {what} is {name}.", sentence)
        if made is not None:
            yield made
    for match in _PROJECT.finditer(text):
        name = _person(match["name"])
        if name:
            body = f"{name} is a project of the user's."
            yield _entity(name, "project", body, sentence, "project")


def _person(name: str) -> str:
    """Return a name without the verb or the "I" that was taken for a part of it; or nothing."""
    words = name.split()
    while words and words[-1].casefold() in _NOT_NAMES:
        words.pop()
    words = [word.removesuffix("'s").removesuffix("’s") for word in words]
    return " ".join(words) if words and _is_name(" ".join(words)) else ""


def _entity(name: str, kind: str, body: str, sentence: str, relation: str) -> Finding:
    return Finding(
        table="entities",
        item=NewItem(
            key=name,
            title=name,
            body=body,
            category=kind,
            attributes={"relation": relation, "said": sentence[:MAX_NOTE]},
            persons=(name,) if kind == "person" else None,
            edges=(Edge(to=USER, relation=f"{slug(relation)}_of"),),
        ),
        origin="derived",
    )


_DATED: Final = re.compile(
    rf"""(?:{_LEAD[1:]})
    (?:
      (?:my|our|the|\w+['’]s)\s+(?P<subject>(?:[\w'’&-]+\s+){{0,5}}?(?:{_EVENT})(?:\s+(?:for|with|of|at|about|to)\s+
         (?:[\w'’&-]+\s*){{1,5}}?)?)
      \s*(?:is|are|['’]s|was\s+moved|has\s+been\s+moved|moved|got\s+moved|has\s+been\s+postponed|is\s+scheduled|
         takes\s+place|starts|begins|ends|will\s+be|falls)\s+
    | i\s+(?:have|['’]ve\s+got|have\s+got|booked|got)\s+(?:an?|my|the|another)\s+
      (?P<own>(?:[\w'’&-]+\s+){{0,4}}?(?:{_EVENT})(?:\s+(?:for|with|of|at|about|to)\s+(?:[\w'’&-]+\s*){{1,4}}?)?)\s+
      (?=(?:on|at|in|next|this|tomorrow|tonight|the|from|by)\b)
    | (?:i|we)(?:['’]?m|['’]?re|\s+am|\s+are)\s+(?P<going>
      (?:flying|moving|travell?ing|relocating)\s+(?:back\s+)?to\s+
      (?:[\w'’-]+\s*){{1,3}}?|getting\s+married|leaving\s+for\s+(?:[\w'’-]+\s*){{1,3}}?)\s*
      (?=(?:on|in|next|this|tomorrow|tonight|from|at\s+the\s+end)\b)
    )""",
    _FLAGS,
)
_PAST: Final = re.compile(r"\b(?:last|past|ago|was|were|had|yesterday)\b", re.IGNORECASE)


def _days(text: str, at: datetime, sentence: str) -> Iterator[Finding]:
    """Yield the appointment that a sentence tells, where it names a day."""
    match = _DATED.match(text)
    if match is None or _PASSING.search(text):
        return
    spans = dates.spoken_of(text, at)
    subject = _value(match["subject"] or match["own"] or match["going"] or "")
    if not spans or not subject:
        return
    first, last = spans[0]
    if last - first <= timedelta(days=1) and timedelta(0) < at.date() - first <= timedelta(days=7):
        if _PAST.search(text) or any(each.isdigit() for each in text):
            return
        first, last = first + timedelta(days=7), last + timedelta(days=7)
    if last <= at.date():
        return
    plain = text.strip().rstrip(".!").strip()
    yield Finding(
        table="moments",
        item=NewItem(
            key=f"date:{slug(subject)}",
            title=f"{subject}: {first.isoformat()}",
            body=plain[0].upper() + plain[1:] + ".",
            category="date",
            attributes={"type": "date", "subject": subject, "said": sentence[:MAX_NOTE]},
            starts_at=datetime.combine(first, time(), UTC),
            ends_at=datetime.combine(last, time(), UTC),
        ),
        origin="derived",
    )


# -- what a text is about -------------------------------------------------------------------------

_CAPITALISED: Final = re.compile(r"[A-Z][\w'’-]+(?:\s+[A-Z][\w'’-]+){0,3}")
_STOP: Final = junk.word_set(
    """the and for are but not all too nor yes am an at be by do he if in is it me my no of on or
    so to up us we about above across after again against almost along also although always
    among another any anybody anyone anything around ask asked asking away back because been
    before behind being below between both bring came can cannot come could course day days did
    does doesn doing done down during each either else enough even ever every everything example
    fact feel few find first for found from further get gets getting give given goes going gone
    good got great had has have having hello her here hers him his how however http https i'll
    i'm i've idea in into isn it's its itself just keep kind know known last later least less
    let let's like likely little long look looking lot made make makes making many matter may
    maybe mean might mind more most much must need needs never new next nothing now off often
    okay old once one only onto other others our ours out over own part people perhaps please
    point possible probably put question quite rather read ready really right said same saw say
    says see seem seems several shall she should show side since small some someone something
    sometimes soon sorry still stuff such sure take taken tell than thank thanks that that's the
    their them then there there's these they they're thing things think this those though
    thought three through time times today together told tomorrow too took toward tried try
    trying two under until upon use used using very want wanted wants was wasn way week weeks
    well went were what what's when where whether which while who whole whom whose why will with
    within without won word work working works would wouldn write year years yes yesterday yet
    you you're your yours"""
)


def is_stop_word(word: str) -> bool:
    """Say whether a folded word says nothing of what a text is about."""
    return word in _STOP


def names_in(texts: Sequence[str], *, at_most: int = 20) -> list[str]:
    """Return the names of people and things that texts mention, the most frequent first.

    A word counts as a name where it is capitalised amid a sentence, or bears a title.
    """
    counts: dict[str, int] = {}
    shown: dict[str, str] = {}
    for text in texts:
        for sentence in junk.own_sentences(text):
            for match in (*_CAPITALISED.finditer(sentence), *_TITLED.finditer(sentence)):
                is_titled = "title" in match.groupdict()
                if match.start() == 0 and not is_titled:
                    continue
                name = _person(match["name"] if is_titled else match[0])
                plain = junk.folded(name)
                if len(plain) < 3 or plain in _STOP:
                    continue
                counts[plain] = counts.get(plain, 0) + 1
                shown.setdefault(plain, name)
    best = sorted(counts, key=lambda each: (-counts[each], each))
    return [shown[each] for each in best[:at_most]]


def topics_of(texts: Sequence[str], *, at_most: int = 8) -> list[str]:
    """Return what texts are about: their words that recur, in how many texts they do first."""
    counts: dict[str, int] = {}
    places: dict[str, set[int]] = {}
    for number, text in enumerate(texts):
        for sentence in junk.own_sentences(text):
            for word in junk.folded(sentence).split():
                if len(word) > 3 and word not in _STOP and not word.isdigit():
                    counts[word] = counts.get(word, 0) + 1
                    places.setdefault(word, set()).add(number)
    often = [word for word, count in counts.items() if count > 1]
    often.sort(key=lambda word: (-len(places[word]), -counts[word], word))
    return often[:at_most]


_MOODS: Final[dict[str, frozenset[str]]] = {
    "joy": junk.word_set("happy glad delighted excited thrilled wonderful joy great fun love"),
    "sadness": junk.word_set("sad unhappy miss lonely grief cry crying heartbroken depressed"),
    "anger": junk.word_set("angry annoyed furious mad frustrated frustrating hate irritated"),
    "fear": junk.word_set("afraid scared worried anxious nervous fear panic stressed"),
    "surprise": junk.word_set("surprised surprising unexpected amazed astonished shocked"),
    "gratitude": frozenset(["grateful", "thankful", "appreciate", "thanks"]),
}


def moods_of(texts: Sequence[str]) -> list[str]:
    """Return the emotions that words of texts name, in the order of how often."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in junk.folded(text).split():
            for mood, words in _MOODS.items():
                if word in words:
                    counts[mood] = counts.get(mood, 0) + 1
    return sorted(counts, key=lambda each: (-counts[each], each))
