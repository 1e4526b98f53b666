"""Forks that are being made: schema 1.2."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hansard_server.failpoints import hit

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "forks",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("session_uid", sa.String(64), nullable=False),
        sa.Column("agent_uid", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("alive_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "session_uid"),
    )
    op.create_index(
        "forks_by_claim",
        "forks",
        ["tenant", "agent_uid", "request_id"],
        unique=True,
        sqlite_where=sa.text("request_id IS NOT NULL"),
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index("forks_alive", "forks", ["alive_until"])
    hit("migration.step")
    op.execute("UPDATE schema_versions SET minor = 2")
