"""Statements compiled once, and run by the driver itself: what SQLAlchemy does for each execution
costs several times what SQLite needs for a lookup. Many rows are one statement: a driver gives the
interpreter away for each, and waits until it has it back.

`rows` and `write` do what the connection's `execute` does, and leave to it whatever is out of the
ordinary: lists of values in a statement, somebody who listens to statements, a connection outside a
transaction.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, LargeBinary, Update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

Values = Mapping[str, Any]
_Convert = Callable[[Any], Any]
_Compilable = Any
"""An Executable that is a clause too; no type of SQLAlchemy says both."""

_ROWS_MAX = 64
"""A statement has so many rows at most, and otherwise a power of two: few texts to be prepared."""
_STATEMENTS_MAX = 1_000
"""Those that are built anew for each call are not meant to come here."""


def rows(connection: Connection, statement: _Compilable, values: Values) -> Sequence[Any]:
    """Return all rows of a select, columns by name as attributes. Raises DBAPIError."""
    prepared = find_prepared(connection, statement, values)
    if prepared is None:
        return connection.execute(statement, values).all()
    return prepared.rows(connection, values)


def tuples(
    connection: Connection, statement: _Compilable, values: Values
) -> Sequence[tuple[Any, ...]]:
    """Return all rows of a select as the driver makes them, columns by place. Raises DBAPIError."""
    prepared = find_prepared(connection, statement, values)
    if prepared is None:
        return [tuple(row) for row in connection.execute(statement, values)]
    return prepared.tuples(connection, values)


def write(connection: Connection, statement: _Compilable, many: Sequence[Values]) -> None:
    """Run an insert or update once for each of the values, at least one. Raises DBAPIError."""
    prepared = find_prepared(connection, statement, many[0])
    if prepared is None:
        connection.execute(statement, list(many))
    else:
        prepared.write(connection, many)


def begin(connection: Connection, how: str) -> None:
    """Begin a transaction of SQLite. Raises DBAPIError."""
    try:
        driver_of(connection).execute(f"BEGIN {how}")
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            "BEGIN", None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


def wrapped(connection: Connection, error: Exception, text: str | None) -> Exception:
    """Return the driver's error as SQLAlchemy's."""
    dialect = connection.dialect
    if dialect.is_disconnect(error, driver_of(connection), None):  # type: ignore[arg-type]
        # It knows what to do about the pool when it meets the broken connection itself.
        connection.exec_driver_sql("SELECT 1")
    dbapi_error: Any = dialect.loaded_dbapi.Error
    return DBAPIError.instance(
        text, None, error, dbapi_error, hide_parameters=True, dialect=dialect
    )


class Prepared:
    """A statement as the driver takes it: its text, how values go in, and how rows come out."""

    def __init__(self, compiled: SQLCompiler, dialect: Dialect, given: Sequence[str]) -> None:
        """Take the statement, compiled for values with these names."""
        self._text = compiled.string
        self._places = tuple(compiled.positiontup or ())
        self._dialect = dialect
        if dialect.name == "postgresql":
            self._text, self._places = _numbered(compiled.string)
        binds = compiled.binds
        constants = {
            name: bind.effective_value for name, bind in binds.items() if name not in given
        }
        converts: dict[str, _Convert] = {
            name: convert
            for name, bind in binds.items()
            if (convert := _bind_processor(bind.type, dialect)) is not None
        }
        constants = {
            name: converts[name](value) if name in converts else value
            for name, value in constants.items()
        }
        self._converts = {name: converts[name] for name in converts if name not in constants}
        self._constants = constants
        self._many = _ManyRows.of(compiled, dialect)
        self._row: _Convert = tuple
        self._columns: tuple[tuple[int, _Convert], ...] = ()
        columns: Any = getattr(compiled.statement, "selected_columns", None)
        if columns is not None:
            # Its names are known only when it runs.
            make: Any = namedtuple  # noqa: PYI024
            self._row = make("Row", [column.key for column in columns], rename=True)._make
            self._columns = tuple(
                (index, convert)
                for index, column in enumerate(columns)
                if (convert := _result_processor(column.type, dialect)) is not None
            )

    def rows(self, connection: Connection, values: Values) -> list[Any]:
        """Return all rows for the values. Raises DBAPIError."""
        return [self._row(row) for row in self.tuples(connection, values)]

    def tuples(self, connection: Connection, values: Values) -> list[tuple[Any, ...]]:
        """Return all rows for the values, columns by place. Raises DBAPIError."""
        cursor = self._cursor(connection)
        try:
            cursor.execute(self._text, self._parameters(values))
            return self._fetched(cursor)
        except self._dialect.loaded_dbapi.Error as error:
            raise wrapped(connection, error, self._text) from error
        finally:
            cursor.close()

    def send(self, connection: Connection, values: Values) -> Callable[[], list[Any]]:
        """Run it in the driver's pipeline; return what gives all rows after the pipeline's end.

        Raises the driver's errors.
        """
        cursor = self._cursor(connection)
        cursor.execute(self._text, self._parameters(values), prepare=True)
        return lambda: [self._row(row) for row in self._fetched(cursor)]

    def send_many(self, connection: Connection, many: Sequence[Values]) -> None:
        """Run it for each of the values in the driver's pipeline. Raises the driver's errors."""
        for text, parameters in self._texts(many):
            self._cursor(connection).execute(text, parameters, prepare=True)

    def write(self, connection: Connection, many: Sequence[Values]) -> None:
        """Run it for each of the values. Raises DBAPIError."""
        cursor = self._cursor(connection)
        try:
            if self._many is None:
                cursor.executemany(self._text, [self._parameters(values) for values in many])
            else:
                for text, parameters in self._texts(many):
                    cursor.execute(text, parameters)
        except self._dialect.loaded_dbapi.Error as error:
            raise wrapped(connection, error, self._text) from error
        finally:
            cursor.close()

    def _texts(self, many: Sequence[Values]) -> Iterator[tuple[str, Any]]:
        """Yield what writes the values, with its parameters: one statement, or several."""
        if self._many is None or len(many) == 1:
            for values in many:
                yield self._text, self._parameters(values)
        else:
            yield from self._many.parts([self._complete(values) for values in many])

    def _fetched(self, cursor: Any) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = cursor.fetchall()
        if not self._columns:
            return found
        return [self._converted(row) for row in found]

    def _parameters(self, values: Values) -> Any:
        values = self._complete(values)
        return [values[name] for name in self._places]

    def _complete(self, values: Values) -> Values:
        if self._converts or self._constants:
            values = {**self._constants, **values}
            for name, convert in self._converts.items():
                values[name] = convert(values[name])
        return values

    def _cursor(self, connection: Connection) -> Any:
        driver = driver_of(connection)
        return driver.cursor() if self._dialect.name == "sqlite" else _raw_cursor(driver)

    def _converted(self, row: Sequence[Any]) -> tuple[Any, ...]:
        converted = list(row)
        for index, convert in self._columns:
            converted[index] = convert(converted[index])
        return tuple(converted)


class _ManyRows:
    """A statement for several rows: an insert or update. Its parameters are question marks."""

    def __init__(
        self, before: str, row: str, after: str, places: Sequence[str], *, numbered: bool
    ) -> None:
        self._before, self._row, self._after = before, row, after
        self._places = tuple(places)
        self._numbered = numbered
        self._texts: dict[int, str] = {}

    @classmethod
    def of(cls, compiled: SQLCompiler, dialect: Dialect) -> _ManyRows | None:
        """Return it for the statement of one row; None when there is none."""
        text, numbered = compiled.string, dialect.name == "postgresql"
        # By place: the rows have the same names.
        places = _NAMED.findall(text) if numbered else compiled.positiontup or ()
        text = _NAMED.sub("?", text) if numbered else text
        if isinstance(compiled.statement, Insert):
            before, _, row = text.partition(" VALUES ")
            return cls(f"{before} VALUES ", row, "", places, numbered=numbered)
        found = _UPDATE.fullmatch(text) if isinstance(compiled.statement, Update) else None
        if found is None:
            return None
        columns = iter(f"v.column{number}" for number in range(1, len(places) + 1))
        changes, where = (_MARK.sub(lambda _: next(columns), found[part]) for part in (2, 3))
        marks = ["?"] * len(places)
        if numbered:
            # PostgreSQL takes a column of VALUES for text as long as nothing says what it is.
            types = (compiled.binds[name].type.compile(dialect) for name in places)
            marks = [f"?::{type_}" for type_ in types]
        return cls(
            f"{found[1]} SET {changes} FROM (VALUES ",
            f"({', '.join(marks)})",
            f") AS v WHERE {where}",
            places,
            numbered=numbered,
        )

    def parts(self, many: Sequence[Values]) -> Iterator[tuple[str, list[Any]]]:
        """Yield texts and their parameters."""
        start = 0
        while start < len(many):
            count = min(_ROWS_MAX, 1 << (len(many) - start).bit_length() - 1)
            some = many[start : start + count]
            yield self._text(count), [values[name] for values in some for name in self._places]
            start += count

    def _text(self, count: int) -> str:
        text = self._texts.get(count)
        if text is None:
            rows_ = ", ".join([self._row] * count)
            if self._numbered:
                numbers = itertools.count(1)
                rows_ = re.sub(r"\?", lambda _: f"${next(numbers)}", rows_)
            text = self._texts[count] = f"{self._before}{rows_}{self._after}"
        return text


_NAMED = re.compile(r"%\((\w+)\)s")
_MARK = re.compile(r"\?(?:::[A-Z]+)?")
_UPDATE = re.compile(r"(UPDATE \w+) SET (.*?) WHERE (.*)", re.DOTALL)


def _numbered(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a statement for PostgreSQL with numbers for names, and these in order."""
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return f"${numbers.setdefault(found[1], len(numbers) + 1)}"

    return _NAMED.sub(number, text).replace("%%", "%"), tuple(numbers)


