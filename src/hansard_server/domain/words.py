"""Words: what a text is searched by, light stems, and BM25 over passages.

Indexes hold what `words` and `stem` return: a change makes old indexes miss what they have.
"""

from __future__ import annotations

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
