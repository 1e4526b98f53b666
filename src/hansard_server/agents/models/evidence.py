"""Evidence: how well a passage answers a question, from 0 to 1, by its words alone.

Each word of the question is looked for in every sentence of a passage, then in the headings above,
in the rest of the passage, and in its source; the further away it is found, the less it counts.
Rare words count more than frequent ones. So a passage that has all words in one sentence is near 1,
and one that has some of them here and there is not.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hansard_server.agents.models.passages import Passage, Sentence, label, sentences
from hansard_server.agents.models.question import Expected, Question, Term, are_similar, tokens
from hansard_server.agents.models.signs import (
    Signs,
    is_number_far,
    lacks_cause,
    lacks_kind,
    lacks_name,
    lacks_unit,
)
from hansard_server.domain.values import dataclass

_SYNONYM = 0.85
_SIMILAR = 0.75
_SIMILAR_MIN = 4
_HEADING = 0.9
_ELSEWHERE = 0.45
_SOURCE = 0.8
_SAME_SOURCE = 0.3
# Fitted by logistic regression, with a penalty on large ones, to the sentences that were found for
# the tuned questions: those that answer them, and the best of the others. `_CONSTANT` is of a
# sentence that has nothing of the question. ADR 0021 says more.
_CONSTANT = -4.3
_WEIGHTS = Signs(
    covered=3.8,
    plain=2.8,
    verbs=1.1,
    labelled=0.8,
    unnamed=-1.5,
    unasked=-0.3,
    uncounted=-1.1,
    no_number=-1.3,
    no_amount=-1.3,
    no_name=-0.8,
    no_unit=-1.3,
    far_number=-1.1,
    unsaid_name=-0.8,
    no_cause=-0.3,
    yes_or_no=-0.4,
    title=-1.4,
    one_word=-0.6,
    two_words=-0.6,
)


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
        if any(are_similar(term.stem, other) for other in self._near(term.stem)):
            return _SIMILAR
        return 0.0

    def _near(self, stemmed: str) -> Sequence[str]:
        if len(stemmed) < _SIMILAR_MIN or any(character.isdigit() for character in stemmed):
            return ()
        return self._by_beginning.get(stemmed[:_SIMILAR_MIN], ())


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
    judged = [
        Judged(view.passage, view.score(question, weights, in_sources[view.passage.source.key]))
        for view in views
    ]
    order = sorted(range(len(judged)), key=lambda index: (-judged[index].score, index))
    return [judged[index] for index in order]


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
            (weigh(signs) for signs in self.signs(question, weights, in_source)),
            default=-math.inf,
        )

    def signs(
        self, question: Question, weights: Mapping[Term, float], in_source: Mapping[Term, float]
    ) -> Iterator[Signs]:
        """Yield what speaks for and against each sentence."""
        whole = sum(weights.values())
        heavy = [term for term in weights if not term.is_light]
        light = [term for term in weights if term.is_light and not term.measured]
        for index, sentence in enumerate(self._sentences):
            within = {term: self._in_sentence[term][index] for term in weights}
            near = {
                term: max(within[term], _HEADING * self._in_heading[term][index])
                for term in weights
            }
            held = {
                term: max(
                    near[term],
                    _SOURCE * self._in_source[term],
                    _ELSEWHERE * self.found[term],
                    _SAME_SOURCE * in_source[term],
                )
                for term in weights
            }
            text, above = sentence.text, sentence.above
            yield Signs(
                covered=sum(weight * held[term] for term, weight in weights.items()) / whole,
                plain=_mean([held[term] for term in heavy], 1.0),
                verbs=_mean([near[term] for term in light], 0.0),
                labelled=self._is_labelled(sentence, heavy),
                unnamed=sum(term.is_name and not held[term] for term in weights),
                unasked=any(term.asked and not near[term] for term in weights),
                uncounted=any(term.measured and not within[term] for term in weights),
                no_number=lacks_kind(question, Expected.NUMBER, text, above),
                no_amount=lacks_kind(question, Expected.MONEY, text, above),
                no_name=lacks_kind(question, Expected.NAME, text, above),
                no_unit=lacks_unit(question, text),
                far_number=is_number_far(question, text),
                unsaid_name=lacks_name(question, text),
                no_cause=lacks_cause(question, text),
                yes_or_no=question.is_yes_or_no,
                title=text == above,
                one_word=len(heavy) <= 1,
                two_words=len(heavy) == 2,  # noqa: PLR2004
            )

    def _is_labelled(self, sentence: Sentence, terms: Sequence[Term]) -> bool:
        words = Words(f"{label(sentence.text)} {sentence.above}")
        return any(words.has(term) for term in terms)


def weigh(signs: Signs) -> float:
    """Return the logarithm of the odds that a sentence with these signs is an answer."""
    return _CONSTANT + sum(
        weight * sign for weight, sign in zip(_WEIGHTS, signs, strict=True) if sign
    )


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _separate(name: str) -> str:
    """Return a file's name as words."""
    return name.replace("_", " ").replace("-", " ").replace(".", " ")
