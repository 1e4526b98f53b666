"""Passages: parts of the text word for word, that together are all of it, cut where one would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard_server.corpora.passages import PASSAGE_MAX_CHARACTERS, split_text
from hansard_server.corpora.terms import searched_words

PIECES = [
    *("# One\n", "## Two ##\n", "### Three\n", "#none\n", "Words. ", "more words ", "\n", "\n\n"),
    *(
        "```\n",
        "~~~\n",
        "    code\n",
        "| a | b |\n",
        "x" * 700,
        "中文字" * 200,
        "\r\n",
        "\t",
        " " * 50,
    ),
    *("A sentence. " * 30, "é\u0301", "- item\n"),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
)


@given(TEXTS)
def test_passages_are_the_text_in_order(text: str) -> None:
    passages = split_text(text)
    assert [passage.number for passage in passages] == list(range(1, len(passages) + 1))
    place = 0
    left_out = []
    for passage in passages:
        assert 0 < len(passage.text) <= PASSAGE_MAX_CHARACTERS
        start = text.index(passage.text, place)
        left_out.append(text[place:start])
        place = start + len(passage.text)
    assert not "".join([*left_out, text[place:]]).strip()


def test_headings_are_those_above() -> None:
    body = "Words of a paragraph. " * 12
    text = f"# Guide\n\n## Refunds\n\n{body}\n\n### Cash\n\n{body}\n\n## Shipping #\n{body}\n"
    assert [passage.headings for passage in split_text(text)] == [
        ("Guide", "Refunds"),
        ("Guide", "Refunds", "Cash"),
        ("Guide", "Shipping"),
    ]


def test_short_sections_share_a_passage() -> None:
    text = "# A\n\nOne.\n\n# B\n\nTwo.\n"
    (passage,) = split_text(text)
    assert passage.text == text.strip()
    assert passage.headings == ("A",)


def test_paragraphs_stay_whole_where_they_can() -> None:
    paragraph = "A sentence of some words. " * 20
    passages = split_text("\n\n".join([paragraph.strip()] * 5))
    assert [passage.text.count("\n\n") for passage in passages] == [0] * 5


def test_long_paragraphs_are_cut_between_sentences() -> None:
    passages = split_text("A sentence of some words. " * 200)
    assert all(passage.text.endswith(".") for passage in passages)
    assert min(len(passage.text) for passage in passages[:-1]) > PASSAGE_MAX_CHARACTERS // 2


def test_code_is_not_cut_at_what_looks_like_a_heading() -> None:
    code = "```\n# no heading\n\n" + "print(1)\n" * 40 + "```\n"
    (passage,) = split_text(f"# Title\n\n{code}")
    assert passage.headings == ("Title",)


@pytest.mark.parametrize(
    "text",
    ["# " + " " * 2**20 + "x", "# " + "# " * 2**19, "#" * 2**20, "`" * 2**20, "\n" * 2**20],
    ids=["spaces", "hashes", "hash", "fences", "lines"],
)
def test_hostile_texts_are_cut_all_the_same(text: str) -> None:
    # Anything quadratic takes hours here.
    assert all(len(passage.text) <= PASSAGE_MAX_CHARACTERS for passage in split_text(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Refunds were REFUNDED, and refunding", ["refund", "refund", "refund"]),
        ("Café CAFE cafe\u0301", ["caf", "caf", "caf"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("Größe 2024-11", ["große", "2024", "11"]),
    ],
)
def test_words_are_found_in_all_their_forms(text: str, words: list[str]) -> None:
    # What indexes hold: when this changes, they have to be made anew.
    assert searched_words(text) == words
