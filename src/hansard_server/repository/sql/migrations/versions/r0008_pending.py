"""When turns that wait for somebody have waited too long: schema 1.7."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hansard_server.failpoints import hit

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column and its index."""
    op.add_column("turns", sa.Column("pending_until", sa.BigInteger()))
    hit("migration.step")
    op.create_index(
        "turns_pending",
        "turns",
        ["pending_until"],
        sqlite_where=sa.text("status = 3"),
        postgresql_where=sa.text("status = 3"),
    )
    op.execute("UPDATE schema_versions SET minor = 7")
