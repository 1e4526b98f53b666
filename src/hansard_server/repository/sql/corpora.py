"""Corpora: statements, and the transactions' methods made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    func,
    insert,
    select,
    update,
)

from hansard_server.domain.corpora import (
    CorpusRecord,
    DocumentRecord,
    IndexedPassage,
    Passage,
    StoredPassage,
)
from hansard_server.domain.errors import CorpusNotFound, DocumentNotFound, StoreUnavailable
from hansard_server.domain.filters import Condition
from hansard_server.domain.records import Claim, Claimed
from hansard_server.repository.api import CreationScan
from hansard_server.repository.corpora import AnyOfTerms, Lookup
from hansard_server.repository.sql.corpus_purge import THIS_CORPUS, THIS_DOCUMENT, document_names
from hansard_server.repository.sql.engine import lock_for_update
from hansard_server.repository.sql.filters import compile_condition
from hansard_server.repository.sql.keysets import encode_keys, select_by_keys
from hansard_server.repository.sql.passage_index import (
    IDS_AT_ONCE,
    add_entries,
    entries_with,
    reserve_ids,
)
from hansard_server.repository.sql.rows import AnyRow, claim_values
from hansard_server.repository.sql.scans import by_creation, scan_values
from hansard_server.repository.sql.tables import corpora, documents, passages

_CORPORA = select(corpora).where(
    corpora.c.tenant == bindparam("tenant"), corpora.c.deleted_at.is_(None)
)
_CORPUS = _CORPORA.where(corpora.c.key == bindparam("corpus_key"))
_CORPUS_CLAIM = select(corpora).where(
    corpora.c.tenant == bindparam("tenant"), corpora.c.request_id == bindparam("request_id")
)
_OF_CORPUS = and_(
    documents.c.tenant == bindparam("tenant"), documents.c.corpus_uid == bindparam("corpus_uid")
)
_DOCUMENTS = select(documents).where(_OF_CORPUS, documents.c.deleted_at.is_(None))
_DOCUMENT_UIDS = select(documents.c.uid).where(_OF_CORPUS, documents.c.deleted_at.is_(None))
_DOCUMENT = _DOCUMENTS.where(documents.c.id == bindparam("document_id"))
_DOCUMENT_LOCKED = lock_for_update(_DOCUMENT)
_DOCUMENT_CLAIM = select(documents).where(
    _OF_CORPUS, documents.c.request_id == bindparam("request_id")
)
_VISIBLE_DOCUMENT = (
    select(documents.c.uid)
    .where(
        documents.c.tenant == passages.c.tenant,
        documents.c.corpus_uid == passages.c.corpus_uid,
        documents.c.uid == passages.c.document_uid,
        documents.c.deleted_at.is_(None),
    )
    .limit(1)
    .correlate(passages)
)
_PASSAGES = select_by_keys(
    *passages.c,
    source=passages,
    keys=[passages.c.tenant, passages.c.corpus_uid, passages.c.id],
)
_DOCUMENTS_BY_UID = select_by_keys(
    documents.c.uid,
    documents.c.id,
    documents.c.metadata,
    source=documents,
    keys=[documents.c.tenant, documents.c.corpus_uid, documents.c.uid],
).where(documents.c.deleted_at.is_(None))

_DELETE_CORPUS = (
    update(corpora)
    .where(THIS_CORPUS, corpora.c.deleted_at.is_(None))
    .values(deleted_at=bindparam("now"))
)
_COUNT = (
    update(corpora)
    .where(THIS_CORPUS, corpora.c.deleted_at.is_(None))
    .values(
        document_count=corpora.c.document_count + bindparam("more_documents", type_=Integer),
        passage_count=corpora.c.passage_count + bindparam("more_passages", type_=Integer),
    )
)
_HIDE_DOCUMENT = update(documents).where(THIS_DOCUMENT).values(deleted_at=bindparam("now"))
_BEGUN = lock_for_update(
    select(documents.c.uid).where(THIS_DOCUMENT, documents.c.purged.is_(False))
)
_FINISH = (
    update(documents)
    .where(THIS_DOCUMENT, documents.c.deleted_at > bindparam("now"))
    .values(
        deleted_at=None,
        created_at=bindparam("new_created_at"),
        updated_at=bindparam("new_updated_at"),
        request_id=bindparam("new_request_id", type_=String),
        fingerprint=bindparam("new_fingerprint"),
    )
)


class SqlCorpusReads:
    """CorpusReads (see repository.corpora) on a connection whose transaction others manage."""

    connection: Connection

    def get_corpus(self, tenant: str, corpus_key: str) -> CorpusRecord:
        """Return the corpus. Raises CorpusNotFound."""
        values = {"tenant": tenant, "corpus_key": corpus_key}
        row = self.connection.execute(_CORPUS, values).one_or_none()
        if row is None:
            raise CorpusNotFound("There is no such corpus.")
        return _corpus_record(row)

    def find_corpus_claim(self, tenant: str, request_id: str) -> Claimed[CorpusRecord] | None:
        """Return what CreateCorpus made under this request_id, even if deleted since."""
        values = {"tenant": tenant, "request_id": request_id}
        row = self.connection.execute(_CORPUS_CLAIM, values).one_or_none()
        return None if row is None else Claimed(row.fingerprint, _corpus_record(row))

    def scan_corpora(self, tenant: str, scan: CreationScan) -> Sequence[CorpusRecord]:
        """Return at most `scan.limit` corpora."""
        wanted = by_creation(_CORPORA, scan, corpora.c.created_at, corpora.c.uid)
        values = {"tenant": tenant, **scan_values(scan)}
        return [_corpus_record(row) for row in self.connection.execute(wanted, values)]

    def get_document(self, tenant: str, corpus_uid: str, document_id: str) -> DocumentRecord:
        """Return the document. Raises DocumentNotFound."""
        return _document_record(self._document(_DOCUMENT, tenant, corpus_uid, document_id))

    def find_document_claim(
        self, tenant: str, corpus_uid: str, request_id: str
    ) -> Claimed[DocumentRecord] | None:
        """Return what IndexDocument made under this request_id, even if replaced since."""
        values = {"tenant": tenant, "corpus_uid": corpus_uid, "request_id": request_id}
        row = self.connection.execute(_DOCUMENT_CLAIM, values).one_or_none()
        return None if row is None else Claimed(row.fingerprint, _document_record(row))

    def scan_documents(
        self, tenant: str, corpus_uid: str, scan: CreationScan
    ) -> Sequence[DocumentRecord]:
        """Return at most `scan.limit` documents by the time of their last replacement."""
        wanted = by_creation(_DOCUMENTS, scan, documents.c.updated_at, documents.c.uid)
        values = {"tenant": tenant, "corpus_uid": corpus_uid, **scan_values(scan)}
        return [_document_record(row) for row in self.connection.execute(wanted, values)]

    def find_documents(
        self, tenant: str, corpus_uid: str, condition: Condition, limit: int
    ) -> Sequence[str]:
        """Return the uids of documents whose metadata meet the condition; see the Protocol."""
        wanted = _DOCUMENT_UIDS.where(self._meets(condition)).limit(limit)
        values = {"tenant": tenant, "corpus_uid": corpus_uid}
        return self.connection.execute(wanted, values).scalars().all()

    def count_passages(self, terms: tuple[AnyOfTerms, ...], limit: int) -> int:
        """Return how many passages have one term of each group, or `limit`."""
        found = entries_with(self.connection, terms, limit)
        counted = select(func.count()).select_from(found)
        return int(self.connection.execute(counted).scalar_one())

    def find_passages(self, tenant: str, corpus_uid: str, lookup: Lookup) -> Sequence[int]:
        """Return the ids of passages; see the Protocol."""
        found = entries_with(self.connection, lookup.terms, lookup.max_rows)
        # No joins, whose order a database may choose badly: each row that was found is looked up.
        document = _VISIBLE_DOCUMENT
        if lookup.condition is not None:
            document = document.where(self._meets(lookup.condition))
        passage = (
            select(passages.c.id)
            .where(
                passages.c.tenant == tenant,
                passages.c.corpus_uid == corpus_uid,
                passages.c.id == found.c.id,
                document.scalar_subquery().is_not(None),
            )
            .limit(1)
            .correlate(found)
        )
        wanted = (
            select(found.c.id).where(passage.scalar_subquery().is_not(None)).limit(lookup.limit)
        )
        return self.connection.execute(wanted).scalars().all()

    def get_passages(
        self, tenant: str, corpus_uid: str, passage_ids: Sequence[int]
    ) -> Sequence[StoredPassage]:
        """Return those that exist, in no order."""
        if not passage_ids:
            return []
        keys = encode_keys({(tenant, corpus_uid, number) for number in passage_ids})
        found = self.connection.execute(_PASSAGES, keys).all()
        uids = {(tenant, corpus_uid, row.document_uid) for row in found}
        of_uid = {
            row.uid: row for row in self.connection.execute(_DOCUMENTS_BY_UID, encode_keys(uids))
        }
        return [
            StoredPassage(
                passage_id=row.id,
                document_id=of_uid[row.document_uid].id,
                metadata=of_uid[row.document_uid].metadata,
                passage=Passage(row.number, tuple(json.loads(row.headings)), row.text),
            )
            for row in found
            if row.document_uid in of_uid
        ]

    def _meets(self, condition: Condition) -> ColumnElement[bool]:
        postgres = self.connection.dialect.name == "postgresql"
        return compile_condition(condition, documents.c.fields, postgres=postgres)

    def _document(
        self, statement: Select[Any], tenant: str, corpus_uid: str, document_id: str
    ) -> AnyRow:
        values = {"tenant": tenant, "corpus_uid": corpus_uid, "document_id": document_id}
        row = self.connection.execute(statement, values).one_or_none()
        if row is None:
            raise DocumentNotFound("There is no such document in the corpus.")
        return row


class SqlCorpusWrites(SqlCorpusReads):
    """CorpusWrites (see repository.corpora), as SqlCorpusReads."""

    def insert_corpus(self, corpus: CorpusRecord, claim: Claim | None) -> None:
        """Write a new corpus. An IntegrityError says that its key or claim was taken meanwhile."""
        values = {
            "tenant": corpus.tenant,
            "uid": corpus.uid,
            "key": corpus.key,
            "name": corpus.name,
            "description": corpus.description,
            "metadata": corpus.metadata,
            "document_count": corpus.document_count,
            "passage_count": corpus.passage_count,
            "created_at": corpus.created_at_us,
        }
        self.connection.execute(insert(corpora), values | claim_values(claim))

    def delete_corpus(self, tenant: str, corpus_uid: str, now_us: int) -> None:
        """Hide the corpus: its key is free, the purge removes its documents."""
        values = {"of_tenant": tenant, "of_corpus": corpus_uid, "now": now_us}
        self.connection.execute(_DELETE_CORPUS, values)

    def begin_document(self, document: DocumentRecord, give_up_at_us: int) -> None:
        """Make the place for a document's passages; see the Protocol."""
        values = {
            "tenant": document.tenant,
            "corpus_uid": document.corpus_uid,
            "uid": document.uid,
            "id": document.id,
            "metadata": document.metadata,
            "fields": dict(document.fields),
            "size_bytes": document.size_bytes,
            "passage_count": document.passage_count,
            "created_at": document.created_at_us,
            "updated_at": document.updated_at_us,
            "deleted_at": give_up_at_us,
        }
        self.connection.execute(insert(documents), values)

    def add_passages(self, document: DocumentRecord, added: Sequence[IndexedPassage]) -> None:
        """Write passages of a document that was begun, at most 1,000."""
        if not added:
            return
        if len(added) > IDS_AT_ONCE:
            raise ValueError("too many passages at once")
        names = document_names(document.tenant, document.corpus_uid, document.uid)
        if self.connection.execute(_BEGUN, names).one_or_none() is None:
            raise _given_up()
        first = reserve_ids(self.connection)
        numbered = list(enumerate(added, start=first))
        rows = [
            {
                "tenant": document.tenant,
                "corpus_uid": document.corpus_uid,
                "id": passage_id,
                "document_uid": document.uid,
                "number": indexed.passage.number,
                "headings": json.dumps(indexed.passage.headings),
                "text": indexed.passage.text,
            }
            for passage_id, indexed in numbered
        ]
        self.connection.execute(insert(passages), rows)
        entries = [(passage_id, indexed.terms) for passage_id, indexed in numbered]
        add_entries(self.connection, document.tenant, document.corpus_uid, entries)

    def finish_document(
        self, document: DocumentRecord, claim: Claim | None, now_us: int
    ) -> DocumentRecord:
        """Have the document be there, instead of one with its id; see the Protocol."""
        names = (document.tenant, document.corpus_uid, document.id)
        created_at = updated_at = now_us
        try:
            before = self._document(_DOCUMENT_LOCKED, *names)
        except DocumentNotFound:
            more_documents, more_passages = 1, document.passage_count
        else:
            more_documents, more_passages = 0, document.passage_count - before.passage_count
            created_at, updated_at = before.created_at, max(now_us, before.updated_at)
            self._hide(before, now_us)
        values = {
            **document_names(document.tenant, document.corpus_uid, document.uid),
            "now": now_us,
            "new_created_at": created_at,
            "new_updated_at": updated_at,
            "new_request_id": None if claim is None else claim.request_id,
            "new_fingerprint": None if claim is None else claim.fingerprint,
        }
        if self.connection.execute(_FINISH, values).rowcount != 1:
            raise _given_up()
        self._count(document.tenant, document.corpus_uid, more_documents, more_passages)
        return self.get_document(*names)

    def delete_document(self, tenant: str, corpus_uid: str, document_id: str, now_us: int) -> None:
        """Hide the document. Raises DocumentNotFound."""
        row = self._document(_DOCUMENT_LOCKED, tenant, corpus_uid, document_id)
        self._hide(row, now_us)
        self._count(tenant, corpus_uid, -1, -row.passage_count)

    def _hide(self, row: AnyRow, now_us: int) -> None:
        names = document_names(row.tenant, row.corpus_uid, row.uid)
        self.connection.execute(_HIDE_DOCUMENT, {**names, "now": now_us})

    def _count(self, tenant: str, corpus_uid: str, documents: int, passages: int) -> None:
        """Count documents and passages. Raises CorpusNotFound when the corpus is not there."""
        values = {
            "of_tenant": tenant,
            "of_corpus": corpus_uid,
            "more_documents": documents,
            "more_passages": passages,
        }
        if self.connection.execute(_COUNT, values).rowcount != 1:
            raise CorpusNotFound("There is no such corpus.")


def _given_up() -> StoreUnavailable:
    return StoreUnavailable("the document was given up while it was written", retry_after_s=1.0)


def _corpus_record(row: AnyRow) -> CorpusRecord:
    return CorpusRecord(
        tenant=row.tenant,
        uid=row.uid,
        key=row.key,
        name=row.name,
        description=row.description,
        metadata=row.metadata,
        document_count=row.document_count,
        passage_count=row.passage_count,
        created_at_us=row.created_at,
    )


def _document_record(row: AnyRow) -> DocumentRecord:
    return DocumentRecord(
        tenant=row.tenant,
        corpus_uid=row.corpus_uid,
        uid=row.uid,
        id=row.id,
        metadata=row.metadata,
        fields=row.fields,
        size_bytes=row.size_bytes,
        passage_count=row.passage_count,
        created_at_us=row.created_at,
        updated_at_us=row.updated_at,
    )