def _raw_cursor(driver: Any) -> Any:
    """Return a cursor of psycopg that takes numbers for parameters, and rows in binary.

    With names it would read the text of each statement of many rows again. As text, bytes would
    come with two characters each.
    """
    # Not loaded where the database is SQLite.
    from psycopg import RawCursor  # noqa: PLC0415
    from psycopg.pq import Format  # noqa: PLC0415

    cursor = RawCursor(driver)
    cursor.format = Format.BINARY
    return cursor


_known: dict[tuple[str, Executable], Prepared | None] = {}


def find_prepared(
    connection: Connection, statement: _Compilable, values: Values
) -> Prepared | None:
    """Return the prepared statement; None when it is to be run by the connection."""
    if not connection.in_transaction() or connection.dispatch.before_cursor_execute:
        return None
    dialect = connection.dialect
    key = (dialect.name, statement)
    try:
        return _known[key]
    except KeyError:
        pass
    if len(_known) >= _STATEMENTS_MAX:
        return None
    names = tuple(values)
    compiled = statement.compile(
        dialect=dialect, column_keys=None if statement.is_select else list(names)
    )
    # Lists are written into the text at each execution; defaults are made by SQLAlchemy.
    ordinary = not (
        compiled.post_compile_params or compiled.literal_execute_params
    ) and not getattr(compiled, "insert_prefetch", ())
    made = _known[key] = Prepared(compiled, dialect, names) if ordinary else None
    return made


def driver_of(connection: Connection) -> Any:
    """Return the driver's own connection."""
    return connection.connection.dbapi_connection


def _result_processor(type_: Any, dialect: Dialect) -> _Convert | None:
    # Both drivers give bytes.
    if isinstance(type_, LargeBinary):
        return None
    convert: _Convert | None = type_.dialect_impl(dialect).result_processor(dialect, None)
    return convert


def _bind_processor(type_: Any, dialect: Dialect) -> _Convert | None:
    # And take them.
    if isinstance(type_, LargeBinary):
        return None
    convert: _Convert | None = type_.dialect_impl(dialect).bind_processor(dialect)
    return convert
