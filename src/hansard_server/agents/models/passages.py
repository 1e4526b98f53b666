"""Passages: what tools have shown, in pieces that can be quoted, each with what is above it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from hansard_server.domain.values import dataclass

_PASSAGE_MAX_LINES = 12
_PASSAGE_MAX_CHARACTERS = 1_500
# Short paragraphs below one heading share a passage until it has so many.
_PASSAGE_ENOUGH_CHARACTERS = 500
_TITLE_MAX_CHARACTERS = 60
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")
_TABLE_RULE = re.compile(r"[\s|:-]+$")
_SENTENCE_END = re.compile(r"(?<=[.!?;])[\"'”’)\]*_]*\s+(?=[^a-z\s]|[a-z])")  # noqa: RUF001
_SENTENCE_MAX_CHARACTERS = 600
# What a paragraph of facts begins with: it is about all that follows.
_LABEL = re.compile(r"([A-Z][^:.;!?|]{0,40}):\s")
_ENDS = (".", "!", "?", ":")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a passage stands: an artifact or a document of a corpus.

    Attributes:
        key: what tells sources apart.
        name: what people call it.
        original: the document that the artifact was converted from, for citing; empty: none.
    """

    key: str
    name: str
    corpus_key: str = ""
    original: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a source, word for word.

    Attributes:
        first: the number of its first line, or its own number in a corpus' document.
        headings: what stands above it, the outermost first.
    """

    source: Source
    first: int
    lines: tuple[str, ...]
    headings: tuple[str, ...] = ()

    @property
    def last(self) -> int:
        """The number of its last line."""
        return self.first + len(self.lines) - 1


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an artifact that a tool has shown."""

    source: Source
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence or a row of a table, and what stands above it inside of its passage."""

    text: str
    above: str = ""


def split_lines(lines: Iterable[Line]) -> Iterator[Passage]:
    """Yield the passages of lines of artifacts: paragraphs, with a heading that precedes them."""
    ordered = sorted(lines, key=lambda line: (line.source.key, line.number))
    for _, file in groupby(ordered, key=lambda line: line.source.key):
        yield from _split(list(file))


def split_sections(passage: Passage) -> Iterator[Passage]:
    """Yield the parts of a passage that begin with headings: each is about its own thing."""
    above = passage.headings
    part: list[str] = []
    for line in passage.lines:
        heading = _HEADING.match(line)
        if heading and any(text.strip() and not _HEADING.match(text) for text in part):
            yield replace(passage, lines=_stripped(part), headings=above)
            # Of the headings above, the passage tells only those of its first part.
            part, above = [], (*passage.headings[:-1], heading[1])
        part.append(line)
    yield replace(passage, lines=_stripped(part), headings=above)


def _stripped(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple("\n".join(lines).strip("\n").split("\n"))


def near_runs(
    lines: Iterable[Line], near_lines: int, max_lines: int
) -> Iterator[tuple[Source, list[Line]]]:
    """Yield runs of lines of one artifact that are near to each other."""
    ordered = sorted(lines, key=lambda line: (line.source.key, line.number))
    for _, file in groupby(ordered, key=lambda line: line.source.key):
        run: list[Line] = []
        for line in file:
            far = run and line.number - run[-1].number > near_lines
            if far or (run and line.number - run[0].number >= max_lines):
                yield run[0].source, run
                run = []
            run.append(line)
        yield run[0].source, run


def sentences(passage: Passage) -> list[Sentence]:
    """Return the passage's sentences and rows, each with the heading or table head above it."""
    found: list[Sentence] = []
    above = ""
    table_head = ""
    for block in _blocks(passage.lines):
        if _TABLE_ROW.match(block):
            if _TABLE_RULE.match(block):
                continue
            if not table_head:
                table_head = block
            found.append(Sentence(block, f"{above} {table_head}"))
            continue
        table_head = ""
        heading = _HEADING.match(block)
        if heading or _is_title(block):
            above = heading[1] if heading else block
            found.append(Sentence(above, above))
            continue
        below = f"{above} {label(block)}".strip()
        cut = list(_cut_sentences(block))
        found += (Sentence(text, below if part else above) for part, text in enumerate(cut))
    return found


