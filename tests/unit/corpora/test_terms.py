"""Terms: other ones in every corpus, and a sample that tells how frequent words are."""

from __future__ import annotations

from hansard_server.corpora.terms import SAMPLED_ONE_OF, CorpusTerms
from hansard_server.domain.corpora import Passage


def test_no_corpus_has_terms_of_another() -> None:
    one, other = CorpusTerms("one"), CorpusTerms("other")
    words = [f"word{number}" for number in range(1_000)]
    assert not set(map(one.of_word, words)) & set(map(other.of_word, words))
    assert not one.of_fields({"a": 1}) & other.of_fields({"a": 1})


def test_kinds_of_terms_are_never_taken_for_one_another() -> None:
    terms = CorpusTerms("one")
    made = [
        *map(terms.of_word, ("a", "x", "1")),
        *map(terms.of_sample, ("", "a", "x")),
        *map(terms.of_document, ("a", "x")),
        *(term for value in ("1", 1, True, "b1", "n1.0") for term in terms.of_fields({"a": value})),
        *terms.of_fields({"a": {"b": "1"}, "a.b": "1", "1:a": "x"}),
    ]
    assert len(set(made)) == len(made)
    assert terms.of_fields({"a": 1}) == terms.of_fields({"a": 1.0})
    assert terms.of_fields({"a": 0.0}) == terms.of_fields({"a": -0.0})


def test_the_sample_is_a_part_of_all_passages() -> None:
    terms = CorpusTerms("one")
    passages = [Passage(number, (), "walrus sea") for number in range(100 * SAMPLED_ONE_OF)]
    made = list(terms.of_passages(passages, {}, "document"))
    sampled = [held for _, held in made if terms.of_sample() in held]
    assert 60 < len(sampled) < 140
    for _, held in made:
        both = {terms.of_sample(word) for word in ("walru", "walrus", "sea")} & held
        assert len(both) == (2 if terms.of_sample() in held else 0)
    assert list(terms.of_passages(passages, {}, "document")) == made
    assert list(terms.of_passages(passages, {}, "another")) != made
