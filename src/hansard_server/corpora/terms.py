"""Terms: what the index of one corpus holds of words and of documents' metadata.

A change of what is made here makes old indexes miss what they have.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from hansard_server.domain.corpora import Passage, Term
from hansard_server.domain.filters import (
    All,
    Comparison,
    Condition,
    OneOf,
    Operator,
    Path,
    Value,
)
from hansard_server.domain.words import stem, words
from hansard_server.repository.corpora import AnyOfTerms

SAMPLED_ONE_OF = 32
_TERM_BYTES = 6
_WORD_MAX_CHARACTERS = 64
_LEVELS_MAX = 4
_ALTERNATIVES_MAX = 64
_ACCENTS = dict.fromkeys(range(0x300, 0x370))
# They stand in every English text and tell none from another.
_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "she",
        "so",
        "such",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "us",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def searched_words(text: str) -> list[str]:
    """Return the stems of a text's words, in order, without stop words and accents."""
    plain = text if text.isascii() else _without_accents(text)
    return [_stem(word[:_WORD_MAX_CHARACTERS]) for word in words(plain) if word not in _STOP_WORDS]


class CorpusTerms:
    """Makes the terms of one corpus."""

    def __init__(self, corpus_uid: str) -> None:
        self._key = corpus_uid.encode()[: blake2b.MAX_KEY_SIZE]

    def of_word(self, stemmed: str) -> Term:
        """Return the term of a stem."""
        return self._term(f"w{stemmed}")

    def of_sample(self, stemmed: str = "") -> Term:
        """Return the term of a stem in the sample; left out: of all that is in the sample.

        One of SAMPLED_ONE_OF passages is in it, so that frequent words are counted fast.
        """
        return self._term(f"s{stemmed}")

    def of_document(self, document_uid: str) -> Term:
        """Return the term that all passages of a document have, and no others."""
        return self._term(f"d{document_uid}")

    def of_passages(
        self, passages: Iterable[Passage], fields: Mapping[str, Any], document_uid: str
    ) -> Iterator[tuple[Passage, frozenset[Term]]]:
        """Yield passages with their terms: words, those of headings, the document, its fields."""
        shared = self.of_fields(fields) | {self.of_document(document_uid)}
        made: dict[str, Term] = {}
        for passage in passages:
            found = set(searched_words(" ".join((*passage.headings, passage.text))))
            for word in found - made.keys():
                made[word] = self.of_word(word)
            terms = shared.union(made[word] for word in found)
            if self._term(f"p{document_uid}/{passage.number}") % SAMPLED_ONE_OF == 0:
                terms |= {self.of_sample(), *map(self.of_sample, found)}
            yield passage, terms

    def of_fields(self, fields: Mapping[str, Any]) -> frozenset[Term]:
        """Return the terms of a document's metadata."""
        return frozenset(self._of_field(path, value) for path, value in _scalars(fields))

    def required(self, condition: Condition | None) -> tuple[AnyOfTerms, ...]:
        """Return terms that every document has which meets the condition: one of each group."""
        match condition:
            case All(conditions):
                return tuple(group for part in conditions for group in self.required(part))
            case Comparison(path, Operator.EQUAL, value) if _is_indexed(path):
                return ((self._of_field(path, value),),)
            case OneOf(path, values) if _is_indexed(path) and (
                0 < len(set(values)) <= _ALTERNATIVES_MAX
            ):
                return (tuple({self._of_field(path, value) for value in values}),)
        return ()

    def answers(self, condition: Condition | None) -> bool:
        """Tell whether the documents that have the required terms are those that meet it."""
        match condition:
            case None:
                return True
            case All(conditions):
                return all(self.answers(part) for part in conditions)
        return bool(self.required(condition))

    def _of_field(self, path: Path, value: Value) -> Term:
        if isinstance(value, bool):
            shown = "b1" if value else "b0"
        elif isinstance(value, str):
            shown = f"s{value}"
        else:
            # 0 and -0 are equal, and so are 1 and 1.0.
            shown = f"n{float(value) + 0.0!r}"
        return self._term("f" + "".join(f"{len(name)}:{name}" for name in path) + shown)

    def _term(self, named: str) -> Term:
        digest = blake2b(named.encode(), digest_size=_TERM_BYTES, key=self._key).digest()
        return int.from_bytes(digest)


def _is_indexed(path: Path) -> bool:
    return len(path) <= _LEVELS_MAX


def _scalars(fields: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Value]]:
    """Yield the texts, numbers and booleans of an object, those inside of objects too."""
    for name, value in fields.items():
        path = (*above, name)
        if isinstance(value, Mapping):
            if len(path) < _LEVELS_MAX:
                yield from _scalars(value, path)
        elif isinstance(value, str | bool | int | float):
            yield path, value


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return stem(word)


def _without_accents(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKD", text).translate(_ACCENTS))
