"""Finds the passages that a question is about, or none.

Scores by BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009). What is shown
must also hold a good part of what was asked: a passage that shares one word out of three with a
question is most often about something else.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

K1: Final = 1.2
B: Final = 0.75
LEAST_COVERED: Final = 0.55  # of the weight of the question's words
LEAST_OF_BEST: Final = 0.6
MAX_QUERY_WORDS: Final = 200
LEAST_STEM: Final = 4
SUFFIXES: Final = ("ings", "ing", "ies", "edly", "ed", "es", "en", "er", "s", "e")
WORD: Final = re.compile(r"[^\W_]+")
ACCENTS: Final = re.compile(r"[\u0300-\u036f]")
# Scripts that are written without spaces: pairs of their characters stand for words.
UNSPACED: Final = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

STOP_WORDS: Final = frozenset(
    """
    a about above after again all also am an and any are as ask at be because been before being
    below between both but by came can cannot come could did do does doing don done down each
    else ever explain few find for from further get give go good got had happen happened
    happening happens has have having he
    hello help her here hers hey hi him his how i if in into is it its just kindly know last let
    like long look made make many may me mean means meant might mine more most much must my need
    no nor not now of off ok okay on once one only or other our ours out over own please really
    remember right said same say says see shall she should show so some such sure take tell than
    thank
    thanks that the their them then there these they thing things think this those through to
    told too under until up us very want was way we well were what when where which while who
    whom whose why will with without would yes yet you your yours
    aber alle allem allen aller alles als also am an ander andere anderem anderen anderer
    anderes auch auf aus bei bin bis bist bitte da damit dann das dass daß dein deine dem den
    der des dich die dies diese diesem diesen dieser dieses dir doch dort du durch ein eine
    einem einen einer eines er es etwas euch euer für gegen gewesen hab habe haben hat hatte
    hatten hier hin hinter ich ihm ihn ihnen ihr ihre im in ist ja jede jedem jeden jeder jedes
    jetzt kann kannst kein keine können machen man mein meine mich mir mit muss nach nein nicht
    nichts noch nun nur ob oder ohne sag sage sagen sehr sein seine selbst sich sie sind so soll
    sollte sondern über um und uns unser unter viel vom von vor wann war waren warst warum was
    weil welche welchem welchen welcher welches wem wen wenn wer werde werden wessen weiß wie
    wieder will wir wird wirst wo wollen worden wurde wurden würde zu zum zur zwar zwischen
    au aux avec ce ces cette comment dans de des du elle elles en est et eux il ils je la le les
    leur lui ma mais me mes moi mon ne nos notre nous où ou par pas pour pourquoi qu quand que
    quel quelle quelles quels qui quoi sa sans se ses son sont sur ta te tes toi ton tu un une
    vos votre vous
    al algo como con cómo cual cuál cuando cuándo del dónde donde el ella ellas ellos en entre
    era es esa ese eso esta está este esto fue ha hay la las lo los me mi mis muy nada ni no nos
    o para pero por porqué que qué quien quién se ser si sí sin sobre son su sus te tu un una
    uno y ya yo
    che chi ci come cosa cui da dal del della di dove e gli ha ho i il io la le lei lo loro lui
    ma mi nel non noi per perché più quale quando questo se sei si sono su suo ti tra un una
    com da dela do dos em essa esse eu foi isso mais meu minha na não nas nos o os ou para pela
    por quais qual quem seu sua também tem uma você
    aan al als bij dan dat de deze die dit door een en er het hij hoe ik in is je kan maar me
    met mijn naar niet nog of om ook op te tot van veel voor waar waarom wat we wel wie wij
    worden zich zij zijn
    """.split()  # noqa: SIM905  a list of hundreds of strings is harder to read
)


class Passage(Struct, frozen=True):
    """A piece of text, and where it is from."""

    text: str
    source: str


def stem(word: str) -> str:
    """Return a word without its ending, roughly."""
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= LEAST_STEM:
            return word[: -len(suffix)]
    return word


def words_of(text: str) -> list[str]:
    """Return the words of a text that say what it is about, without their endings."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = []
    for word in WORD.findall(folded):
        if UNSPACED.search(word):
            found += _pairs(word)
        elif word not in STOP_WORDS and (len(word) > 1 or word.isdigit()):
            found.append(stem(ACCENTS.sub("", unicodedata.normalize("NFKD", word))))
    return found


def _pairs(word: str) -> list[str]:
    return [word[i : i + 2] for i in range(len(word) - 1)] or [word]


def best_passages(question: str, passages: Sequence[Passage], most: int) -> list[Passage]:
    """Return the passages that a question is about, the best one first; often there are none."""
    asked = set(words_of(question)[:MAX_QUERY_WORDS])
    if not asked or not passages:
        return []
    counts = [Counter(words_of(passage.text)) for passage in passages]
    weights = _weights(asked, counts)
    mean = sum(map(Counter.total, counts)) / len(counts) or 1.0
    scored = [
        (score(count, weights, mean), -index)
        for index, count in enumerate(counts)
        if covered(count, weights) >= LEAST_COVERED
    ]
    scored.sort(reverse=True)
    if not scored:
        return []
    least = scored[0][0] * LEAST_OF_BEST
    return [passages[-index] for value, index in scored[:most] if value >= least]


def _weights(asked: set[str], counts: Sequence[Counter[str]]) -> dict[str, float]:
    """Return how much each word tells: the rarer, the more; most, where it stands nowhere."""
    among = Counter(word for count in counts for word in count.keys() & asked)
    total = len(counts)
    return {w: math.log(1 + (total - among[w] + 0.5) / (among[w] + 0.5)) for w in sorted(asked)}


def covered(count: Counter[str], weights: dict[str, float]) -> float:
    """Return which part of the question's weight a passage holds."""
    return sum(weight for word, weight in weights.items() if word in count) / sum(weights.values())


def score(count: Counter[str], weights: dict[str, float], mean: float) -> float:
    """Return how well a passage fits."""
    length = K1 * (1 - B + B * count.total() / mean)
    return sum(
        weight * count[word] * (K1 + 1) / (count[word] + length)
        for word, weight in weights.items()
        if word in count
    )
