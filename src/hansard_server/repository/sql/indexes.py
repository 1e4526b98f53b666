"""Indexes of the tables, and with them the whole schema.

Only who makes or compares a schema imports it: SQLAlchemy loads the dialect of each database that
an index has a condition for, and a server needs one of them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import DDL, Index, event, text

from hansard_server.repository.sql.passage_index import POSTGRESQL_DDL, SQLITE_DDL
from hansard_server.repository.sql.tables import (
    agents,
    api_keys,
    artifacts,
    blobs,
    corpora,
    documents,
    events,
    forks,
    metadata,
    passages,
    roles,
    session_heads,
    sessions,
    turns,
)

__all__ = ["metadata"]


def _where(condition: str) -> dict[str, Any]:
    """Return what has an index hold only the rows of a condition, on both databases."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


Index(
    "agents_by_key",
    agents.c.tenant,
    agents.c.key,
    unique=True,
    **_where("deleted_at IS NULL"),
)
Index(
    "agents_by_creation",
    agents.c.tenant,
    agents.c.created_at,
    agents.c.uid,
    **_where("deleted_at IS NULL"),
)
Index(
    "agents_by_claim",
    agents.c.tenant,
    agents.c.request_id,
    unique=True,
    **_where("request_id IS NOT NULL"),
)
Index(
    "agents_deleted",
    agents.c.deleted_at,
    **_where("deleted_at IS NOT NULL"),
)

Index(
    "sessions_by_key",
    sessions.c.tenant,
    sessions.c.agent_uid,
    sessions.c.key,
    unique=True,
    **_where("deleted_at IS NULL"),
)
Index(
    "sessions_by_creation",
    sessions.c.tenant,
    sessions.c.agent_uid,
    sessions.c.created_at,
    sessions.c.uid,
    **_where("deleted_at IS NULL"),
)
Index(
    "sessions_by_claim",
    sessions.c.tenant,
    sessions.c.agent_uid,
    sessions.c.request_id,
    unique=True,
    **_where("request_id IS NOT NULL"),
)
Index(
    "sessions_deleted",
    sessions.c.deleted_at,
    **_where("deleted_at IS NOT NULL"),
)

Index(
    "session_heads_expiring",
    session_heads.c.expire_at,
    **_where("expire_at IS NOT NULL"),
)

Index("events_by_id", events.c.tenant, events.c.session_uid, events.c.id, unique=True)
Index(
    "events_by_tool_call",
    events.c.tenant,
    events.c.session_uid,
    events.c.tool_call_id,
    events.c.type,
    unique=True,
    **_where("tool_call_id IS NOT NULL"),
)
Index(
    "events_altered",
    events.c.tenant,
    events.c.session_uid,
    events.c.alteration,
    **_where("alteration IS NOT NULL"),
)

Index("turns_by_number", turns.c.tenant, turns.c.session_uid, turns.c.number, unique=True)
Index(
    "turns_waiting",
    turns.c.tenant,
    turns.c.session_uid,
    turns.c.number,
    **_where("status = 1"),
)
Index(
    "turns_running",
    turns.c.lease_until,
    **_where("status = 2"),
)
Index(
    "turns_pending",
    turns.c.pending_until,
    **_where("status = 3"),
)

Index(
    "artifacts_by_creation",
    artifacts.c.tenant,
    artifacts.c.session_uid,
    artifacts.c.created_at,
    artifacts.c.id,
)
Index(
    "artifacts_expiring",
    artifacts.c.expire_at,
    **_where("expire_at IS NOT NULL"),
)
Index("artifacts_by_blob", artifacts.c.tenant, artifacts.c.blob_key)

Index("blobs_shared", blobs.c.tenant, blobs.c.shared_as, unique=True)
# A key is looked up before its tenant is known.

Index("api_keys_by_id", api_keys.c.id, unique=True)
Index("api_keys_by_creation", api_keys.c.tenant, api_keys.c.created_at, api_keys.c.id)
Index(
    "api_keys_by_claim",
    api_keys.c.tenant,
    api_keys.c.request_id,
    unique=True,
    **_where("request_id IS NOT NULL"),
)

Index("roles_by_agent", roles.c.tenant, roles.c.agent_uid)

Index(
    "forks_by_claim",
    forks.c.tenant,
    forks.c.agent_uid,
    forks.c.request_id,
    unique=True,
    **_where("request_id IS NOT NULL"),
)
Index("forks_alive", forks.c.alive_until)

Index(
    "corpora_by_key",
    corpora.c.tenant,
    corpora.c.key,
    unique=True,
    **_where("deleted_at IS NULL"),
)
Index(
    "corpora_by_creation",
    corpora.c.tenant,
    corpora.c.created_at,
    corpora.c.uid,
    **_where("deleted_at IS NULL"),
)
Index(
    "corpora_by_claim",
    corpora.c.tenant,
    corpora.c.request_id,
    unique=True,
    **_where("request_id IS NOT NULL"),
)
Index(
    "corpora_deleted",
    corpora.c.purged,
    corpora.c.deleted_at,
    **_where("deleted_at IS NOT NULL"),
)

Index(
    "documents_by_id",
    documents.c.tenant,
    documents.c.corpus_uid,
    documents.c.id,
    unique=True,
    **_where("deleted_at IS NULL"),
)
Index(
    "documents_by_update",
    documents.c.tenant,
    documents.c.corpus_uid,
    documents.c.updated_at,
    documents.c.uid,
    **_where("deleted_at IS NULL"),
)
Index(
    "documents_by_claim",
    documents.c.tenant,
    documents.c.corpus_uid,
    documents.c.request_id,
    unique=True,
    **_where("request_id IS NOT NULL"),
)
Index(
    "documents_deleted",
    documents.c.purged,
    documents.c.deleted_at,
    **_where("deleted_at IS NOT NULL"),
)

Index(
    "passages_of_document",
    passages.c.tenant,
    passages.c.corpus_uid,
    passages.c.document_uid,
    passages.c.number,
)

# The index of passages is no table of this kind.
for _dialect, _statements in (("sqlite", SQLITE_DDL), ("postgresql", POSTGRESQL_DDL)):
    for _statement in _statements:
        _ddl = DDL(_statement)  # type: ignore[no-untyped-call]
        event.listen(metadata, "after_create", _ddl.execute_if(dialect=_dialect))
