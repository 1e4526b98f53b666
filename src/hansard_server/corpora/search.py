"""Search: passages that have the question's words, ranked by BM25.

The work is bounded, however large the corpus. Words that are in few passages say which passages are
looked at; frequent ones only add to the score, and where all are frequent, passages that have them
all are looked at first.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hansard.v1 import corpus_service_pb2
from hansard_server.corpora.filters import parse_filter
from hansard_server.corpora.terms import SAMPLED_ONE_OF, CorpusTerms, searched_words
from hansard_server.domain.corpora import CorpusRecord, StoredPassage
from hansard_server.domain.filters import All, Condition
from hansard_server.domain.values import dataclass
from hansard_server.domain.words import bm25
from hansard_server.repository.api import ReadTx, Store
from hansard_server.repository.corpora import AnyOfTerms, Lookup

LIMIT_DEFAULT = 10
WORDS_MAX = 64
"""So many different words of a question count."""
FREQUENT_FROM = 500
"""A word that so many passages have is frequent."""
DOCUMENTS_EXAMINED_MAX = 5_000
"""Up to so many documents are looked through for a condition that the index can't answer."""
DOCUMENTS_MAX = 100
"""If so many meet it or fewer, their passages are searched alone."""
EXAMINED_MAX = 2_000
"""Else it is checked on the passages that have the words, so many for each word."""
_READ_MAX = 100
"""So many passages are read and ranked, or twice what is wanted."""
_SAMPLE_MIN = 32
"""From so many on, what the sample has of a word says how many passages have it."""
_SAMPLE_MAX = 4_096
_AVERAGE_WORDS = 110
"""In a passage that is as long as most are, without stop words."""


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that fits, and how well."""

    corpus_key: str
    stored: StoredPassage
    score: float


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A corpus, and the condition that its documents must meet."""

    corpus_key: str
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Passages of one corpus, and what each word weighs there."""

    corpus_key: str
    passages: Sequence[StoredPassage]
    weights: Mapping[str, float]


class CorpusSearch:
    """Searches the corpora of a tenant."""

    def __init__(self, store: Store) -> None:
        """Search in `store`."""
        self._store = store

    async def search(
        self, tenant: str, request: corpus_service_pb2.SearchCorporaRequest
    ) -> list[Found]:
        """Return the passages that fit best, the best first.

        Raises InvalidRequest for filters that can't be read, CorpusNotFound.
        """
        wanted = await asyncio.to_thread(_read_filters, request)
        limit = request.limit or LIMIT_DEFAULT
        words = list(dict.fromkeys(searched_words(request.query)))[:WORDS_MAX]

        def query(tx: ReadTx) -> list[_Candidates]:
            corpora = [tx.get_corpus(tenant, each.corpus_key) for each in wanted]
            return [
                _find_candidates(tx, corpus, words, each.condition, limit)
                for corpus, each in zip(corpora, wanted, strict=True)
            ]

        candidates = await self._store.read(query)
        return await asyncio.to_thread(_rank, candidates, limit)


def _read_filters(request: corpus_service_pb2.SearchCorporaRequest) -> list[_Wanted]:
    everywhere = parse_filter(request.metadata_filter, "metadata_filter")
    wanted: list[_Wanted] = []
    for index, each in enumerate(request.corpora):
        own = parse_filter(each.metadata_filter, f"corpora[{index}].metadata_filter")
        both = tuple(condition for condition in (own, everywhere) if condition is not None)
        wanted.append(_Wanted(each.corpus_key, All(both) if both else None))
    return wanted


def _find_candidates(
    tx: ReadTx,
    corpus: CorpusRecord,
    words: Sequence[str],
    condition: Condition | None,
    limit: int,
) -> _Candidates:
    entries = _Entries(tx, corpus, condition)
    having = {word: entries.count(word) for word in words}
    frequent = [word for word, count in having.items() if count >= FREQUENT_FROM]
    total = max([entries.count(), *having.values()])
    weights = {word: _weight(count, total) for word, count in having.items()}
    promise: defaultdict[int, float] = defaultdict(float)
    for word in words:
        if word not in frequent:
            for passage_id in entries.find(word):
                promise[passage_id] += weights[word]
    if len(frequent) > 1:
        for passage_id in entries.find(*frequent):
            promise[passage_id] += sum(weights[word] for word in frequent)
    most = max(_READ_MAX, 2 * limit)
    for word in frequent:
        if len(promise) < most:
            for passage_id in entries.find(word):
                promise.setdefault(passage_id, weights[word])
    best = sorted(promise, key=lambda passage_id: (-promise[passage_id], passage_id))[:most]
    passages = tx.get_passages(corpus.tenant, corpus.uid, best)
    return _Candidates(corpus.key, passages, weights)


class _Entries:
    """What the index of a corpus has of documents that meet a condition."""

    def __init__(self, tx: ReadTx, corpus: CorpusRecord, condition: Condition | None) -> None:
        self._tx = tx
        self._corpus = corpus
        self._condition = condition
        self._terms = CorpusTerms(corpus.uid)
        self._required = self._terms.required(condition)
        self._max_rows = FREQUENT_FROM if self._terms.answers(condition) else EXAMINED_MAX
        if (
            condition is not None
            and not self._terms.answers(condition)
            and corpus.document_count <= DOCUMENTS_EXAMINED_MAX
        ):
            few = tx.find_documents(corpus.tenant, corpus.uid, condition, DOCUMENTS_MAX + 1)
            if len(few) <= DOCUMENTS_MAX:
                self._required = (tuple(map(self._terms.of_document, few)),)
                self._max_rows = FREQUENT_FROM

    def count(self, word: str = "") -> int:
        """Return how many passages have the word, or, left out, how many there are.

        Up to FREQUENT_FROM it is exact, beyond it may be an estimate, and is that or more.
        """
        if not word and not self._required:
            return self._corpus.passage_count
        terms = self._terms_of((word,) if word else ())
        if not all(terms):
            return 0
        in_sample = ((self._terms.of_sample(word),), *self._required)
        sampled = self._tx.count_passages(in_sample, _SAMPLE_MAX)
        if sampled >= _SAMPLE_MIN:
            return max(FREQUENT_FROM, sampled * SAMPLED_ONE_OF)
        return self._tx.count_passages(terms, FREQUENT_FROM)

    def find(self, *words: str) -> Sequence[int]:
        """Return the ids of passages that have all the words, at most FREQUENT_FROM."""
        terms = self._terms_of(words)
        if not all(terms):
            return ()
        lookup = Lookup(
            terms=terms,
            condition=self._condition,
            limit=FREQUENT_FROM,
            max_rows=self._max_rows,
        )
        return self._tx.find_passages(self._corpus.tenant, self._corpus.uid, lookup)

    def _terms_of(self, words: Iterable[str]) -> tuple[AnyOfTerms, ...]:
        return (*((self._terms.of_word(word),) for word in words), *self._required)


def _weight(having: int, total: int) -> float:
    """Return what BM25 calls the inverse document frequency, never negative."""
    return math.log(1 + (total - having + 0.5) / (having + 0.5))


def _rank(candidates: Iterable[_Candidates], limit: int) -> list[Found]:
    found: dict[tuple[str, str, int], Found] = {}
    for each in candidates:
        texts = [
            searched_words(" ".join((*stored.passage.headings, stored.passage.text)))
            for stored in each.passages
        ]
        scores = bm25(texts, each.weights, _AVERAGE_WORDS)
        for stored, score in zip(each.passages, scores, strict=True):
            key = (each.corpus_key, stored.document_id, stored.passage.number)
            # A corpus may be named twice, with other conditions each time.
            if score > 0 and (key not in found or found[key].score < score):
                found[key] = Found(each.corpus_key, stored, score)
    ordered = sorted(found.items(), key=lambda item: (-item[1].score, item[0]))
    return [passage for _, passage in ordered[:limit]]
