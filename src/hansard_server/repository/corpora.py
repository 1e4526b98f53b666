"""The seam of the store, as far as corpora go.

What the index holds are terms, numbers that other rooms make for one corpus: the store knows
nothing of words, and no term of one corpus is one of another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from hansard_server.domain.corpora import (
    CorpusRecord,
    DocumentRecord,
    IndexedPassage,
    StoredPassage,
    Term,
)
from hansard_server.domain.filters import Condition
from hansard_server.domain.records import Claim, Claimed
from hansard_server.domain.values import dataclass

if TYPE_CHECKING:
    from hansard_server.repository.api import CreationScan

AnyOfTerms = tuple[Term, ...]
"""One of these, at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Passages that have terms, of documents that meet a condition.

    Attributes:
        terms: the passage has one of each group.
        condition: on the metadata of its document.
        limit: how many passages at most; which of them, when there are more, is left open.
        max_rows: how many passages that have the terms are looked at for that, at most.
    """

    terms: tuple[AnyOfTerms, ...]
    condition: Condition | None
    limit: int
    max_rows: int


class CorpusReads(Protocol):
    """What a ReadTx reads of corpora. What was deleted is not there."""

    def get_corpus(self, tenant: str, corpus_key: str) -> CorpusRecord:
        """Return the corpus. Raises CorpusNotFound."""
        ...

    def find_corpus_claim(self, tenant: str, request_id: str) -> Claimed[CorpusRecord] | None:
        """Return what CreateCorpus made under this request_id, even if deleted since."""
        ...

    def scan_corpora(self, tenant: str, scan: CreationScan) -> Sequence[CorpusRecord]:
        """Return at most `scan.limit` corpora."""
        ...

    def get_document(self, tenant: str, corpus_uid: str, document_id: str) -> DocumentRecord:
        """Return the document. Raises DocumentNotFound."""
        ...

    def find_document_claim(
        self, tenant: str, corpus_uid: str, request_id: str
    ) -> Claimed[DocumentRecord] | None:
        """Return what IndexDocument made under this request_id, even if replaced since."""
        ...

    def scan_documents(
        self, tenant: str, corpus_uid: str, scan: CreationScan
    ) -> Sequence[DocumentRecord]:
        """Return at most `scan.limit` documents by the time of their last replacement."""
        ...

    def find_documents(
        self, tenant: str, corpus_uid: str, condition: Condition, limit: int
    ) -> Sequence[str]:
        """Return the uids of at most `limit` documents whose metadata meet the condition.

        The cost grows with the documents of the corpus.
        """
        ...

    def count_passages(self, terms: tuple[AnyOfTerms, ...], limit: int) -> int:
        """Return how many passages have one term of each group, or `limit` when there are more.

        Those of deleted documents count until they are purged.
        """
        ...

    def find_passages(self, tenant: str, corpus_uid: str, lookup: Lookup) -> Sequence[int]:
        """Return the ids of passages. The cost grows with the lookup's bounds, not the corpus."""
        ...

    def get_passages(
        self, tenant: str, corpus_uid: str, passage_ids: Sequence[int]
    ) -> Sequence[StoredPassage]:
        """Return those that exist, in no order."""
        ...


class CorpusWrites(Protocol):
    """What a WriteTx writes of corpora.

    A document is written in pieces that nobody sees: begin, any number of additions, finish. What
    is never finished is purged.
    """

    def insert_corpus(self, corpus: CorpusRecord, claim: Claim | None) -> None:
        """Write a new corpus; as insert_agent."""
        ...

    def delete_corpus(self, tenant: str, corpus_uid: str, now_us: int) -> None:
        """Hide the corpus: its key is free, its documents are removed soon after by the purge."""
        ...

    def begin_document(self, document: DocumentRecord, give_up_at_us: int) -> None:
        """Make the place for a document's passages. From that time on the purge removes it."""
        ...

    def add_passages(self, document: DocumentRecord, passages: Sequence[IndexedPassage]) -> None:
        """Write passages of a document that was begun, at most 1,000.

        Raises StoreUnavailable when the document was given up, or its corpus deleted and purged.
        """
        ...

    def finish_document(
        self, document: DocumentRecord, claim: Claim | None, now_us: int
    ) -> DocumentRecord:
        """Have the document be there, instead of one with its id, and return it: `created_at_us` is
        of the first version. Raises CorpusNotFound when the corpus was deleted meanwhile,
        StoreUnavailable when the document was given up.
        """
        ...

    def delete_document(self, tenant: str, corpus_uid: str, document_id: str, now_us: int) -> None:
        """Hide the document; the purge removes its passages. Raises DocumentNotFound."""
        ...
