"""Corpora, documents, passages and their index: schema 1.5."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from hansard_server.failpoints import hit

revision = "0006"
down_revision = "0005"

_SQLITE = (
    (
        "CREATE VIRTUAL TABLE passage_index USING fts5"
        " (terms, tokenize = 'ascii', detail = 'none', columnsize = 0)"
    ),
)
_POSTGRESQL = (
    "CREATE SEQUENCE passage_ids INCREMENT BY 1024",
    (
        "CREATE TABLE passage_index (tenant VARCHAR(64) NOT NULL, corpus_uid VARCHAR(64) NOT NULL,"
        " id BIGINT NOT NULL, terms BIGINT[] NOT NULL, PRIMARY KEY (tenant, corpus_uid, id))"
    ),
    "CREATE INDEX passage_index_by_term ON passage_index USING gin (terms) WITH (fastupdate = off)",
)


def upgrade() -> None:
    """Create the tables and the index."""
    _create_corpora()
    _create_documents()
    _create_passages()
    hit("migration.step")
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
    op.execute("UPDATE schema_versions SET minor = 5")


def _create_corpora() -> None:
    op.create_table(
        "corpora",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("document_count", sa.BigInteger(), nullable=False),
        sa.Column("passage_count", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.Column("purged", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("request_id", sa.String(128)),
        sa.Column("fingerprint", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("tenant", "uid"),
    )
    _index("corpora_by_key", ["tenant", "key"], "deleted_at IS NULL", unique=True)
    _index("corpora_by_creation", ["tenant", "created_at", "uid"], "deleted_at IS NULL")
    _index("corpora_by_claim", ["tenant", "request_id"], "request_id IS NOT NULL", unique=True)
    _index("corpora_deleted", ["purged", "deleted_at"], "deleted_at IS NOT NULL")


def _create_documents() -> None:
    op.create_table(
        "documents",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("corpus_uid", sa.String(64), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("fields", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("passage_count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.Column("purged", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("request_id", sa.String(128)),
        sa.Column("fingerprint", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("tenant", "corpus_uid", "uid"),
    )
    corpus = ["tenant", "corpus_uid"]
    _index("documents_by_id", [*corpus, "id"], "deleted_at IS NULL", unique=True)
    _index("documents_by_update", [*corpus, "updated_at", "uid"], "deleted_at IS NULL")
    _index("documents_by_claim", [*corpus, "request_id"], "request_id IS NOT NULL", unique=True)
    _index("documents_deleted", ["purged", "deleted_at"], "deleted_at IS NOT NULL")


def _create_passages() -> None:
    op.create_table(
        "passages",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("corpus_uid", sa.String(64), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("document_uid", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("headings", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "corpus_uid", "id"),
    )
    op.create_index(
        "passages_of_document", "passages", ["tenant", "corpus_uid", "document_uid", "number"]
    )


def _index(name: str, columns: Sequence[str], where: str, *, unique: bool = False) -> None:
    op.create_index(
        name,
        name.partition("_")[0],
        list(columns),
        unique=unique,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )
