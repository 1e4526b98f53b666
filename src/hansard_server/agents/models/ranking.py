"""Lexical ranking: words, light stems, and BM25 over passages."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W_]+)*")
# Scripts that write without spaces: their words are taken as pairs of characters.
_UNSPACED = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯豈-﫿]+")
_SUFFIXES = ("ations", "ation", "ings", "ing", "ies", "edly", "ed", "es", "ly", "s", "y", "e")
_STEM_MIN_CHARACTERS = 3
_SHORT_SUFFIX_CHARACTERS = 3
_K1 = 1.2
_B = 0.75

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


def words(text: str) -> list[str]:
    """Return the text's words in lower case, in order; CJK runs as pairs of characters."""
    found: list[str] = []
    for match in _WORD.finditer(text.lower()):
        word = re.sub("['\N{RIGHT SINGLE QUOTATION MARK}].*", "", match[0])
        runs = _UNSPACED.findall(word)
        found.extend(pair for run in runs for pair in _pairs(run))
        rest = _UNSPACED.sub("", word) if runs else word
        if rest:
            found.append(rest)
    return found


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


def stem(word: str) -> str:
    """Return what the word has in common with its forms: always a beginning of it."""
    if not word.isascii() or any(character.isdigit() for character in word):
        return word
    for suffix in _SUFFIXES:
        least = _STEM_MIN_CHARACTERS + (len(suffix) > _SHORT_SUFFIX_CHARACTERS)
        if word.endswith(suffix) and len(word) - len(suffix) >= least:
            root = word.removesuffix(suffix)
            break
    else:
        return word
    doubled = (
        len(root) > _STEM_MIN_CHARACTERS and root[-1] == root[-2] and root[-1] not in "aeiousl"
    )
    return root[:-1] if doubled else root


def stems(text: str) -> list[str]:
    """Return the stems of the text's words, stop words included, in order."""
    return [stem(word) for word in words(text)]


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


def bm25(
    passages: Sequence[Sequence[str]], weights: Mapping[str, float], average_length: float
) -> list[float]:
    """Return each passage's score; passages are stems, weights the terms' own."""
    scores = []
    for passage in passages:
        counts = Counter(passage)
        length = _K1 * (1 - _B + _B * len(passage) / max(average_length, 1.0))
        scores.append(
            sum(
                weight * counts[term] * (_K1 + 1) / (counts[term] + length)
                for term, weight in weights.items()
            )
        )
    return scores
