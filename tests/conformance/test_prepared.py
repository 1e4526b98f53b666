"""What statements give that the driver runs is what they give when SQLAlchemy runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Integer, LargeBinary, Select, Table, event, select, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError

from hansard_server.repository.sql import batch_statements, prepared, statements
from hansard_server.repository.sql.engine import make_engine, writing
from hansard_server.repository.sql.keysets import KEYS, encode_keys
from hansard_server.repository.sql.rows import event_values
from hansard_server.repository.sql.tables import events, session_heads, turns
from tests.support import records
from tests.support.records import TENANT

SELECTS: dict[str, Any] = {
    f"{module.__name__.rpartition('.')[2]}.{name}": statement
    for module in (statements, batch_statements)
    for name, statement in vars(module).items()
    if isinstance(statement, Select)
} | {
    f"event_page.{hidden}.{turn}": statements.event_page(
        descending=True, include_hidden=hidden, of_types=False, of_turn=turn
    )
    for hidden in (True, False)
    for turn in (True, False)
}
VALUES: dict[str, Any] = {
    "tenant": TENANT,
    "session_uid": "session-3",
    "agent_uid": "agent-3",
    "agent_key": "key-3",
    "session_key": "key-3",
    "event_id": "aev_3",
    "turn_id": "trn_3",
    "artifact_id": "art_3",
    "above": 0,
    "below": 1_000,
    "low": 1,
    "high": 5,
    "limit": 10,
    "owner": "nobody",
    "now": 2**60,
    "number": 5,
    "number_above": 0,
    "after_count": 0,
    "time": 1,
}


@contextmanager
def plainly(connection: Connection) -> Iterator[None]:
    """Have the connection run statements itself."""

    def listen(*_: object) -> None:
        pass

    event.listen(connection, "before_cursor_execute", listen)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", listen)


def takes_lists(statement: Any) -> bool:
    """Return whether a select is left to SQLAlchemy, which writes lists into its text."""
    return bool(statement.compile(dialect=sqlite.dialect()).post_compile_params)


PREPARED = [name for name, statement in SELECTS.items() if not takes_lists(statement)]


def values_for(connection: Connection, name: str) -> dict[str, Any]:
    """Return values for the parameters of a select."""
    compiled = SELECTS[name].compile(dialect=connection.dialect)
    values = {name: VALUES.get(name, 1) for name, bind in compiled.binds.items() if bind.required}
    if KEYS in values:
        numbers = range(2, 9)
        keys = {
            (TENANT, f"{kind}-{n}", f"key-{n}") for kind in ("agent", "session") for n in numbers
        }
        keys |= {(TENANT, f"session-{n}", f"trn_{n}") for n in numbers}
        if name.endswith("CLAIMS"):
            keys = {(TENANT, f"session-{n}", 1, f"request-{n}") for n in numbers}  # type: ignore[misc]
        parts = compiled.string.count("->>")
        values |= encode_keys({key[:parts] for key in keys})
    if name.endswith("AS_KNOWN"):
        # They fail unless they find so many, and the time is as expected.
        values |= {"b_count": 0, "b_tolerance_us": 1 << 62}
    return {name: value for name, value in values.items() if name in compiled.binds}


def without_clock(row: Any) -> list[Any]:
    """Return the values of a row, but for the time at which it was read."""
    return [value for name, value in zip(row._fields, row, strict=True) if name != "now_us"]


@pytest.mark.parametrize("name", PREPARED)
def test_rows_are_the_same(filled: Callable[[str], Engine], database: str, name: str) -> None:
    statement = SELECTS[name]
    with writing(filled(database)).begin() as connection:
        values = values_for(connection, name)
        found = prepared.rows(connection, statement, values)
        with plainly(connection):
            expected = prepared.rows(connection, statement, values)
        if name.endswith(".NOW") or "LEASE" in name:
            assert len(found) == len(expected)
            return
        assert list(map(without_clock, found)) == list(map(without_clock, expected))
        kinds = [[type(value) for value in row] for row in found]
        assert kinds == [[type(value) for value in row] for row in expected]
        for row, plain in zip(found, expected, strict=True):
            # Of a function's column nobody uses the name.
            columns = {column.key for column in statement.selected_columns} - {"now_us"}
            for key in plain._mapping.keys() & columns:
                assert getattr(row, key) == plain._mapping[key]


def test_most_selects_find_something(filled: Callable[[str], Engine], database: str) -> None:
    # Or the test above would compare nothing with nothing.
    with writing(filled(database)).begin() as connection:
        empty = [
            name
            for name in PREPARED
            if not prepared.rows(connection, SELECTS[name], values_for(connection, name))
        ]
    assert len(empty) < len(PREPARED) / 2, empty


WRITTEN = [
    records.event(1_000_001, payload=b"\x00\xff" * 100),
    records.event(1_000_002, payload=b"", turn_id="trn_3", tool_call_id="call_\N{SNOWMAN}"),
    records.event(1_000_003, deleted_at_us=2**50),
]


# One row is another statement than many, of which one takes 64.
@pytest.mark.parametrize("count", [1, 2, 3, 64, 150])
def test_what_is_written_is_the_same(
    filled: Callable[[str], Engine], database: str, count: int
) -> None:
    of_session = (events.c.tenant == TENANT, events.c.session_uid == "prepared")
    stored = select(events).where(*of_session).order_by(events.c.sequence)
    written = [
        replace(
            WRITTEN[number % len(WRITTEN)],
            sequence=number,
            id=f"aev_p{number}",
            tool_call_id=f"call_\N{SNOWMAN}{number}" if number % 2 else None,
        )
        for number in range(1, count + 1)
    ]
    rows = [event_values(TENANT, "prepared", event) for event in written]
    with writing(filled(database)).begin() as connection:
        prepared.write(connection, batch_statements.INSERT_EVENTS, rows)
        found = connection.execute(stored).all()
        assert [{key: row._mapping[key] for key in rows[0]} for row in found] == rows
        connection.rollback()


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(
    ("statement", "table", "keys"),
    [
        (batch_statements.UPDATE_HEAD, session_heads, ("tenant", "session_uid")),
        (batch_statements.UPDATE_TURN, turns, ("tenant", "session_uid", "id")),
    ],
    ids=["heads", "turns"],
)
def test_what_is_changed_is_the_same(
    filled: Callable[[str], Engine],
    database: str,
    statement: Any,
    table: Table,
    keys: tuple[str, ...],
    count: int,
) -> None:
    all_rows = select(table).order_by(*(table.c[key] for key in keys))
    with writing(filled(database)).begin() as connection:
        chosen = connection.execute(all_rows).all()[3 : 3 + count]
        columns = set(statement.compile(dialect=connection.dialect).binds)
        values = [
            {f"b_{key}": row._mapping[key] for key in keys}
            | {
                column.name: _other(column.type, row._mapping[column.name], number)
                for column in table.c
                if column.name in columns
            }
            for number, row in enumerate(chosen, 1)
        ]
        after = []
        for run in (prepared.write, _write_plainly):
            savepoint = connection.begin_nested()
            run(connection, statement, values)
            after.append(connection.execute(all_rows).all())
            savepoint.rollback()
        assert after[0] == after[1]
        assert len(after[0]) > count
        assert after[0] != connection.execute(all_rows).all()
        connection.rollback()


def _other(type_: Any, value: Any, number: int) -> Any:
    """Return another value of a column's type, sometimes none."""
    if isinstance(type_, LargeBinary):
        return b"\x00\xff" * number
    if isinstance(type_, Integer):
        return (value or 0) + number
    return f"text {number}"


