"""Questions with known answers over real documents, and how an answer to them is judged.

A document is a text in `tests/benchmarks/questions` and what is asked about it; it is handed to a
server as the kind of file that it says. Half of the documents, told by a hash of their names, are
held out: the model was made without a look at how it does on them. In the folder `more` are further
questions about the other half, and documents that were written for tuning: all of them tuned.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path

from tests.support.documents import make_docx_of, make_pdf_of, make_pptx, make_xlsx

FOLDER = Path(__file__).parent.parent / "benchmarks" / "questions"
MORE = FOLDER / "more"
UNKNOWN = "I do not know."
QUOTED_MAX_CHARACTERS = 3 * 1_500
"""Of all that one answer quotes: who quotes everything has found nothing."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the words that the passage has which answers it; none: nothing does."""

    document: str
    text: str
    quote: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A document, and what is asked about it."""

    name: str
    kind: str
    text: str
    questions: tuple[Question, ...]

    @property
    def filename(self) -> str:
        """The name of the file."""
        return f"{self.name}.{self.kind}"

    @property
    def held_out(self) -> bool:
        """The model was made without a look at how it does on the document."""
        names = sorted(read_names(), key=lambda name: hashlib.sha256(name.encode()).digest())
        return self.name in names[: len(names) // 2]

    def to_file(self) -> bytes:
        """Return the document as its kind of file, made by a library for such files."""
        blocks = [block for block in self.text.split("\n\n") if block.strip()]
        match self.kind:
            case "pdf":
                return make_pdf_of(blocks)
            case "docx":
                return make_docx_of(blocks)
            case "pptx":
                return make_pptx(*_slides(blocks))
            case "xlsx":
                return make_xlsx(*_rows(self.text))
            case "html":
                return _to_html(blocks).encode()
        return self.text.encode()


def read_names() -> list[str]:
    """Return the names of all documents."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def read_documents() -> tuple[Document, ...]:
    """Return all documents with their questions."""
    return tuple(map(_read_document, read_names()))


@cache
def read_more() -> tuple[Document, ...]:
    """Return the tuned documents with the further questions about them, and those with new ones."""
    tuned = {each.name: each for each in read_documents() if not each.held_out}
    names = sorted(path.stem for path in MORE.glob("*.toml"))
    assert tuned.keys() <= set(names)
    return tuple(_read_document(name, MORE, tuned.get(name)) for name in names)


def _read_document(name: str, folder: Path = FOLDER, known: Document | None = None) -> Document:
    asked = tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
    questions = [Question(name, text, quote) for text, quote in asked["answerable"]]
    questions += (Question(name, text) for text in asked["unanswerable"])
    if known:
        return replace(known, questions=tuple(questions))
    text = (folder / f"{name}.md").read_text(encoding="utf-8")
    return Document(name, asked["format"], text, tuple(questions))


def is_right(question: Question, answer: str, document_id: str) -> bool:
    """Tell whether the answer quotes the right passage, or knows nothing where nothing is."""
    if not question.quote:
        return answer.startswith(UNKNOWN)
    if sum(len(lines) for _, lines in quotes(answer)) > QUOTED_MAX_CHARACTERS:
        return False
    wanted = _words(question.quote)
    return any(
        document_id in where and wanted in _words(quoted) for where, quoted in quotes(answer)
    )


def quotes(answer: str) -> Iterator[tuple[str, str]]:
    """Yield where each quoted passage stands, and its text."""
    where, quoted = "", []
    for line in (*answer.split("\n"), ""):
        if line.startswith(">"):
            quoted.append(line[1:])
            continue
        if quoted:
            yield where, "\n".join(quoted)
            quoted = []
        where = line or where


def content_words(text: str, stop_words: frozenset[str]) -> list[str]:
    """Return the words of a text that are no stop words, in order, cut to their beginnings."""
    return [word[:6] for word in _words(text).split() if word not in stop_words]


def triples(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Return each three words that follow each other."""
    return set(zip(words, words[1:], words[2:], strict=False))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _slides(blocks: Sequence[str]) -> Iterator[tuple[str, str]]:
    title = ""
    parts: list[str] = []
    for block in (*blocks, "# "):
        if block.startswith("#"):
            if title:
                yield title, "\n".join(parts)
            title, parts = block.lstrip("# "), []
        else:
            parts.append(block)


def _rows(text: str) -> Iterator[list[str | int]]:
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            yield [int(cell) if cell.isdigit() else cell for cell in cells]


def _to_html(blocks: Sequence[str]) -> str:
    parts = []
    for block in blocks:
        level = len(block) - len(block.lstrip("#"))
        tag = f"h{level}" if level else "p"
        parts.append(f"<{tag}>{escape(block.lstrip('# '))}</{tag}>")
    body = "\n".join(parts)
    return f"<!doctype html><html><body>\n{body}\n</body></html>\n"
