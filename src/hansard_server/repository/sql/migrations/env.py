"""Run by Alembic: applies the revisions on the caller's connection, in its transaction."""

from __future__ import annotations

from alembic import context

from hansard_server.repository.sql.indexes import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
