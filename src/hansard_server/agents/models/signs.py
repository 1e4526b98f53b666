"""Signs: what tells that a sentence answers a question, and what speaks against it."""

from __future__ import annotations

import re
from typing import NamedTuple

from hansard_server.agents.models.question import Expected, Question, fits_kind, fold, tokens
from hansard_server.domain.words import stem

_LENGTH = (
    r"(?:m|km|cm|mm|ft|feet|foot|inch|inches|miles?|met(?:er|re)s?|kilomet(?:er|re)s?"
    r"|centimet(?:er|re)s?|cubits?|yards?|fathoms?)"
)
_DURATION = (
    r"(?:seconds?|minutes?|hours?|days?|nights?|weeks?|fortnights?|months?|years?|centur(?:y|ies)"
    r"|decades?|seasons?|terms?)"
)
_NUMBER = (
    r"(?:\d[\d.,]*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen"
    r"|\w+ty(?:[- ]\w+)?|hundred|thousand|million|half|an?|several|few|many)"
)


def _of(units: str, otherwise: str = "") -> re.Pattern[str]:
    pattern = rf"\b{_NUMBER}(?:[- ]\w+)?[- ]?{units}\b"
    return re.compile(f"{pattern}|{otherwise}" if otherwise else pattern, re.IGNORECASE)


# What stands beside the number that "how old", "how long" and so on ask for.
_UNITS = {
    "old": _of(
        r"(?:years?|months?|age)", r"\b(?:age|aged|oldest|1\d{3}|20\d\d|founded|born|built)\b"
    ),
    "long": _of(f"(?:{_LENGTH}|{_DURATION})"),
    "far": _of(_LENGTH),
    "high": _of(_LENGTH),
    "tall": _of(_LENGTH),
    "wide": _of(_LENGTH),
    "deep": _of(_LENGTH),
    "heavy": _of(r"(?:kg|kilos?|kilograms?|grams?|tonnes?|tons?|pounds?|lbs?|g|t)"),
    "fast": _of(r"(?:km|mph|kmh|knots?|miles?|minutes?|hours?|days?|turns?)"),
    "warm": _of(r"degrees?"),
    "hot": _of(r"degrees?"),
    "cold": _of(r"degrees?"),
    "often": re.compile(
        r"\b(?:every|daily|weekly|monthly|yearly|annually|nightly|hourly|once|twice|times|each"
        r"|per|a (?:day|week|month|year))\b",
        re.IGNORECASE,
    ),
    "late": re.compile(r"\b(?:until|till|closes?|ends?|by|at|shuts?)\b", re.IGNORECASE),
    "loud": _of(r"(?:decibels?|db)"),
}
_CAUSE = re.compile(
    r"\b(?:because|since|as|for|so that|lest|due|in order|therefore|thus|hence|otherwise|reason"
    r"|cause[ds]?|to|after)\b",
    re.IGNORECASE,
)
_NAMES = re.compile(r"(?<![.!?>#|]\s)\b([^\W\d_a-z]\w+)")
_NAMING = re.compile(r"\b(?:names?|named|called|call)\b|[:|]", re.IGNORECASE)
# So many words before what is counted, or after it, a number may stand.
_COUNT_BEFORE = 5
_COUNT_AFTER = 2


class Signs(NamedTuple):
    """What is seen in a sentence; each counts by a weight of its own.

    Attributes:
        covered: the share of the question's words that is there or near, the rare ones more.
        plain: the same, each word alike and without those that questions are full of.
        verbs: the share of those.
        labelled: the heading or the label says one of the words.
        unnamed: how many of the question's names the whole source lacks.
        unasked: the kind of thing that is asked for is not there.
        uncounted: what is counted or measured is not there.
        no_number, no_amount, no_name: this is asked for, and there is none that the question
            does not say itself.
        no_unit: a measure is asked for, and no number with such a unit is there.
        far_number: a number is asked for, and none is beside what is counted.
        unsaid_name: it is asked what something is called, and nothing is said to be called so.
        no_cause: a reason is asked for, and no word of a reason is there.
        yes_or_no: all that is asked would have to stand there.
        title: it is nothing but a heading.
        one_word, two_words: the question has so few that a sentence may have them by chance.
    """

    covered: float
    plain: float
    verbs: float
    labelled: float
    unnamed: float
    unasked: float
    uncounted: float
    no_number: float
    no_amount: float
    no_name: float
    no_unit: float
    far_number: float
    unsaid_name: float
    no_cause: float
    yes_or_no: float
    title: float
    one_word: float
    two_words: float


def lacks_kind(question: Question, expected: Expected, text: str, above: str) -> bool:
    """Tell whether the question asks for this kind of thing, and the text has none."""
    return question.expected is expected and not fits_kind(question, text, above)


def lacks_unit(question: Question, text: str) -> bool:
    """Tell whether the question asks for a measure, and the text has no number with its unit."""
    unit = _UNITS.get(question.measure)
    return unit is not None and not unit.search(text)


def lacks_cause(question: Question, text: str) -> bool:
    """Tell whether the question asks for a reason, and the text has no word of one."""
    return question.asks_why and not _CAUSE.search(text)


def lacks_name(question: Question, text: str) -> bool:
    """Tell whether the question asks what something is called, and the text does not say it."""
    if not question.asks_name:
        return False
    asked = {*question.topic, *(term.stem for term in question.terms)}
    names = (name.lower() for name in _NAMES.findall(fold(text)))
    is_new = any(not {name, stem(name)} & asked for name in names)
    return not (is_new and _NAMING.search(text))


def is_number_far(question: Question, text: str) -> bool:
    """Tell whether something is counted, and no number is beside it in the text."""
    counted = [term for term in question.terms if term.measured]
    if not counted or question.measure:
        return False
    found = tokens(text)
    places = [
        index for index, word in enumerate(found) if any(term.is_like(word) for term in counted)
    ]
    numbers = [index for index, word in enumerate(found) if _is_number(word)]
    return not any(
        -_COUNT_BEFORE <= number - place <= _COUNT_AFTER for place in places for number in numbers
    )


def _is_number(word: str) -> bool:
    return word[0].isdigit() or word in _NUMBER_STEMS


_NUMBER_STEMS = frozenset(
    map(stem, ["hundred", "thousand", "million", "half", "third", "quarter", "twice", "dozen"])
) | {"single", "no"}
