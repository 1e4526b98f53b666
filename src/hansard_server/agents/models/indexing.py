"""Requests to put files into a corpus: which, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hansard_server.agents.models.conversation import Conversation
from hansard_server.domain.values import dataclass

_POLITE = r"(?:(?:please|kindly|now|then|and|ok|okay|so|also)[\s,]+)*"
_ASKED = r"(?:(?:can|could|would|will) you\s+|i want you to\s+|i would like you to\s+)?"
_VERBS = r"(?:index|add|put|store|save|keep|file|include|import|insert|place|archive|upload)"
_WHERE = r"(?:corpus|corpora|collections?|knowledge\s?bases?|library|libraries|index|archive)"
_PUT = re.compile(
    rf"^\W*{_POLITE}{_ASKED}{_POLITE}{_VERBS}\b.*\b(?:in|into|to|under)\b.*\b{_WHERE}\b", re.DOTALL
)
_INDEX = re.compile(rf"^\W*{_POLITE}{_ASKED}{_POLITE}(?:re-?)?index\s+\S", re.DOTALL)
_ALL = re.compile(r"\b(?:all|every|each)\b.*\b(?:files?|documents?|of them|uploads?)\b", re.DOTALL)
_AS = re.compile(r"\bas\s+[\"'`]?(?:document\s+)?([0-9a-zA-Z_.:@+-]{1,128}?)[\"'`]?[.!]?\s*$")
_FILES_MAX = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """Files to be put into a corpus; `document_id` is for one file, when the request says it."""

    artifact_ids: tuple[str, ...]
    document_id: str = ""


def is_request(text: str) -> bool:
    """Tell whether the text asks to put files into a corpus."""
    lower = text.strip().lower()
    return bool(_PUT.match(lower) or _INDEX.match(lower))


def wanted_files(talk: Conversation) -> Wanted:
    """Return the files that the request means: those that it names, all, or the newest."""
    made = {*talk.converted.values(), *talk.hidden}
    known = [artifact_id for artifact_id in talk.files if artifact_id not in made]
    if talk.named:
        files: Sequence[str] = talk.named
    elif _ALL.search(talk.question.text.lower()):
        files = known[-_FILES_MAX:]
    else:
        files = known[-1:]
    match = _AS.search(talk.question.text.strip())
    one = match is not None and len(files) == 1
    return Wanted(tuple(files), match[1] if match and one else "")


def report(talk: Conversation) -> str:
    """Return what came of the request."""
    said = []
    for done in talk.found.done["document_index"]:
        document_id, count = str(done.get("document_id", "")), int(done.get("passages", 0))
        said.append(
            f"{_name(talk, document_id)} is in the corpus {done.get('corpus_key')} as document "
            f"{document_id}: {_passages(count)}."
        )
    said += (f"Not indexed: {problem}" for problem in talk.found.problems)
    return "\n".join(said)


def _name(talk: Conversation, document_id: str) -> str:
    known = talk.files.get(document_id)
    return known.filename if known else "The file"


def _passages(count: int) -> str:
    return "one passage" if count == 1 else f"{count} passages"
