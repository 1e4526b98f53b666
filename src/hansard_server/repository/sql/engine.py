"""What differs between the databases: connections, transactions, locks, the database's clock."""

from __future__ import annotations

import json
import select
import sqlite3
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Select,
    String,
    Table,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from hansard_server.domain.values import dataclass
from hansard_server.repository.sql.prepared import begin, driver_of

SelectT = TypeVar("SelectT", bound=Select[Any])

BEGIN_OPTION = "hansard_begin"
"""Execution option: how SQLite begins transactions of a connection, DEFERRED or IMMEDIATE."""

# Pragma, the value to set, and what SQLite must answer when asked for it.
_PRAGMAS = (
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("foreign_keys", "ON", 1),
)


class Conflict(OperationalError):  # noqa: N818 - nobody erred
    """What a decision was made on has changed before its write: the decision must run again.

    It passes for what PostgreSQL itself says at stricter levels of isolation.
    """

    def __init__(self) -> None:
        super().__init__(None, None, _SerializationFailureError())


class _SerializationFailureError(Exception):
    sqlstate = "40001"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Bounds of the work with a database: seconds, and connections.

    Attributes:
        connect_timeout_s: for a new connection, and for a free one of the pool.
        statement_timeout_s: PostgreSQL ends a statement that takes longer.
        lock_timeout_s: for a lock; on SQLite the lock is that of all writes.
        pool_size: connections at most.
    """

    connect_timeout_s: int = 5
    statement_timeout_s: int = 10
    lock_timeout_s: int = 5
    pool_size: int = 20


def make_engine(url: str, options: EngineOptions | None = None) -> Engine:
    """Return an engine; nothing is connected yet.

    Raises ValueError, which does not tell the URL, when it is none of `sqlite:///path` and
    `postgresql://...`.
    """
    options = options or EngineOptions()
    parsed = _parse(url)
    if parsed.drivername == "sqlite":
        return _sqlite_engine(parsed, options)
    return _postgresql_engine(parsed, options)


def reading(engine: Engine) -> Engine:
    """Return the engine for reads: each of its transactions sees one moment, and writes nothing."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def writing(engine: Engine) -> Engine:
    """Return the engine for writes: READ COMMITTED; on SQLite one transaction at a time."""
    return engine.execution_options(**{BEGIN_OPTION: "IMMEDIATE"})


def committing(engine: Engine) -> Engine:
    """Return the engine for whoever says BEGIN and COMMIT himself; its connections do not.

    They roll back what was left open, when they are closed.
    """
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def has_ended(connection: Connection) -> bool:
    """Tell whether PostgreSQL has ended the connection while nobody spoke; costs no round trip.

    Of one that was cut without a word this is not known.
    """
    if connection.dialect.name == "sqlite":
        return False
    driver = driver_of(connection)
    heard = select.poll()
    heard.register(driver.fileno(), select.POLLIN)
    try:
        # The last words come before the end.
        while heard.poll(0):
            driver.pgconn.consume_input()
    except connection.dialect.loaded_dbapi.Error:
        return True
    return False


def lock_for_update(
    statement: SelectT, *, of: FromClause | None = None, skip_locked: bool = False
) -> SelectT:
    """Return the select with its rows, or those `of` one table, locked until the transaction ends.

    SQLite has no such clause and needs none: there a write transaction is alone.
    """
    return statement.with_for_update(of=of, skip_locked=skip_locked)


class database_now_us(FunctionElement[int]):  # noqa: N801 - it reads as the function that it is
    """The database's clock in microseconds; it stands still while a statement runs."""

    type = BigInteger()
    inherit_cache = True


