"""The calls for which sessions of sub-agents were made: schema 1.8."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column."""
    op.add_column("sessions", sa.Column("parent", sa.LargeBinary()))
    op.execute("UPDATE schema_versions SET minor = 8")
