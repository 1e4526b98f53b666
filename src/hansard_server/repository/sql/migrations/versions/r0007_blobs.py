"""Blobs: the bytes of artifacts, and which of them new artifacts share: schema 1.6."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hansard_server.failpoints import hit

revision = "0007"
down_revision = "0006"

_SHA256_HEX = {
    "sqlite": "lower(hex(sha256))",
    "postgresql": "encode(sha256, 'hex')",
}
# Of equal bytes that were stored more than once, one copy is shared from now on.
_FILL = """
INSERT INTO blobs (tenant, key, shared_as, created_at)
SELECT tenant, blob_key, CASE WHEN copy = 1 THEN digest END, created_at
FROM (
    SELECT tenant, blob_key, digest, created_at,
           ROW_NUMBER() OVER (PARTITION BY tenant, digest ORDER BY blob_key) AS copy
    FROM (
        SELECT tenant, blob_key, MIN({sha256}) AS digest, MIN(created_at) AS created_at
        FROM artifacts GROUP BY tenant, blob_key
    ) AS stored
) AS numbered
"""


def upgrade() -> None:
    """Create the table, with what the artifacts say."""
    op.create_table(
        "blobs",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("shared_as", sa.String(64)),
        sa.Column("unreferenced_since", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key"),
    )
    op.create_index("blobs_shared", "blobs", ["tenant", "shared_as"], unique=True)
    hit("migration.step")
    op.execute(_FILL.format(sha256=_SHA256_HEX[op.get_bind().dialect.name]))
    op.execute("UPDATE schema_versions SET minor = 6")
