"""The migrations make the schema of `tables`, and what is no such schema is refused."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, select, text, update

from hansard_server.repository.sql import indexes, tables
from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.migrations import SchemaMismatch, check_schema, migrate

# What each database says of every column, index and constraint.
CATALOG = {
    # Not the text of a table: a column that came later stands elsewhere in it.
    "sqlite": "SELECT 'column', m.name, c.name, c.type, c.\"notnull\", c.dflt_value, c.pk"
    " FROM sqlite_master m JOIN pragma_table_info(m.name) c"
    " WHERE m.type = 'table' AND m.name NOT LIKE '%alembic%'"
    " UNION ALL SELECT type, name, tbl_name, sql, '', '', '' FROM sqlite_master"
    " WHERE type <> 'table' AND tbl_name NOT LIKE '%alembic%' ORDER BY 1, 2, 3",
    "postgresql": "SELECT 'column', table_name, column_name, column_default, is_nullable,"
    " data_type, character_maximum_length FROM information_schema.columns"
    " WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
    " UNION ALL SELECT 'index', tablename, indexname, indexdef, '', '', 0 FROM pg_indexes"
    " WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2, 3",
}


def catalog(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        rows = connection.execute(text(CATALOG[engine.dialect.name])).all()
    return [re.sub(r"\s+", " ", repr(tuple(row)).replace("\\n", " ")) for row in rows]


def is_table_of_ours(name: str | None, kind: str, _parents: object) -> bool:
    # The index of passages has no Table: it is made by statements of each database's own.
    return kind != "table" or not str(name).startswith("passage_index")


def set_version(engine: Engine, major: int, minor: int) -> None:
    with engine.begin() as connection:
        connection.execute(update(tables.schema_versions).values(major=major, minor=minor))


def test_migrations_make_the_schema_of_tables(engine: Engine, empty_url: str) -> None:
    direct = make_engine(empty_url)
    indexes.metadata.create_all(direct)

    migrated, created = catalog(engine), catalog(direct)
    direct.dispose()

    assert migrated
    assert migrated == created


def test_autogenerate_finds_no_difference(engine: Engine) -> None:
    with engine.connect() as connection:
        options = {"compare_server_default": True, "include_name": is_table_of_ours}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, indexes.metadata) == []


def test_schema_has_one_version(engine: Engine) -> None:
    with engine.connect() as connection:
        check_schema(connection)
        rows = connection.execute(select(tables.schema_versions)).all()

    assert [tuple(row) for row in rows] == [(tables.SCHEMA_MAJOR, tables.SCHEMA_MINOR)]


def test_database_without_schema_is_refused(empty_url: str) -> None:
    engine = make_engine(empty_url)
    with engine.connect() as connection, pytest.raises(SchemaMismatch, match="no schema"):
        check_schema(connection)
    engine.dispose()


@pytest.mark.parametrize(
    ("major", "minor"),
    [
        (tables.SCHEMA_MAJOR + 1, tables.SCHEMA_MINOR),
        (tables.SCHEMA_MAJOR - 1, tables.SCHEMA_MINOR + 9),
        (tables.SCHEMA_MAJOR, tables.SCHEMA_MINOR - 1),
    ],
)
def test_other_schema_is_refused(engine: Engine, major: int, minor: int) -> None:
    set_version(engine, major, minor)

    with engine.connect() as connection, pytest.raises(SchemaMismatch, match=f"{major}.{minor}"):
        check_schema(connection)
    if major != tables.SCHEMA_MAJOR:
        with pytest.raises(SchemaMismatch):
            migrate(engine)


def test_schema_with_additions_is_accepted(engine: Engine) -> None:
    set_version(engine, tables.SCHEMA_MAJOR, tables.SCHEMA_MINOR + 1)

    migrate(engine)

    with engine.connect() as connection:
        check_schema(connection)


def test_many_may_migrate_at_once(empty_url: str) -> None:
    def migrate_alone(_: int) -> None:
        engine = make_engine(empty_url)
        migrate(engine)
        with engine.connect() as connection:
            check_schema(connection)
        engine.dispose()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrate_alone, range(4)))


def test_migration_that_fails_leaves_nothing(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    engine = make_engine(empty_url)
    before = catalog(engine)
    with monkeypatch.context() as patched:
        patched.setattr("alembic.op.execute", fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            migrate(engine)
    assert catalog(engine) == before
    migrate(engine)
    engine.dispose()
