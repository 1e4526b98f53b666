"""A million rows, made inside the database: `fill` would take a quarter of an hour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    String,
    Table,
    cast,
    func,
    insert,
    literal,
    select,
    text,
)

from hansard_server.domain.access import DEFAULT_TENANT
from hansard_server.repository.sql.engine import EngineOptions, make_engine
from hansard_server.repository.sql.rows import event_values, session_values
from hansard_server.repository.sql.tables import events, session_heads, sessions
from tests.benchmarks.fill import START_US, STEP_US, Filler, event

ROWS_AT_ONCE = 100_000
"""In one transaction, so that no write-ahead log becomes as large as the database."""
_TEMPLATE = "template"


class Bulk:
    """Adds to a database that a Filler has begun."""

    def __init__(self, url: str, filler: Filler) -> None:
        """Add to the database of `url`."""
        self._engine = make_engine(url, EngineOptions(statement_timeout_s=600))
        self._filler = filler

    def add_events(self, session_key: str, count: int) -> None:
        """Add a session of so many events of 500 bytes, created a second apart."""
        self._filler.add_sessions([session_key])
        with self._engine.connect() as connection:
            uid = connection.scalar(select(sessions.c.uid).where(sessions.c.key == session_key))
        assert uid is not None
        values = event_values(DEFAULT_TENANT, uid, event(1))
        for first in range(1, count + 1, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE - 1, count)
            with self._engine.begin() as connection:
                number = _numbers(connection, first, last)
                _insert(
                    connection,
                    events,
                    {
                        **_literals(events, values),
                        "sequence": number,
                        "id": literal("aev_").concat(_digest(connection, number)),
                        "created_at": number * STEP_US + literal(START_US, BigInteger),
                    },
                )
        with self._engine.begin() as connection:
            connection.execute(
                session_heads.update()
                .where(session_heads.c.session_uid == uid)
                .values(last_sequence=count, last_event_at=START_US + count * STEP_US)
            )

    def add_sessions(self, prefix: str, count: int) -> None:
        """Add so many sessions without events, `<prefix>-<1…count>`, a second apart."""
        self._filler.add_sessions([_TEMPLATE])
        with self._engine.connect() as connection:
            row = connection.execute(select(sessions).where(sessions.c.key == _TEMPLATE)).one()
            head = connection.execute(
                select(session_heads).where(session_heads.c.session_uid == row.uid)
            ).one()
        like = self._filler.session(prefix)
        for first in range(1, count + 1, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE - 1, count)
            with self._engine.begin() as connection:
                number = _numbers(connection, first, last)
                _insert(
                    connection,
                    sessions,
                    {
                        **_literals(sessions, session_values(like)),
                        "uid": _digest(connection, number),
                        "key": literal(f"{prefix}-").concat(cast(number, String)),
                        "created_at": number * STEP_US + literal(START_US, BigInteger),
                        "updated_at": number * STEP_US + literal(START_US, BigInteger),
                    },
                )
                heads = _literals(session_heads, dict(head._mapping))
                heads["session_uid"] = _digest(connection, number)
                _insert(connection, session_heads, heads)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


def _insert(connection: Connection, table: Table, values: dict[str, ColumnElement[Any]]) -> None:
    connection.execute(
        insert(table).from_select(
            list(values), select(*(value.label(name) for name, value in values.items()))
        )
    )


def _literals(table: Table, values: Mapping[str, object]) -> dict[str, ColumnElement[Any]]:
    return {name: literal(value, table.c[name].type) for name, value in values.items()}


def _numbers(connection: Connection, first: int, last: int) -> ColumnElement[int]:
    """Return the column of the numbers from the first to the last."""
    if connection.dialect.name == "postgresql":
        series = func.generate_series(first, last).table_valued("number").render_derived()
        return cast(series.c.number, BigInteger)
    start = select(literal(first).label("number")).cte("numbers", recursive=True)
    numbers = start.union_all(select(start.c.number + 1).where(start.c.number < last))
    return numbers.c.number


def _digest(connection: Connection, number: ColumnElement[int]) -> ColumnElement[str]:
    """Return an id of 20 characters, as random to an index as the server's, the same each time."""
    if connection.dialect.name == "postgresql":
        return func.substr(func.md5(cast(number, String)), 1, 20)
    # SQLite has no digest: an odd factor visits every number of 2^31 once.
    scattered = (number * 1_103_515_245) % 2**31
    return func.printf(text("'%010d%010d'"), cast(scattered, Integer), number)
