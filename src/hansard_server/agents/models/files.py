"""What `hansard/extractive` does with a session's files: which to convert, to search, to read."""

from __future__ import annotations

from hansard.v1 import artifact_pb2
from hansard_server.agents.models.conversation import Conversation
from hansard_server.agents.models.evidence import judge
from hansard_server.agents.models.passages import Passage, near_runs
from hansard_server.agents.models.question import Question
from hansard_server.agents.tools.document_conversion import find_suffix

_TERMS_SEARCHED = 8
_CONVERTED_MAX = 32
_READ_MAX = 8
_WHOLE_WORD_CHARACTERS = 4
_NEAR_LINES = 4
_AROUND_LINES = 8
_WINDOW_MAX_LINES = 60
_WINDOWS_READ = 8
# What can be read as it is.
_TEXT_SUFFIXES = frozenset({".md", ".txt", ".csv", ".json", ".xml", None})


def documents_to_convert(talk: Conversation) -> list[str]:
    """Return the documents, not yet converted, that have to be text before they can be read."""
    if talk.named:
        known = [talk.files.get(each) or _reference(each) for each in talk.named]
    else:
        known = [*reversed(talk.files.values())]
        known += (_reference(each, name) for each, (name, _) in talk.found.skipped.items())
    tried = {*talk.converted, *talk.unreadable, *talk.found.called.get("document_conversion", ())}
    waiting = (
        file.artifact_id
        for file in known
        if file.artifact_id not in tried and file.artifact_id not in talk.hidden
        if _is_document(file)
    )
    return list(dict.fromkeys(waiting))[:_CONVERTED_MAX]


def files_to_search(talk: Conversation) -> list[str]:
    """Return the artifacts to search; "" stands for all."""
    return [talk.converted.get(each, each) for each in talk.named] or [""]


def files_to_read(talk: Conversation) -> list[str]:
    """Return the newest files that are text, for an agent that can't search them."""
    known = talk.named or [
        artifact_id
        for artifact_id, file in reversed(talk.files.items())
        if artifact_id in talk.converted
        or (not _is_document(file) and artifact_id not in talk.converted.values())
    ]
    readable = (talk.converted.get(each, each) for each in known if each not in talk.hidden)
    return list(dict.fromkeys(readable))[:_READ_MAX]


def patterns(question: Question) -> list[str]:
    """Return a regular expression for each of the terms that count most.

    It matches the word in all its forms, and what may stand for it.
    """
    by_weight = sorted(question.terms, key=lambda term: -term.weight)[:_TERMS_SEARCHED]
    return [
        "|".join(dict.fromkeys(map(_pattern, (term.stem, term.word, *sorted(term.others)))))
        for term in question.terms
        if term in by_weight
    ]


def _pattern(stemmed: str) -> str:
    # RE2's \b knows only ASCII words.
    if not stemmed.isascii():
        return stemmed
    # A stem is a beginning of all its word's forms; a short one begins other words too.
    return rf"\b{stemmed}" if len(stemmed) >= _WHOLE_WORD_CHARACTERS else rf"\b{stemmed}s?\b"


def windows_to_read(talk: Conversation) -> list[Passage]:
    """Return the best places to read, around lines that the search found; their lines are empty."""
    runs = list(near_runs(talk.found.hits.values(), _NEAR_LINES, _WINDOW_MAX_LINES))
    found = [
        Passage(source, run[0].number, tuple(line.text for line in run)) for source, run in runs
    ]
    last = {id(passage): run[-1].number for passage, (_, run) in zip(found, runs, strict=True)}
    windows = []
    for judged in judge(talk.question, found)[:_WINDOWS_READ]:
        passage = judged.passage
        first = max(1, passage.first - _AROUND_LINES)
        count = last[id(passage)] + _AROUND_LINES - first + 1
        windows.append(Passage(passage.source, first, ("",) * count))
    return windows


def _is_document(file: artifact_pb2.ArtifactReference) -> bool:
    artifact = artifact_pb2.Artifact(filename=file.filename, mime_type=file.mime_type)
    return find_suffix(artifact) not in _TEXT_SUFFIXES


def _reference(artifact_id: str, filename: str = "") -> artifact_pb2.ArtifactReference:
    return artifact_pb2.ArtifactReference(artifact_id=artifact_id, filename=filename)
