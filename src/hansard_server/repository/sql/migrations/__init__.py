"""The schema in a database: bring it to this code's version, check that it is there.

Its history stands in `versions`, one revision for each change.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, inspect, select, text

from hansard_server.repository.sql.engine import writing
from hansard_server.repository.sql.tables import SCHEMA_MAJOR, SCHEMA_MINOR, schema_versions

# Any number, the same in every release: whoever migrates a PostgreSQL database holds this lock.
_MIGRATION_LOCK = 4_726_173_001
_LOCK_TIMEOUT = "60s"


class SchemaMismatch(Exception):  # noqa: N818 - a state of affairs
    """The database's schema is not one that this code can work with; the text says what to do."""


def migrate(engine: Engine) -> None:
    """Bring the schema to this code's version, in one transaction; processes take turns.

    Raises SchemaMismatch when the database has another major version.
    """
    with writing(engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            # A migration may take longer than any call.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        version = _version(connection)
        if version is not None:
            _check_major(version)
            if version >= (SCHEMA_MAJOR, SCHEMA_MINOR):
                return
        # A third of a second, which a database that has its schema need not wait for.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", "hansard_server.repository.sql:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check_schema(connection: Connection) -> None:
    """Return when the schema is this code's, or one with additions. Raises SchemaMismatch."""
    version = _version(connection)
    if version is None:
        raise SchemaMismatch("The database has no schema of Hansard; migrate it first.")
    _check_major(version)
    if version < (SCHEMA_MAJOR, SCHEMA_MINOR):
        raise SchemaMismatch(
            f"The database has schema {_shown(version)}, this version of Hansard needs "
            f"{_shown((SCHEMA_MAJOR, SCHEMA_MINOR))}; migrate it first."
        )


def _check_major(version: tuple[int, int]) -> None:
    if version[0] != SCHEMA_MAJOR:
        raise SchemaMismatch(
            f"The database has schema {_shown(version)}, this version of Hansard works with "
            f"{SCHEMA_MAJOR}.x only."
        )


def _version(connection: Connection) -> tuple[int, int] | None:
    if not inspect(connection).has_table(schema_versions.name):
        return None
    row = connection.execute(select(schema_versions.c.major, schema_versions.c.minor)).one_or_none()
    return None if row is None else (row.major, row.minor)


def _shown(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
