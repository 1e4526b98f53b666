"""What tells that a sentence answers a question, and how passages are judged by it."""

from __future__ import annotations

import pytest

from hansard_server.agents.models.evidence import judge, weigh
from hansard_server.agents.models.passages import Passage, Source, sentences
from hansard_server.agents.models.question import read_question
from hansard_server.agents.models.signs import (
    Signs,
    is_number_far,
    lacks_cause,
    lacks_name,
    lacks_unit,
)

NOTHING = Signs(*[0.0] * len(Signs._fields))


def passage(*lines: str) -> Passage:
    return Passage(Source("art_1", "notes.md"), 1, lines)


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("How high is the tower?", "The tower rises 34 metres.", "The tower has 34 steps."),
        ("How heavy is the bell?", "The bell: 4 tonnes.", "The bell of 1911 is of bronze."),
        ("How long does it last?", "It lasts three hours.", "It lasts since 1911."),
        ("How often is it cleaned?", "It is cleaned every week.", "It is cleaned with soap."),
    ],
)
def test_a_measure_needs_its_unit(question: str, right: str, wrong: str) -> None:
    asked = read_question(question)
    assert not lacks_unit(asked, right)
    assert lacks_unit(asked, wrong)


def test_a_count_stands_beside_what_is_counted() -> None:
    asked = read_question("How many plots are there?")
    assert not is_number_far(asked, "There are ninety-two narrow plots.")
    assert not is_number_far(asked, "Plots: 92")
    assert is_number_far(asked, "Plots are let until they are given back, at 96 pounds a year.")


def test_a_reason_and_a_name_have_their_words() -> None:
    why = read_question("Why was the bridge closed?")
    assert not lacks_cause(why, "The bridge was closed because of ice.")
    assert lacks_cause(why, "The bridge was closed in May.")
    called = read_question("What is the dog of Boaz called?")
    assert not lacks_name(called, "The dog was called Rex.")
    assert lacks_name(called, "The dog lay beside Boaz.")


def test_labels_are_above_what_follows_them() -> None:
    found = sentences(passage("Ports: total: 8; large: 2; oil: 3"))
    assert [each.above for each in found] == ["", "Ports", "Ports"]
    found = sentences(passage("Airports: 4", "", "Railways are none."))
    assert found[-1].above == ""


def test_what_speaks_against_a_sentence_makes_it_less_likely() -> None:
    against = ("unnamed", "no_number", "no_amount", "no_name", "no_unit", "far_number", "title")
    for sign in against:
        assert weigh(NOTHING._replace(**{sign: 1.0})) < weigh(NOTHING)
    for sign in ("covered", "plain", "verbs", "labelled"):
        assert weigh(NOTHING._replace(**{sign: 1.0})) > weigh(NOTHING)


def test_the_passage_that_answers_is_before_the_one_that_only_names() -> None:
    names = passage("The tower of Holm is painted white, and birds nest in the tower.")
    answers = passage("The tower of Holm is 34 metres high.")
    first, second = judge(read_question("How high is the tower of Holm?"), [names, answers])
    assert first.passage is answers
    assert first.score > second.score
