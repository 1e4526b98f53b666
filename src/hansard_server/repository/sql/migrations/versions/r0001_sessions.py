"""Agents, sessions, events, turns, artifacts: schema 1.0."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hansard_server.failpoints import hit

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    _create_agents()
    _create_sessions()
    _create_session_heads()
    _create_events()
    _create_claims()
    _create_turns()
    _create_artifacts()
    hit("migration.step")
    _create_schema_versions()
    op.execute("INSERT INTO schema_versions (major, minor) VALUES (1, 0)")


def _create_agents() -> None:
    op.create_table(
        "agents",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("configuration", sa.LargeBinary(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("etag", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.Column("request_id", sa.String(128)),
        sa.Column("fingerprint", sa.LargeBinary()),
        sa.Column("first_answer", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("tenant", "uid"),
    )
    op.create_index(
        "agents_by_key",
        "agents",
        ["tenant", "key"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "agents_by_creation",
        "agents",
        ["tenant", "created_at", "uid"],
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "agents_by_claim",
        "agents",
        ["tenant", "request_id"],
        unique=True,
        sqlite_where=sa.text("request_id IS NOT NULL"),
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index(
        "agents_deleted",
        "agents",
        ["deleted_at"],
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("agent_uid", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("tti_minutes", sa.Integer(), nullable=False),
        sa.Column("forked_from", sa.LargeBinary()),
        sa.Column("etag", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.Column("purged", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("request_id", sa.String(128)),
        sa.Column("fingerprint", sa.LargeBinary()),
        sa.Column("first_answer", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("tenant", "uid"),
    )
    op.create_index(
        "sessions_by_key",
        "sessions",
        ["tenant", "agent_uid", "key"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "sessions_by_creation",
        "sessions",
        ["tenant", "agent_uid", "created_at", "uid"],
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "sessions_by_claim",
        "sessions",
        ["tenant", "agent_uid", "request_id"],
        unique=True,
        sqlite_where=sa.text("request_id IS NOT NULL"),
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index(
        "sessions_deleted",
        "sessions",
        ["deleted_at"],
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )


def _create_session_heads() -> None:
    op.create_table(
        "session_heads",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("session_uid", sa.String(64), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("last_event_at", sa.BigInteger(), nullable=False),
        sa.Column("last_active_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("unfinished_turn_id", sa.String(64)),
        sa.Column("queued_turns", sa.Integer(), nullable=False),
        sa.Column("turn_count", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("artifact_files", sa.Integer(), nullable=False),
        sa.Column("artifact_bytes", sa.BigInteger(), nullable=False),
        sa.Column("tti_minutes", sa.Integer(), nullable=False),
        sa.Column("expire_at", sa.BigInteger()),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "session_uid"),
    )
    op.create_index(
        "session_heads_expiring",
        "session_heads",
        ["expire_at"],
        sqlite_where=sa.text("expire_at IS NOT NULL"),
        postgresql_where=sa.text("expire_at IS NOT NULL"),
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("session_uid", sa.String(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("turn_id", sa.String(64)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("hide_reason", sa.SmallInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.Column("tool_call_id", sa.String(128)),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "session_uid", "sequence"),
    )
    op.create_index("events_by_id", "events", ["tenant", "session_uid", "id"], unique=True)
    op.create_index(
        "events_by_tool_call",
        "events",
        ["tenant", "session_uid", "tool_call_id", "type"],
        unique=True,
        sqlite_where=sa.text("tool_call_id IS NOT NULL"),
        postgresql_where=sa.text("tool_call_id IS NOT NULL"),
    )


def _create_claims() -> None:
    op.create_table(
        "claims",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("session_uid", sa.String(64), nullable=False),
        sa.Column("scope", sa.SmallInteger(), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("turn_id", sa.String(64)),
        sa.Column("events", sa.Text()),
        sa.PrimaryKeyConstraint("tenant", "session_uid", "scope", "request_id"),
    )


def _create_turns() -> None:
    op.create_table(
        "turns",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("session_uid", sa.String(64), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("input_event_id", sa.String(64), nullable=False),
        sa.Column("input_type", sa.SmallInteger(), nullable=False),
        sa.Column("input", sa.LargeBinary(), nullable=False),
        sa.Column("first_sequence", sa.BigInteger(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("pending_calls", sa.LargeBinary(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("error", sa.LargeBinary(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("open_calls", sa.Text(), nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", sa.BigInteger()),
        sa.Column("taken_sequence", sa.BigInteger(), nullable=False),
        sa.Column("steered_sequence", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tenant", "session_uid", "id"),
    )
    op.create_index("turns_by_number", "turns", ["tenant", "session_uid", "number"], unique=True)
    op.create_index(
        "turns_waiting",
        "turns",
        ["tenant", "session_uid", "number"],
        sqlite_where=sa.text("status = 1"),
        postgresql_where=sa.text("status = 1"),
    )
    op.create_index(
        "turns_running",
        "turns",
        ["lease_until"],
        sqlite_where=sa.text("status = 2"),
        postgresql_where=sa.text("status = 2"),
    )


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("session_uid", sa.String(64), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("ttl_days", sa.Integer()),
        sa.Column("source", sa.SmallInteger(), nullable=False),
        sa.Column("blob_key", sa.String(128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("expire_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tenant", "session_uid", "id"),
    )
    op.create_index(
        "artifacts_by_creation", "artifacts", ["tenant", "session_uid", "created_at", "id"]
    )
    op.create_index(
        "artifacts_expiring",
        "artifacts",
        ["expire_at"],
        sqlite_where=sa.text("expire_at IS NOT NULL"),
        postgresql_where=sa.text("expire_at IS NOT NULL"),
    )
    op.create_index("artifacts_by_blob", "artifacts", ["tenant", "blob_key"])


def _create_schema_versions() -> None:
    op.create_table(
        "schema_versions",
        sa.Column("major", sa.Integer(), nullable=False),
        sa.Column("minor", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("major", "minor"),
    )
