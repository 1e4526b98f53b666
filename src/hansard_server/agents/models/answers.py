"""Answers: the passages that fit, quoted with where they stand, or that there are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hansard_server.agents.models.conversation import Conversation
from hansard_server.agents.models.evidence import Judged, judge
from hansard_server.agents.models.passages import Passage, is_heading_only, split_lines

UNKNOWN = "I do not know."
# As logarithms of odds: an answer is likely enough from here on, and others are quoted that are
# so near to the best one.
_FITS = -0.3
_NEARLY = 0.8
_QUOTED_MAX = 3
_TOPIC_SHOWN = 8
_PROBLEMS_SHOWN = 3


def answer(talk: Conversation) -> str:
    """Return the passages that answer the question, or say that nothing does."""
    judged = rank(talk)
    if not judged or judged[0].score < _FITS:
        return _unknown(talk)
    best = [
        each.passage
        for each in judged[:_QUOTED_MAX]
        if each.score >= max(_FITS, judged[0].score - _NEARLY)
    ]
    return "\n\n".join(map(_citation, best))


def rank(talk: Conversation) -> Sequence[Judged]:
    """Return all passages that were found, the best first."""
    found = talk.found
    lines = found.shown or found.hits
    passages = [
        *(passage for passage in split_lines(lines.values()) if not is_heading_only(passage)),
        *(section for sections in found.passages.values() for section in sections),
    ]
    return judge(talk.question, passages)


def _unknown(talk: Conversation) -> str:
    found = talk.found
    searched = []
    if found.files_searched or found.shown or found.hits:
        searched.append(_files(max(found.files_searched, 1)))
    if found.done["corpora_search"]:
        searched.append("the corpora")
    problems = " ".join(list(dict.fromkeys(_problems(talk)))[:_PROBLEMS_SHOWN])
    if not searched:
        if problems:
            return f"{UNKNOWN} I could not search. {problems}"
        return (
            f"{UNKNOWN} There are no text files in this session that I could search. Upload one "
            "and ask again."
        )
    topic = ", ".join(talk.question.topic[:_TOPIC_SHOWN])
    said = (
        f"{UNKNOWN} Nothing in {' and '.join(searched)} that I searched fits the question "
        f"(I looked for {topic})."
    )
    return f"{said} {problems}".rstrip()


def _problems(talk: Conversation) -> Iterator[str]:
    yield from talk.unreadable.values()
    yield from talk.found.problems
    for artifact_id, (_, reason) in talk.found.skipped.items():
        if artifact_id not in talk.converted:
            yield reason


def _files(count: int) -> str:
    return "the one file" if count == 1 else f"the {count} files"


def _citation(passage: Passage) -> str:
    source = passage.source
    if source.corpus_key:
        document_id = source.key.removeprefix(f"{source.corpus_key}/")
        named = "" if source.name == document_id else f"{source.name}, "
        where = f"{named}document {document_id} of {source.corpus_key}, passage {passage.first}"
    else:
        artifact = f"{source.original}, read as {source.key}" if source.original else source.key
        lines = (
            f"line {passage.first}"
            if passage.first == passage.last
            else f"lines {passage.first}-{passage.last}"
        )
        where = f"{source.name} ({artifact}), {lines}"
    quoted = "\n".join(f"> {line}".rstrip() for line in passage.lines)
    return f"{where}:\n{quoted}"
