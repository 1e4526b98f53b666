"""The purge of corpora: what was deleted, or never finished, removed in pieces."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, delete, select, update

from hansard_server.repository.sql.engine import lock_for_update
from hansard_server.repository.sql.passage_index import remove_entries
from hansard_server.repository.sql.tables import corpora, documents, passages

THIS_CORPUS = and_(
    corpora.c.tenant == bindparam("of_tenant"), corpora.c.uid == bindparam("of_corpus")
)
THIS_DOCUMENT = and_(
    documents.c.tenant == bindparam("of_tenant"),
    documents.c.corpus_uid == bindparam("of_corpus"),
    documents.c.uid == bindparam("of_uid"),
)
_PASSAGE_COSTS_ROWS = 8
"""To take one out of the index is so much more work than to remove a row."""
# Locked: whoever is late with a document waits for the lock to finish it, and finds it gone.
_DEAD_DOCUMENTS = lock_for_update(
    select(documents.c.tenant, documents.c.corpus_uid, documents.c.uid)
    .where(documents.c.purged.is_(False), documents.c.deleted_at <= bindparam("now"))
    .order_by(documents.c.deleted_at)
    .limit(bindparam("limit")),
    skip_locked=True,
)
_OLD_DOCUMENTS = lock_for_update(
    select(documents.c.tenant, documents.c.corpus_uid, documents.c.uid)
    .where(documents.c.purged.is_(True), documents.c.deleted_at <= bindparam("before"))
    .order_by(documents.c.deleted_at)
    .limit(bindparam("limit")),
    skip_locked=True,
)
_DEAD_CORPORA = lock_for_update(
    select(corpora.c.tenant, corpora.c.uid)
    .where(corpora.c.purged.is_(False), corpora.c.deleted_at <= bindparam("now"))
    .order_by(corpora.c.deleted_at)
    .limit(bindparam("limit")),
    skip_locked=True,
)
_OLD_CORPORA = lock_for_update(
    select(corpora.c.tenant, corpora.c.uid)
    .where(corpora.c.purged.is_(True), corpora.c.deleted_at <= bindparam("before"))
    .order_by(corpora.c.deleted_at)
    .limit(bindparam("limit")),
    skip_locked=True,
)
_PASSAGES_OF_CORPUS = (
    select(passages.c.id)
    .where(
        passages.c.tenant == bindparam("of_tenant"),
        passages.c.corpus_uid == bindparam("of_corpus"),
    )
    .limit(bindparam("limit"))
)
_PASSAGES_OF_DOCUMENT = _PASSAGES_OF_CORPUS.where(passages.c.document_uid == bindparam("of_uid"))
_DELETE_PASSAGES = delete(passages).where(
    passages.c.tenant == bindparam("of_tenant"),
    passages.c.corpus_uid == bindparam("of_corpus"),
    passages.c.id.in_(bindparam("ids", expanding=True)),
)
_DOCUMENTS_OF_CORPUS = (
    select(documents.c.uid)
    .where(
        documents.c.tenant == bindparam("of_tenant"),
        documents.c.corpus_uid == bindparam("of_corpus"),
    )
    .limit(bindparam("limit"))
)
_DELETE_DOCUMENTS = delete(documents).where(
    documents.c.tenant == bindparam("of_tenant"),
    documents.c.corpus_uid == bindparam("of_corpus"),
    documents.c.uid.in_(bindparam("uids", expanding=True)),
)
_MARK_DOCUMENT = update(documents).where(THIS_DOCUMENT).values(purged=True)
_DELETE_DOCUMENT = delete(documents).where(THIS_DOCUMENT)
_MARK_CORPUS = update(corpora).where(THIS_CORPUS).values(purged=True)
_REMOVE_CORPUS = delete(corpora).where(THIS_CORPUS)


def document_names(tenant: str, corpus_uid: str, uid: str) -> dict[str, Any]:
    """Return the parameters of THIS_DOCUMENT."""
    return {"of_tenant": tenant, "of_corpus": corpus_uid, "of_uid": uid}


def purge_corpora(connection: Connection, now_us: int, *, keep_rows_us: int, max_rows: int) -> int:
    """Remove what was deleted or never finished, at most about `max_rows` rows' worth of work;
    return how much, 0 when nothing is left to do now.
    """
    removed = 0
    due = {"now": now_us, "limit": max_rows}
    for row in connection.execute(_DEAD_DOCUMENTS, due).all():
        if removed >= max_rows:
            return removed
        document = document_names(row.tenant, row.corpus_uid, row.uid)
        removed += _remove_passages(connection, _PASSAGES_OF_DOCUMENT, document, max_rows - removed)
        if removed < max_rows:
            connection.execute(_MARK_DOCUMENT, document)
            removed += 1
    for dead in connection.execute(_DEAD_CORPORA, due).all():
        if removed >= max_rows:
            return removed
        corpus = {"of_tenant": dead.tenant, "of_corpus": dead.uid}
        # Documents first: to one that is gone nobody adds passages any more.
        removed += _remove_documents(connection, corpus, max_rows - removed)
        if removed < max_rows:
            removed += _remove_passages(connection, _PASSAGES_OF_CORPUS, corpus, max_rows - removed)
        if removed < max_rows:
            connection.execute(_MARK_CORPUS, corpus)
            removed += 1
    old = {"before": now_us - keep_rows_us}
    for row in connection.execute(_OLD_DOCUMENTS, {**old, "limit": max_rows - removed}).all():
        connection.execute(_DELETE_DOCUMENT, document_names(row.tenant, row.corpus_uid, row.uid))
        removed += 1
    for gone in connection.execute(_OLD_CORPORA, {**old, "limit": max_rows - removed}).all():
        connection.execute(_REMOVE_CORPUS, {"of_tenant": gone.tenant, "of_corpus": gone.uid})
        removed += 1
    return removed


def _remove_passages(
    connection: Connection, which: Select[Any], names: dict[str, str], budget: int
) -> int:
    limit = max(1, budget // _PASSAGE_COSTS_ROWS)
    ids = connection.execute(which, {**names, "limit": limit}).scalars().all()
    if not ids:
        return 0
    tenant, corpus_uid = names["of_tenant"], names["of_corpus"]
    remove_entries(connection, tenant, corpus_uid, ids)
    values = {"of_tenant": tenant, "of_corpus": corpus_uid, "ids": list(ids)}
    connection.execute(_DELETE_PASSAGES, values)
    # A full piece uses the budget up: there may be more.
    return budget if len(ids) == limit else len(ids) * _PASSAGE_COSTS_ROWS


def _remove_documents(connection: Connection, corpus: dict[str, str], budget: int) -> int:
    uids = connection.execute(_DOCUMENTS_OF_CORPUS, {**corpus, "limit": budget}).scalars().all()
    if uids:
        connection.execute(_DELETE_DOCUMENTS, {**corpus, "uids": list(uids)})
    return len(uids)