@compiles(database_now_us, "sqlite")
def _now_sqlite(_element: database_now_us, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"


@compiles(database_now_us, "postgresql")
def _now_postgresql(_element: database_now_us, _compiler: SQLCompiler, **_: Any) -> str:
    # Unlike clock_timestamp() it is stable, so that an index serves a comparison with it.
    return "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS BIGINT)"


class row_version(ColumnElement[str]):  # noqa: N801 - it reads as the function that it is
    """row_version(table): what is another value after each change of the row, on PostgreSQL.

    It is the `transaction_version` of the change. SQLite has nothing like it: there it is empty.
    """

    type = String()
    inherit_cache = False

    def __init__(self, table: Table) -> None:
        """Take the table, which stands in the statement under its own name."""
        self.table_name = table.name


class transaction_version(FunctionElement[str]):  # noqa: N801 - as above
    """The `row_version` of the rows that this transaction writes outside of savepoints."""

    type = String()
    inherit_cache = True


@compiles(row_version, "sqlite")
@compiles(transaction_version, "sqlite")
def _version_sqlite(_element: ColumnElement[str], _compiler: SQLCompiler, **_: Any) -> str:
    return "''"


@compiles(row_version, "postgresql")
def _row_version_postgresql(element: row_version, _compiler: SQLCompiler, **_: Any) -> str:
    return f"CAST({element.table_name}.xmin AS TEXT)"


@compiles(transaction_version, "postgresql")
def _version_postgresql(_element: transaction_version, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(CAST(pg_current_xact_id() AS xid) AS TEXT)"


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("The database URL can't be read.") from None
    match parsed.drivername:
        case "sqlite" if parsed.database not in {None, "", ":memory:"} and not parsed.query:
            return parsed
        case "postgresql" | "postgresql+psycopg":
            return parsed.set(drivername="postgresql+psycopg")
    raise ValueError("The database URL must look like sqlite:///path or postgresql://host/name.")


def _sqlite_engine(url: URL, options: EngineOptions) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": options.lock_timeout_s},
        # Names of fields are looked for as they stand: SQLite does not read their escapes.
        json_serializer=partial(json.dumps, ensure_ascii=False),
        pool_size=options.pool_size,
        max_overflow=0,
        pool_timeout=options.connect_timeout_s,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        assert isinstance(connection, sqlite3.Connection)  # noqa: S101 - for the type checker
        # The driver shall begin no transactions by itself: on_begin does.
        connection.isolation_level = None
        for pragma, value, answer in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma} = {value}")
            found = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
            if found != answer:
                raise RuntimeError(f"SQLite keeps {pragma} at {found}, it must be {value}.")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # Writers take the lock at once: a transaction that reads and then writes fails when
        # another one wrote in between, and no waiting helps it.
        kind = connection.get_execution_options().get(BEGIN_OPTION, "DEFERRED")
        begin(connection, kind)

    return engine


def _postgresql_engine(url: URL, options: EngineOptions) -> Engine:
    settings: dict[str, int | str] = {
        "statement_timeout": options.statement_timeout_s * 1_000,
        "lock_timeout": options.lock_timeout_s * 1_000,
        # A transaction that was left open holds locks: the server ends it.
        "idle_in_transaction_session_timeout": options.statement_timeout_s * 2_000,
        # Of transactions that nobody begins.
        "default_transaction_isolation": r"read\ committed",
        # Every statement looks keys up in an index. While tables are small, or their statistics
        # old, the planner would rather read them whole.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }
    engine = create_engine(
        url,
        connect_args={
            "connect_timeout": options.connect_timeout_s,
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
            # A server that fell silent is given up after this long, not after the system's hours.
            "tcp_user_timeout": options.statement_timeout_s * 2_000,
            "application_name": "hansard",
        },
        isolation_level="READ COMMITTED",
        pool_size=options.pool_size,
        max_overflow=0,
        pool_timeout=options.connect_timeout_s,
        pool_use_lifo=True,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _entry: ConnectionPoolEntry) -> None:
        from psycopg.types.numeric import Int8Dumper  # noqa: PLC0415 - not there on SQLite

        # By default the size of a number decides its type, and a statement is prepared for types.
        connection.adapters.register_dumper(int, Int8Dumper)

    return engine
