"""Passages: runs of lines that `hansard/extractive` reads and quotes, the best first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from hansard_server.agents.models.conversation import Conversation, FoundLine
from hansard_server.agents.models.ranking import inverse_frequencies
from hansard_server.domain.words import bm25, stems

_NEAR_LINES = 4
_AROUND_LINES = 4
_WINDOW_MAX_LINES = 60
_WINDOWS_READ = 4
_PASSAGE_MAX_LINES = 8
_PASSAGES_QUOTED = 3
_PASSAGE_MAX_CHARACTERS = 4_000
# Of the question's weight, as the rarity of its words gives it, a passage must hold so much …
_COVERED_LEAST = 0.3
# … and score so much of what the best passage does.
_SCORE_LEAST = 0.6


@dataclass(frozen=True, slots=True)
class Passage:
    """Lines of one file that follow each other."""

    artifact_id: str
    filename: str
    first_line: int
    lines: tuple[str, ...]

    @property
    def last_line(self) -> int:
        """The number of its last line."""
        return self.first_line + len(self.lines) - 1


def windows_to_read(talk: Conversation) -> list[Passage]:
    """Return the best places to read, around lines that the search found; their lines are empty."""
    runs = [run for file in _by_file(talk.hits.values()) for run in _near_runs(file)]
    passages = [[word for line in run for word in stems(line.text)] for run in runs]
    scores = _scores(talk.terms, passages)
    best = sorted(range(len(runs)), key=lambda i: (-scores[i], i))[:_WINDOWS_READ]
    windows = []
    for index in best:
        run = runs[index]
        first = max(1, run[0].number - _AROUND_LINES)
        count = run[-1].number + _AROUND_LINES - first + 1
        windows.append(Passage(run[0].artifact_id, run[0].filename, first, ("",) * count))
    return windows


def best_passages(talk: Conversation) -> list[Passage]:
    """Return the passages to quote, the best first; none when nothing fits the question."""
    lines = talk.shown or talk.hits
    passages = [p for file in _by_file(lines.values()) for p in _split(file)]
    texts = [stems("\n".join(passage.lines)) for passage in passages]
    weights = _weights(talk.terms, texts)
    whole = sum(weights.values())
    scores = _scores(talk.terms, texts)
    ranked = sorted(range(len(passages)), key=lambda i: (-scores[i], i))
    chosen: list[Passage] = []
    for index in ranked[:_PASSAGES_QUOTED]:
        held = sum(weight for term, weight in weights.items() if term in texts[index])
        if held < whole * _COVERED_LEAST or scores[index] < scores[ranked[0]] * _SCORE_LEAST:
            continue
        chosen.append(passages[index])
    return chosen


def _weights(terms: Mapping[str, float], passages: Sequence[Sequence[str]]) -> dict[str, float]:
    rarity = inverse_frequencies(list(terms), passages)
    return {term: weight * rarity[term] for term, weight in terms.items()}


def _scores(terms: Mapping[str, float], passages: Sequence[Sequence[str]]) -> list[float]:
    average = sum(map(len, passages)) / max(len(passages), 1)
    return bm25(passages, _weights(terms, passages), average)


def _by_file(lines: Iterable[FoundLine]) -> Iterator[list[FoundLine]]:
    ordered = sorted(lines, key=lambda line: (line.artifact_id, line.number))
    for _, file in groupby(ordered, key=lambda line: line.artifact_id):
        yield list(file)


def _near_runs(lines: Sequence[FoundLine]) -> Iterator[list[FoundLine]]:
    run: list[FoundLine] = []
    for line in lines:
        far = run and line.number - run[-1].number > _NEAR_LINES
        if far or (run and line.number - run[0].number >= _WINDOW_MAX_LINES):
            yield run
            run = []
        run.append(line)
    if run:
        yield run


def _split(lines: Sequence[FoundLine]) -> Iterator[Passage]:
    """Yield paragraphs: lines that follow each other without a blank one, not too many."""
    part: list[FoundLine] = []
    size = 0
    for line in lines:
        ends = part and (
            line.number != part[-1].number + 1
            or not line.text.strip()
            or len(part) == _PASSAGE_MAX_LINES
            or size > _PASSAGE_MAX_CHARACTERS
        )
        if ends:
            yield _passage(part)
            part, size = [], 0
        if line.text.strip():
            part.append(line)
            size += len(line.text)
    if part:
        yield _passage(part)


def _passage(lines: Sequence[FoundLine]) -> Passage:
    first = lines[0]
    return Passage(
        first.artifact_id, first.filename, first.number, tuple(line.text for line in lines)
    )
