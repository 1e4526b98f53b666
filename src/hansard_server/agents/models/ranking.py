"""Lexical ranking: which words of a question count, and how much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from hansard_server.domain.words import stem, words

_STOP_WORDS_TEXT = """
a about above after again against all also am an and any are as ask at be because been before
being below between both but by can cannot could did do does doing don down during each else ever
every few file files find for from further get give given go had has have having he her here hers
him his how i if in into is it its itself just know let like list look made make many may me mean
means might more most much must my need no nor not now of off on once one only or other our out
over own please quote said same say says search see shall she should show so some such tell than
that the their them then there these they thing things this those through to too under until up
upon us use very want was we were what when where whether which while who whom whose why will with
within without would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())


def content_terms(text: str) -> dict[str, str]:
    """Return the words that say what the text is about, in order, each by its stem, once."""
    terms: dict[str, str] = {}
    for word in words(text):
        if word not in STOP_WORDS and (len(word) > 1 or word.isdigit()):
            terms.setdefault(stem(word), word)
    return terms


def inverse_frequencies(
    terms: Sequence[str], passages: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return how much each term tells passages apart: rare ones the most."""
    containing = Counter(term for passage in passages for term in set(passage))
    count = len(passages)
    return {
        term: math.log(1 + (count - containing[term] + 0.5) / (containing[term] + 0.5))
        for term in terms
    }