def label(text: str) -> str:
    """Return what a text of facts calls the fact that follows: Area: 5 ha; empty: nothing."""
    found = _LABEL.match(text)
    return found[1] if found else ""


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    """Yield paragraphs as one text each, and headings and rows of tables by themselves."""
    part: list[str] = []
    blank = False
    for line in lines:
        alone = bool(_HEADING.match(line) or _TABLE_ROW.match(line))
        if part and (alone or (blank and line.strip() and not _goes_on(part[-1], line))):
            yield " ".join(part)
            part = []
        blank = not line.strip()
        if alone:
            yield line.strip()
        elif not blank:
            part.append(line.strip())
    if part:
        yield " ".join(part)


def _goes_on(before: str, line: str) -> bool:
    """Tell whether a line goes on with the sentence before a blank line, as texts of PDFs do."""
    first = line.lstrip()[:1]
    return not before.rstrip().endswith(_ENDS) and (first.islower() or first.isdigit())


def _cut_sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text):
        for start in range(0, len(sentence), _SENTENCE_MAX_CHARACTERS):
            yield sentence[start : start + _SENTENCE_MAX_CHARACTERS]


def _is_title(text: str) -> bool:
    return (
        len(text) <= _TITLE_MAX_CHARACTERS
        and not text.rstrip().endswith((".", "!", "?", ":", ";", ","))
        and not _LABEL.match(text)
    )


def _split(lines: Sequence[Line]) -> Iterator[Passage]:
    headings: list[tuple[int, str]] = []
    table: tuple[str, ...] = ()
    part: list[Line] = []
    size = count = 0
    for line in lines:
        gap = bool(part) and line.number != part[-1].number + 1
        full = count >= _PASSAGE_MAX_LINES or size > _PASSAGE_MAX_CHARACTERS
        heading = _HEADING.match(line.text)
        begins = (
            bool(part)
            and not part[-1].text.strip()
            and bool(line.text.strip())
            and size >= _PASSAGE_ENOUGH_CHARACTERS
            and not _goes_on(_last_text(part), line.text)
        )
        if part and (gap or full or heading or begins):
            yield from _passage(part, headings, table)
            table = table or _table_head(part)
            part, size, count = [], 0, 0
        if gap or heading or not _TABLE_ROW.match(line.text):
            table = ()
        if heading:
            level = len(line.text.split()[0])
            headings = [above for above in headings if above[0] < level]
            headings.append((level, heading[1]))
        if line.text.strip() or part:
            part.append(line)
            size += len(line.text)
            count += bool(line.text.strip())
    yield from _passage(part, headings, table)


def _last_text(part: Sequence[Line]) -> str:
    return next((line.text for line in reversed(part) if line.text.strip()), "")


def _only_titles(part: Sequence[Line]) -> bool:
    """Tell whether a part is nothing but headings: then the paragraph below belongs to it."""
    texts = [line.text for line in part if line.text.strip()]
    return bool(texts) and all(
        (_HEADING.match(text) or _is_title(text)) and not _TABLE_ROW.match(text) for text in texts
    )


def _table_head(part: Sequence[Line]) -> tuple[str, ...]:
    rows = [line.text for line in part if _TABLE_ROW.match(line.text)]
    return (rows[0].strip(),) if rows else ()


def _passage(
    part: Sequence[Line], headings: Sequence[tuple[int, str]], table: tuple[str, ...]
) -> Iterator[Passage]:
    kept = list(part)
    while kept and not kept[-1].text.strip():
        kept.pop()
    if kept:
        above = tuple(title for _, title in headings) + table
        yield Passage(kept[0].source, kept[0].number, tuple(line.text for line in kept), above)


def is_heading_only(passage: Passage) -> bool:
    """Tell whether the passage is nothing but headings."""
    return all(not line.strip() or _HEADING.match(line) for line in passage.lines)
