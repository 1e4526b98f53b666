"""Question: which of its words count, what may stand for them, what kind of answer fits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum

from hansard_server.agents.models.thesaurus import alternatives, kinds
from hansard_server.domain.values import dataclass
from hansard_server.domain.words import stem, words

_STOP_WORDS_TEXT = """
a about above after again against all also am an and any anybody anyone anything are as ask at be
because been before being below between both but by can cannot could did do does doing don done
down during each either else ever every everybody everyone everything few file files find for from
further get gets getting give given go goes got had happen happened happens has have having he her
here hers him his how i if in into is it its itself just know let like list look made make makes
many may me mean means might mine more most much must my myself need no nobody none nor not nothing
now of off on once one only or other our out over own please quote quite rather said same say says
search see shall she should show so some somebody someone something such tell than that the their
theirs them then there these they thing things this those though through thus to too under until up
upon us use used very want was we were what when where whether which while who whom whose why will
with within without would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
# Verbs and other words that say little of what a question is about: a passage may well answer in
# words of its own.
_LIGHT_WORDS_TEXT = """
abandon accept according act actual actually add admit agree aim allow allowed announce appear
apply arrange arrive ask attach attend avoid ban become becomes begin believe belong borrow break
bring brought build burn buy call called cancel carry catch cause certain change charge choose
clean climb close collect come comes compare compared complain compose concerning connect consider
considered consist contain continue control cook copy count cover create cross cut deal decide
deliver depend describe design destroy develop die different discover do drag draw drink drive drop
eat employ enable end enjoy enter escape exactly examine exist expect explain fail fall feed feel
fight fill find finish fit fits fly follow forget form found gain gather get give grow handle hang
happen happened happens hear help hide hit hold hope hurt identify improve include increase inform
introduce invent invite join judge jump keep kept kick kill kind kinds know last lasts laugh lay
lead learn leave lend let lie lift light listen live lives look lose main maintain make manage mark
matter meet mention miss mix move name named need notice number obtain occur offer often open
operate order own paint part pass pay people perform permit permitted person pick place plan play
point possible pour prepare prepared present prevent produce protect prove provide publish pull
push put raise reach read realize reason receive recognize record reduce refer refuse remain
remember remove repair replace reply report represent require rest return ride ring rise roll rule
run save say see seem sell send separate serve set settle shake share shoot shout show shut sing
sit sleep smile solve sort speak spend split spread stand stands start stay steal stick stop study
suffer suggest suit supply support suppose surprise survive take taken takes talk teach tear tell
tend thing think threaten throw touch train travel treat try turn type types understand use visit
wait wake walk want warn wash watch way ways wear win wish wonder work works worry write year yet
"""
_LIGHT_WORDS = frozenset(stem(word) for word in _LIGHT_WORDS_TEXT.split())
_LIGHT = 0.5
_NAME = 1.5
_EARLIER = 0.5

# Adjectives of questions for a measure: passages have the measure's noun and units instead.
_MEASURES = {
    "old": "age aged year years century built founded born",
    "long": "length duration minutes hours days weeks months years km kilometres metres miles term",
    "far": "distance km kilometres metres miles",
    "high": "height elevation altitude m metres feet peak",
    "tall": "height elevation m metres feet",
    "large": "area size square sq surface total",
    "big": "area size square sq surface total",
    "heavy": "weight weighs kg kilos grams tonnes",
    "wide": "width m metres centimetres gauge",
    "deep": "depth m metres",
    "fast": "speed km mph",
    "warm": "temperature degrees",
    "hot": "temperature degrees",
    "cold": "temperature degrees",
    "often": "every daily weekly monthly yearly times annually",
    "late": "until closes ends",
    "loud": "decibels",
}
_MEASURE_WEIGHT = 0.5
_YES_OR_NO = re.compile(
    r"\s*(?:is|are|was|were|do|does|did|can|could|may|must|has|have|should|will)\b", re.IGNORECASE
)
_WHY = re.compile(r"\s*why\b|.*\bfor what reason\b", re.IGNORECASE)
_NAME_ASKED = re.compile(r"\b(?:names?|named|called)\b", re.IGNORECASE)
_SIMILAR_SHARE = 0.6
_MONEY = re.compile(
    r"\b(costs?|prices?|fees?|fines?|pays?|paid|expensive|wages?|salary|salaries|rent|earns?)\b"
)
_MONEY_ASKED = re.compile(r"\b(how much|how expensive|what)\b(?! currency)")
_CURRENCIES = re.compile(
    r"[$\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}]|\b(euros?|pounds?|dollars?|cents?|pence|francs?"
    r"|eur|usd|gbp|chf)\b"
)
_FREE = re.compile(r"\b(free|gratis|nothing|no charge|without charge)\b")

