"""Cuts texts into passages: at headings, between paragraphs, and only then inside of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hansard_server.domain.corpora import Passage
from hansard_server.domain.values import dataclass

PASSAGE_MAX_CHARACTERS = 1_000
"""Of a passage, at most; longer paragraphs are cut at ends of lines or sentences."""
SECTION_MIN_CHARACTERS = 200
"""A heading begins a passage only when the one before has so many: short sections share one."""
_HEADING_MAX_CHARACTERS = 200
_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_HEADING = re.compile(r"[ ]{0,3}(#{1,6})[ \t]")
_FENCE = re.compile(r"[ ]{0,3}(`{3,}|~{3,})")
# Where a long paragraph may be cut, the best place first; the cut is behind the match.
_CUTS = (re.compile(r"\n"), re.compile(r"[.!?…。！？][\"'”’)\]]*\s+|[。！？]"), re.compile(r"\s+"))  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph, or a heading of a level (0: none), as a part of the text."""

    start: int
    end: int
    level: int = 0
    title: str = ""


def split_text(text: str) -> list[Passage]:
    """Return the passages of a text, plain or Markdown; each is a part of it, word for word.

    A text of nothing but spaces has none.
    """
    return list(_number(text, _join(text, _blocks(text))))


def _blocks(text: str) -> Iterator[_Block]:
    """Yield paragraphs (what blank lines part, a fenced block as a whole) and headings."""
    start: int | None = None
    fence = ""
    end = 0
    for match in _LINE.finditer(text):
        line, begin = match[0], match.start()
        blank = not line.strip()
        marker = _FENCE.match(line)
        heading = None if fence else _HEADING.match(line)
        if not fence and (blank or heading) and start is not None:
            yield _Block(start, end)
            start = None
        if heading:
            title = line[heading.end() :].strip().rstrip("#").strip()
            yield _Block(begin, match.end(), len(heading[1]), title[:_HEADING_MAX_CHARACTERS])
            continue
        if not blank:
            start = begin if start is None else start
            end = match.end()
        if marker:
            if not fence:
                fence = marker[1]
            elif marker[1].startswith(fence):
                fence = ""
    if start is not None:
        yield _Block(start, end)


def _join(text: str, blocks: Iterator[_Block]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yield (start, end, headings) of pieces that are as long as they may be."""
    path: list[tuple[int, str]] = []
    start: int | None = None
    end = 0
    headings: tuple[str, ...] = ()
    nothing_below = False
    for block in blocks:
        if block.level:
            path = [*(above for above in path if above[0] < block.level)]
            path.append((block.level, block.title))
        if start is not None and (
            block.end - start > PASSAGE_MAX_CHARACTERS
            or (block.level and end - start >= SECTION_MIN_CHARACTERS)
        ):
            yield start, end, headings
            start = None
        if start is None:
            start, nothing_below = block.start, True
        if nothing_below:
            # The headings are those of the first paragraph.
            headings = tuple(title for _, title in path if title)
            nothing_below = bool(block.level)
        end = block.end
        if end - start > PASSAGE_MAX_CHARACTERS:
            *whole, (start, end) = _cut(text, start, end)
            yield from ((first, last, headings) for first, last in whole)
    if start is not None:
        yield start, end, headings


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    pieces = []
    while end - start > PASSAGE_MAX_CHARACTERS:
        stop = _find_cut(text, start)
        pieces.append((start, stop))
        start = stop
    return [*pieces, (start, end)]


def _find_cut(text: str, start: int) -> int:
    """Return where a piece that begins at `start` ends: not before half of its room is used."""
    last = start + PASSAGE_MAX_CHARACTERS
    middle = start + PASSAGE_MAX_CHARACTERS // 2
    for pattern in _CUTS:
        found = None
        for found in pattern.finditer(text, middle, last):  # noqa: B007 - the last one counts
            pass
        if found is not None:
            return found.end()
    return last


def _number(text: str, pieces: Iterator[tuple[int, int, tuple[str, ...]]]) -> Iterator[Passage]:
    number = 0
    for start, end, headings in pieces:
        piece = text[start:end].strip()
        if piece:
            number += 1
            yield Passage(number, headings, piece)