def _write_plainly(connection: Connection, statement: Any, values: list[dict[str, Any]]) -> None:
    with plainly(connection):
        prepared.write(connection, statement, values)


def test_many_changes_find_their_rows_by_the_key(filled: Callable[[str], Engine]) -> None:
    # PostgreSQL has one statement for each row.
    names = {column.name: column for column in session_heads.c}
    with writing(filled("sqlite")).begin() as connection:
        row = {f"b_{key}": "x" for key in ("tenant", "session_uid")}
        row |= dict.fromkeys((n for n in batch_statements.HEAD_COLUMNS if n in names), 1)
        texts: list[str] = []
        driver: Any = connection.connection.dbapi_connection
        driver.set_trace_callback(texts.append)
        prepared.write(connection, batch_statements.UPDATE_HEAD, [row, row])
        driver.set_trace_callback(None)
        [text_] = texts
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text_}").all()
        assert "INDEX sqlite_autoindex_session_heads_1 (tenant=? AND session_uid=?)" in str(plan), (
            plan
        )
        connection.rollback()


def test_a_writing_transaction_sees_what_it_has_written(store_url: str) -> None:
    engine = writing(make_engine(store_url))
    rows = [event_values(TENANT, "prepared", written) for written in WRITTEN]
    values = {"tenant": TENANT, "session_uid": "prepared", "event_id": WRITTEN[1].id}
    with engine.begin() as connection:
        prepared.write(connection, batch_statements.INSERT_EVENTS, rows)
        [row] = prepared.rows(connection, statements.EVENT, values)
        assert row.tool_call_id == WRITTEN[1].tool_call_id
        connection.rollback()
    with engine.begin() as connection:
        assert prepared.rows(connection, statements.EVENT, values) == []
    engine.dispose()


def test_errors_are_those_of_sqlalchemy(store_url: str) -> None:
    engine = writing(make_engine(store_url))
    rows = [event_values(TENANT, "prepared", WRITTEN[0])] * 2
    with (
        pytest.raises(IntegrityError) as taken,
        engine.begin() as connection,
    ):
        prepared.write(connection, batch_statements.INSERT_EVENTS, rows)
    assert "x00" not in str(taken.value)
    engine.dispose()


@pytest.mark.parametrize("database", ["postgresql"])
def test_connection_that_broke_is_given_up(store_url: str) -> None:
    engine = make_engine(store_url)
    values = {"tenant": TENANT, "session_uid": "s"}
    own = text("SELECT pg_backend_pid()")
    with engine.connect() as other, engine.connect() as connection:
        other.execute(own)
        connection.begin()
        pid = connection.execute(own).scalar_one()
        other.execute(text(f"SELECT pg_terminate_backend({pid})"))
        with pytest.raises(DBAPIError) as broken:
            prepared.rows(connection, statements.TAIL, values)
    assert broken.value.connection_invalidated
    # Neither that one nor others from before are used again.
    for _ in range(3):
        with engine.begin() as connection:
            assert prepared.rows(connection, statements.TAIL, values) == []
    engine.dispose()


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_statement_is_prepared_whatever_its_numbers_are(store_url: str) -> None:
    engine = make_engine(store_url)
    with engine.connect() as connection:
        for number in range(12):
            rows = [event_values(TENANT, "prepared", records.event(7**number))]
            with connection.begin():
                prepared.write(connection, batch_statements.INSERT_EVENTS, rows)
        known = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'INSERT%'")
        assert connection.execute(known).scalar_one() == 1
    engine.dispose()