_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
} | {
    word: str(value)
    for value, word in zip(
        range(30, 100, 10),
        ["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"],
        strict=True,
    )
}
_NUMBER_WORDS = frozenset(
    (*_NUMBERS, "hundred", "thousand", "million", "half", "third", "quarter", "twice", "dozen")
) - {"one"}
_MONTHS = frozenset(
    [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ]
)
_DAYS = frozenset(["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"])
_TIMES = frozenset(
    [
        "day",
        "days",
        "week",
        "weeks",
        "month",
        "months",
        "year",
        "years",
        "hour",
        "hours",
        "minute",
        "minutes",
        "morning",
        "noon",
        "evening",
        "midnight",
        "night",
        "daily",
        "weekly",
        "spring",
        "summer",
        "autumn",
        "winter",
        "century",
        "today",
        "yesterday",
        "soon",
        "until",
        "after",
        "before",
        "during",
        "once",
        "end",
        "beginning",
    ]
)
_TOKEN = re.compile(r"[^\W_]+")


class Expected(Enum):
    """What kind of thing a passage must have to be an answer."""

    ANYTHING = "anything"
    NUMBER = "number"
    MONEY = "money"
    TIME = "time"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Term:
    """A word that the question is about.

    Attributes:
        stem: the word's stem.
        word: the word as it was asked, in lower case.
        weight: how much it counts, before its rarity: 1 for most.
        others: stems that may stand for it.
        measured: it is what is counted or measured, so it belongs beside the number.
        asked: it is the kind of thing that is asked for: which …, what ….
    """

    stem: str
    word: str
    weight: float = 1.0
    others: frozenset[str] = frozenset()
    measured: bool = False
    asked: bool = False

    def is_like(self, stemmed: str) -> bool:
        """Tell whether a word with this stem is the term, or may stand for it."""
        return stemmed == self.stem or stemmed in self.others or are_similar(self.stem, stemmed)

    @property
    def is_light(self) -> bool:
        """It is a word that questions are full of, or a measure."""
        return self.weight <= _LIGHT

    @property
    def is_name(self) -> bool:
        """It is written as a name or a number: nothing else stands for it."""
        return self.weight >= _NAME


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to know.

    Attributes:
        measure: the adjective of a question for a measure: how long, how high.
    """

    text: str
    terms: tuple[Term, ...]
    expected: Expected = Expected.ANYTHING
    measure: str = ""

    @property
    def topic(self) -> tuple[str, ...]:
        """The words that it is about, as they were asked."""
        return tuple(term.word for term in self.terms)

    @property
    def is_yes_or_no(self) -> bool:
        """It asks whether something is so."""
        return bool(_YES_OR_NO.match(self.text))

    @property
    def asks_why(self) -> bool:
        """It asks for a reason."""
        return bool(_WHY.match(self.text))

    @property
    def asks_name(self) -> bool:
        """It asks what something is called."""
        return bool(_NAME_ASKED.search(self.text))

    def about_earlier(self, earlier: Question) -> Question:
        """Return the question with the terms of one that was asked before it, which count less."""
        own = {term.stem for term in self.terms}
        more = (
            replace(term, weight=term.weight * _EARLIER)
            for term in earlier.terms
            if term.stem not in own
        )
        return replace(self, terms=(*self.terms, *more))


def read_question(text: str) -> Question:
    """Return what the text asks."""
    found = content_terms(text)
    names = _names(text)
    measure = _measure(text)
    counted = re.search(r"\bhow many (\w+)", fold(text).lower())
    asked = re.search(r"\b(?:which|what) (?:kind of |sort of |type of )?(\w+)", fold(text).lower())
    terms = []
    for stemmed, word in found.items():
        if word == measure:
            continue
        of_kind = asked is not None and asked[1] == word and stemmed not in _LIGHT_WORDS
        terms.append(
            Term(
                stemmed,
                word,
                _weight(stemmed, word, names),
                alternatives(stemmed) | (kinds(stemmed) if of_kind else frozenset()),
                measured=counted is not None and counted[1] == word,
                asked=of_kind,
            )
        )
    if measure:
        others = frozenset(map(stem, _MEASURES[measure].split())) | alternatives(stem(measure))
        terms.append(Term(stem(measure), measure, _MEASURE_WEIGHT, others, measured=True))
    return Question(text, tuple(terms), _expected(text, measure), measure)


def content_terms(text: str) -> dict[str, str]:
    """Return the words that say what the text is about, in order, each by its stem, once."""
    terms: dict[str, str] = {}
    for word in words(fold(text)):
        if word not in STOP_WORDS and (len(word) > 1 or word.isdigit()):
            terms.setdefault(stem(_NUMBERS.get(word, word)), word)
    return terms


def tokens(text: str) -> list[str]:
    """Return the stems of a passage's words in order, numbers as digits, without accents."""
    return [stem(_NUMBERS.get(word, word)) for word in words(fold(text))]


