"""Evidence: how well a passage answers a question, from 0 to 1, by its words alone.

Each word of the question is looked for in every sentence of a passage, then in the headings above,
in the rest of the passage, and in its source; the further away it is found, the less it counts.
Rare words count more than frequent ones. So a passage that has all words in one sentence is near 1,
and one that has some of them here and there is not.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hansard_server.agents.models.passages import Passage, sentences
from hansard_server.agents.models.question import Question, Term, fits_kind, tokens

_SYNONYM = 0.85
_SIMILAR = 0.75
_SIMILAR_SHARE = 0.6
_SIMILAR_MIN = 4
_HEADING = 0.9
_ELSEWHERE = 0.45
_SOURCE = 0.8
_SAME_SOURCE = 0.3
_WRONG_KIND = 0.65
_UNNAMED = 0.7
_OTHER_SUBJECT = 0.8
_SUBJECT_SHARE = 0.6
_UNASKED = 0.9


@dataclass(frozen=True, slots=True)
class Judged:
    """A passage, and how well it fits."""

    passage: Passage
    score: float


class Words:
    """The words of a text, to be asked for a term."""

    def __init__(self, text: str | Iterable[str]) -> None:
        """Hold the words of the text."""
        self.stems = frozenset(tokens(text if isinstance(text, str) else " ".join(text)))
        self._by_beginning: defaultdict[str, list[str]] = defaultdict(list)
        for stemmed in self.stems:
            self._by_beginning[stemmed[:_SIMILAR_MIN]].append(stemmed)

    def has(self, term: Term) -> float:
        """Return how surely the text has the term: 1 the word itself, less for what is like it."""
        if term.stem in self.stems:
            return 1.0
        if term.others & self.stems:
            return _SYNONYM
        if any(_similar(term.stem, other) for other in self._near(term.stem)):
            return _SIMILAR
        return 0.0

    def _near(self, stemmed: str) -> Sequence[str]:
        if len(stemmed) < _SIMILAR_MIN or any(character.isdigit() for character in stemmed):
            return ()
        return self._by_beginning.get(stemmed[:_SIMILAR_MIN], ())


def _similar(one: str, other: str) -> bool:
    """Tell whether two stems begin with so much in common that they may be of one family."""
    longer = max(len(one), len(other))
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared >= longer * _SIMILAR_SHARE


def judge(question: Question, passages: Sequence[Passage]) -> list[Judged]:
    """Return the passages with their scores, the best first."""
    views = [_View(passage) for passage in passages]
    weights = _weights(question.terms, views)
    whole = sum(weights.values())
    if not whole:
        return []
    by_source: defaultdict[str, list[_View]] = defaultdict(list)
    for view in views:
        by_source[view.passage.source.key].append(view)
    in_sources = {
        key: {term: max(view.found[term] for view in group) for term in question.terms}
        for key, group in by_source.items()
    }
    about = {
        key: 1.0 if _is_about(found, weights) else _OTHER_SUBJECT
        for key, found in in_sources.items()
    }
    judged = []
    for view in views:
        key = view.passage.source.key
        value = view.score(question, weights, in_sources[key]) / whole
        judged.append(Judged(view.passage, value * about[key]))
    order = sorted(range(len(judged)), key=lambda index: (-judged[index].score, index))
    return [judged[index] for index in order]


def _is_about(found: Mapping[Term, float], weights: Mapping[Term, float]) -> bool:
    """Tell whether a source has, anywhere, enough of what the question is about."""
    counted = {term: weight for term, weight in weights.items() if not term.is_light}
    held = sum(weight * min(1.0, found[term] / _SIMILAR) for term, weight in counted.items())
    return held >= _SUBJECT_SHARE * sum(counted.values())


def _weights(terms: Sequence[Term], views: Sequence[_View]) -> dict[Term, float]:
    """Return what each term counts: by itself, and the more the fewer passages have it."""
    having: Counter[Term] = Counter()
    for view in views:
        view.look_for(terms)
        having.update(term for term in terms if view.found[term])
    count = len(views)
    rarity = {
        term: math.log(1 + (count - having[term] + 0.5) / (having[term] + 0.5)) for term in terms
    }
    # Which verb a passage has says little, and that it has a rare one no more.
    return {term: term.weight * (1 + (0 if term.is_light else rarity[term])) for term in terms}


class _View:
    """A passage as its judge sees it."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self._sentences = sentences(passage)
        self._words = [Words(sentence.text) for sentence in self._sentences]
        self._above = [Words(sentence.above) for sentence in self._sentences]
        self._headings = Words(passage.headings)
        self._source = Words(_separate(passage.source.name))
        self.found: dict[Term, float] = {}
        self._in_sentence: dict[Term, list[float]] = {}
        self._in_heading: dict[Term, list[float]] = {}
        self._in_source: dict[Term, float] = {}

    def look_for(self, terms: Sequence[Term]) -> None:
        """Look for the terms."""
        for term in terms:
            top = self._headings.has(term)
            self._in_sentence[term] = [words.has(term) for words in self._words]
            self._in_heading[term] = [max(top, words.has(term)) for words in self._above]
            self._in_source[term] = self._source.has(term)
            self.found[term] = max(
                (*self._in_sentence[term], *self._in_heading[term], self._in_source[term])
            )

    def score(
        self, question: Question, weights: Mapping[Term, float], in_source: Mapping[Term, float]
    ) -> float:
        """Return the score of the best sentence."""
        return max(
            (
                self._score_sentence(index, weights, in_source)
                * (1.0 if self._fits(question, index) else _WRONG_KIND)
                for index in range(len(self._sentences))
            ),
            default=0.0,
        )

    def _fits(self, question: Question, index: int) -> bool:
        """Tell whether the sentence has the kind of thing that is asked for."""
        sentence = self._sentences[index]
        return fits_kind(question, sentence.text, sentence.above) and all(
            self._in_sentence[term][index] for term in question.terms if term.measured
        )

    def _score_sentence(
        self, index: int, weights: Mapping[Term, float], in_source: Mapping[Term, float]
    ) -> float:
        value, factor = 0.0, 1.0
        for term, weight in weights.items():
            near = max(self._in_sentence[term][index], _HEADING * self._in_heading[term][index])
            held = max(
                near,
                _SOURCE * self._in_source[term],
                _ELSEWHERE * self.found[term],
                _SAME_SOURCE * in_source[term],
            )
            value += weight * held
            if term.is_name and not held:
                factor *= _UNNAMED
            if term.asked and not near:
                factor *= _UNASKED
        return value * factor


def _separate(name: str) -> str:
    """Return a file's name as words."""
    return name.replace("_", " ").replace("-", " ").replace(".", " ")
