"""What the store keeps of corpora, as the other rooms see it. Times are whole microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hansard_server.domain.values import dataclass

Term = int
"""What an index holds of a word, or of a field of metadata, in one corpus: 48 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRecord:
    """A corpus. `metadata` is serialized."""

    tenant: str
    uid: str
    key: str
    name: str
    description: str
    metadata: bytes
    document_count: int
    passage_count: int
    created_at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecord:
    """One version of a document; a replacement is another one, with a uid of its own.

    Attributes:
        metadata: serialized.
        fields: the same as JSON has it; filters are about it.
    """

    tenant: str
    corpus_uid: str
    uid: str
    id: str
    metadata: bytes
    fields: Mapping[str, Any]
    size_bytes: int
    passage_count: int
    created_at_us: int
    updated_at_us: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document: its place from 1, the headings above it, its text word for word."""

    number: int
    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class IndexedPassage:
    """A passage, and the terms under which it is found."""

    passage: Passage
    terms: frozenset[Term]


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage that was found, with what its document is."""

    passage_id: int
    document_id: str
    metadata: bytes
    passage: Passage