def are_similar(one: str, other: str) -> bool:
    """Tell whether two stems begin with so much in common that they may be of one family."""
    longer = max(len(one), len(other))
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared >= longer * _SIMILAR_SHARE


def fold(text: str) -> str:
    """Return the text without accents."""
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in plain if not "\u0300" <= c <= "\u036f")
    return unicodedata.normalize("NFC", kept)


def fits_kind(question: Question, text: str, above: str = "") -> bool:
    """Tell whether the text has what such a question asks for, and does not say itself.

    `above`: the heading or the head of the table, which may name the currency of an amount.
    """
    expected = question.expected
    if expected is Expected.ANYTHING:
        return True
    asked = {*question.topic, *(term.stem for term in question.terms)}
    if expected is Expected.NAME:
        # The first word of a sentence begins with a capital letter whatever it is.
        names = re.findall(r"(?<=[^.!?>#|\s]\s)[(\"'\u201c]?([^\W\d_a-z]\w+)", fold(text))
        return any(not {name.lower(), stem(name.lower())} & asked for name in names)
    found = set(_TOKEN.findall(fold(text).lower())) - asked
    has_number = any(any(c.isdigit() for c in word) for word in found) or bool(
        found & _NUMBER_WORDS
    )
    if expected is Expected.MONEY:
        lower = text.lower()
        return bool(_FREE.search(lower)) or (
            has_number and bool(_CURRENCIES.search(f"{above.lower()} {lower}"))
        )
    if expected is Expected.NUMBER:
        return has_number or bool(found & {"single", "no", "none", "nothing", "one"})
    return has_number or bool(found & (_MONTHS | _DAYS | _TIMES))


def _weight(stemmed: str, word: str, names: frozenset[str]) -> float:
    if word in names or word.isdigit():
        return _NAME
    return _LIGHT if stemmed in _LIGHT_WORDS else 1.0


def _names(text: str) -> frozenset[str]:
    """Return the words that are written as names: with a capital letter, not as the first."""
    found = list(_TOKEN.finditer(fold(text)))
    return frozenset(
        match[0].lower()
        for match in found[1:]
        if match[0][0].isupper() and not text[: match.start()].rstrip().endswith((".", "?", "!"))
    )


def _measure(text: str) -> str:
    match = re.search(r"\bhow (\w+)", text.lower())
    return match[1] if match and match[1] in _MEASURES else ""


def _expected(text: str, measure: str) -> Expected:
    lower = f" {fold(text).lower()} "
    if _MONEY.search(lower) and _MONEY_ASKED.search(lower):
        return Expected.MONEY
    if measure or re.search(
        r"\bhow (many|much)\b|\bwhat (percentage|share|proportion|sum|price)\b", lower
    ):
        return Expected.NUMBER
    if re.search(
        r"\bwhen\b|\b(what|which) (year|day|date|month|time|weekday|age|century)\b", lower
    ):
        return Expected.TIME
    if re.search(r"\b(who|whom|whose)\b", lower):
        return Expected.NAME
    return Expected.ANYTHING


def stem_list(terms: Sequence[Term]) -> list[str]:
    """Return the stems of the terms and of what may stand for them, each once."""
    every: Mapping[str, None] = dict.fromkeys(
        stemmed for term in terms for stemmed in (term.stem, *sorted(term.others))
    )
    return list(every)
