"""What followers in other processes need: alterations counted, addresses of owners: schema 1.4."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns and their index."""
    op.add_column(
        "session_heads",
        sa.Column("alteration_count", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
    )
    op.add_column("events", sa.Column("alteration", sa.BigInteger()))
    op.create_index(
        "events_altered",
        "events",
        ["tenant", "session_uid", "alteration"],
        sqlite_where=sa.text("alteration IS NOT NULL"),
        postgresql_where=sa.text("alteration IS NOT NULL"),
    )
    op.add_column("turns", sa.Column("lease_address", sa.String(255)))
    op.execute("UPDATE schema_versions SET minor = 4")
