"""The index of passages: which passages have which terms. A full-text index of SQLite, an inverted
index of PostgreSQL. What it holds are numbers, one for each term of a corpus.

Every corpus has terms of its own, so that a search never comes upon entries of another: neither its
answer nor its time tells anything of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Subquery, bindparam, text

from hansard_server.domain.corpora import Term
from hansard_server.repository.corpora import AnyOfTerms

IDS_AT_ONCE = 1_024
SQLITE_DDL = (
    (
        "CREATE VIRTUAL TABLE passage_index USING fts5"
        " (terms, tokenize = 'ascii', detail = 'none', columnsize = 0)"
    ),
)
# Each server that writes takes ids in blocks of IDS_AT_ONCE. Without a pending list, since a search
# would read all of it.
POSTGRESQL_DDL = (
    "CREATE SEQUENCE passage_ids INCREMENT BY 1024",
    (
        "CREATE TABLE passage_index (tenant VARCHAR(64) NOT NULL, corpus_uid VARCHAR(64) NOT NULL,"
        " id BIGINT NOT NULL, terms BIGINT[] NOT NULL, PRIMARY KEY (tenant, corpus_uid, id))"
    ),
    "CREATE INDEX passage_index_by_term ON passage_index USING gin (terms) WITH (fastupdate = off)",
)

_SQLITE_LAST = text("SELECT rowid FROM passage_index ORDER BY rowid DESC LIMIT 1")
_POSTGRESQL_BLOCK = text("SELECT nextval('passage_ids')")
_SQLITE_INSERT = text("INSERT INTO passage_index (rowid, terms) VALUES (:id, :terms)")
_POSTGRESQL_INSERT = text(
    "INSERT INTO passage_index (tenant, corpus_uid, id, terms)"
    " VALUES (:tenant, :corpus_uid, :id, CAST(:terms AS BIGINT[]))"
)
_SQLITE_DELETE = text("DELETE FROM passage_index WHERE rowid = :id")
_POSTGRESQL_DELETE = text(
    "DELETE FROM passage_index WHERE tenant = :tenant AND corpus_uid = :corpus_uid AND id = :id"
)
_SQLITE_FIND = "SELECT rowid AS id FROM passage_index WHERE passage_index MATCH :terms LIMIT :rows"


def reserve_ids(connection: Connection) -> int:
    """Return the first of IDS_AT_ONCE ids that no passage has."""
    if _is_sqlite(connection):
        return int(connection.execute(_SQLITE_LAST).scalar() or 0) + 1
    return int(connection.execute(_POSTGRESQL_BLOCK).scalar_one())


def add_entries(
    connection: Connection,
    tenant: str,
    corpus_uid: str,
    entries: Sequence[tuple[int, frozenset[Term]]],
) -> None:
    """Have passages, an id each, be found by their terms."""
    if _is_sqlite(connection):
        rows: list[dict[str, Any]] = [
            {"id": passage_id, "terms": " ".join(map(_token, sorted(terms)))}
            for passage_id, terms in entries
        ]
        connection.execute(_SQLITE_INSERT, rows)
        return
    rows = [
        {"tenant": tenant, "corpus_uid": corpus_uid, "id": passage_id, "terms": sorted(terms)}
        for passage_id, terms in entries
    ]
    connection.execute(_POSTGRESQL_INSERT, rows)


def remove_entries(
    connection: Connection, tenant: str, corpus_uid: str, passage_ids: Sequence[int]
) -> None:
    """Have passages not be found any more."""
    if not passage_ids:
        return
    if _is_sqlite(connection):
        connection.execute(_SQLITE_DELETE, [{"id": passage_id} for passage_id in passage_ids])
        return
    connection.execute(
        _POSTGRESQL_DELETE,
        [{"tenant": tenant, "corpus_uid": corpus_uid, "id": number} for number in passage_ids],
    )


def entries_with(connection: Connection, terms: tuple[AnyOfTerms, ...], max_rows: int) -> Subquery:
    """Return the ids, a column `id`, of at most `max_rows` passages with one term of each group."""
    if _is_sqlite(connection):
        match = " AND ".join(f"({' OR '.join(map(_token, group))})" for group in terms)
        found = text(_SQLITE_FIND).bindparams(terms=match, rows=max_rows)
        return found.columns(id=BigInteger).subquery("found")
    # Tenant and corpus stay out of it: by their index all passages of the corpus would be read.
    conditions = []
    values: dict[str, Any] = {"rows": max_rows}
    single = [group[0] for group in terms if len(group) == 1]
    if single:
        conditions.append("terms @> CAST(:every AS BIGINT[])")
        values["every"] = single
    for number, group in enumerate(group for group in terms if len(group) > 1):
        conditions.append(f"terms && CAST(:any_{number} AS BIGINT[])")
        values[f"any_{number}"] = list(group)
    where = " AND ".join(conditions)
    found = text(f"SELECT id FROM passage_index WHERE {where} LIMIT :rows")  # noqa: S608
    found = found.bindparams(*(bindparam(name, value) for name, value in values.items()))
    return found.columns(id=BigInteger).subquery("found")


def _token(term: Term) -> str:
    return f"{term:012x}"


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"
