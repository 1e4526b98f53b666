"""Records of corpora as messages of the contract."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import corpus_pb2
from hansard_server.corpora.search import Found
from hansard_server.domain.corpora import CorpusRecord, DocumentRecord


def to_corpus(record: CorpusRecord) -> corpus_pb2.Corpus:
    """Return the corpus as callers see it."""
    return corpus_pb2.Corpus(
        key=record.key,
        uid=record.uid,
        name=record.name,
        description=record.description,
        metadata=Struct.FromString(record.metadata),
        document_count=record.document_count,
        passage_count=record.passage_count,
        created_at=_timestamp(record.created_at_us),
    )


def to_document(record: DocumentRecord, corpus_key: str) -> corpus_pb2.Document:
    """Return the document as callers see it."""
    return corpus_pb2.Document(
        corpus_key=corpus_key,
        document_id=record.id,
        metadata=Struct.FromString(record.metadata),
        size_bytes=record.size_bytes,
        passage_count=record.passage_count,
        created_at=_timestamp(record.created_at_us),
        updated_at=_timestamp(record.updated_at_us),
    )


def to_found_passage(found: Found) -> corpus_pb2.FoundPassage:
    """Return the passage as callers see it."""
    stored = found.stored
    return corpus_pb2.FoundPassage(
        corpus_key=found.corpus_key,
        document_id=stored.document_id,
        metadata=Struct.FromString(stored.metadata),
        passage=stored.passage.number,
        headings=stored.passage.headings,
        text=stored.passage.text,
        score=found.score,
    )


def _timestamp(time_us: int) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(time_us)
    return made
