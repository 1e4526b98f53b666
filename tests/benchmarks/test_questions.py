"""`hansard/extractive` answers questions over documents: in a corpus, and as files of a session.

Half of the documents are held out: the model was made without a look at how it does on them.
The model's weights are fitted to further questions, most of them harder: they are held to less.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hansard_client import Hansard
from tests.benchmarks.processes import serve
from tests.support.databases import Databases
from tests.support.questions import Document, read_documents, read_more
from tests.support.quiz import Marks, Quiz

GOAL = 0.8
MORE_GOAL = 0.72
TUNED, HELD_OUT, MORE = "tuned", "held out", "further"


@pytest.fixture(scope="module")
def hansard(
    store_url: str, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hansard]:
    """Give a client of a server."""
    with (
        serve(tmp_path_factory.mktemp("questions"), store_url) as served,
        Hansard(served.address) as hansard,
    ):
        yield hansard


def test_questions_are_answered(hansard: Hansard, database: str) -> None:
    quiz = Quiz(hansard)
    ids = quiz.fill(read_documents())
    marks = {(half, "corpus"): quiz.ask_corpus(of(half), ids) for half in (TUNED, HELD_OUT)}
    marks |= {(half, "files"): quiz.ask_files(of(half)) for half in (TUNED, HELD_OUT)}
    print(to_table(f"Questions over documents, {database}", marks))  # noqa: T201
    low = find_low(marks, GOAL)
    assert not low, low


def test_further_questions_are_answered(hansard: Hansard, database: str) -> None:
    quiz = Quiz(hansard, "further")
    ids = quiz.fill(read_more())
    marks = {(MORE, "corpus"): quiz.ask_corpus(read_more(), ids)}
    print(to_table(f"Further questions, {database}", marks))  # noqa: T201
    low = find_low(marks, MORE_GOAL)
    assert not low, low


def find_low(marks: dict[tuple[str, str], Marks], goal: float) -> list[str]:
    """Return what is below the goal."""
    return [
        f"{half}, {place}, {'answered' if answerable else 'unknown'}: {share:.2f}"
        for (half, place), each in marks.items()
        for answerable in (True, False)
        if (share := each.share(answerable=answerable)) < goal
    ]


def of(half: str) -> list[Document]:
    """Return the documents of a half."""
    return [each for each in read_documents() if each.held_out == (half == HELD_OUT)]


def to_table(title: str, marks: dict[tuple[str, str], Marks]) -> str:
    """Return what came of the questions as a table."""
    lines = [
        "",
        title,
        f"  {'':18} right passage quoted   as the first   `I do not know` where nothing answers",
    ]
    for (half, place), each in marks.items():
        answered, unknown = each.share(answerable=True), each.share(answerable=False)
        first = each.first / each.asked[True]
        lines.append(
            f"  {half + ', ' + place:18} {answered:8.2f} of {each.asked[True]:<10}"
            f" {first:12.2f}   {unknown:10.2f} of {each.asked[False]}"
        )
    return "\n".join(lines)
