"""Trips: statements that go to the database together, on PostgreSQL as one round trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from hansard_server.repository.sql.prepared import (
    Prepared,
    Values,
    driver_of,
    find_prepared,
    rows,
    wrapped,
    write,
)

_Step = tuple[str, Any, Any, "Answer | None"]
"""What it is, the statement, its values, and where its rows go."""
_Fetch = Callable[[], list[Any]]
_SAY, _ASK, _TELL = "say", "ask", "tell"

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"


class Answer:
    """The rows of a select, columns by name as attributes; none before the trip was made."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: Sequence[Any] = ()


class Trip:
    """Statements to be run one after the other; each sees what is committed when it begins.

    The one that fails is the last that is run. What `rows` and `write` of `prepared` leave to
    SQLAlchemy goes to it here as well, and then each statement is a round trip of its own.
    """

    def __init__(self, connection: Connection) -> None:
        """Run them on the connection."""
        self._connection = connection
        self._steps: list[_Step] = []

    def say(self, text: str) -> None:
        """Add a statement without values and rows, in the database's own words."""
        self._steps.append((_SAY, text, (), None))

    def ask(self, statement: Any, values: Values) -> Answer:
        """Add a select; its rows are in the answer after the trip."""
        answer = Answer()
        self._steps.append((_ASK, statement, values, answer))
        return answer

    def tell(self, statement: Any, many: Sequence[Values]) -> None:
        """Add an insert or update for each of the values; none if there are none."""
        if many:
            self._steps.append((_TELL, statement, many, None))

    def forget(self) -> None:
        """Run none of them."""
        self._steps = []

    def make(self) -> None:
        """Run them, and forget them. Raises DBAPIError; what was begun is to be rolled back."""
        steps, self._steps = self._steps, []
        found = self._find_all(steps)
        if found:
            self._send(steps, found)
            return
        for step in steps:
            self._run(step)

    def commit(self) -> None:
        """Run them as one transaction, and forget them; the connection is in autocommit.

        Raises DBAPIError; nothing is left then, unless the connection broke: that is not known.
        """
        steps, self._steps = self._steps, []
        found = self._find_all(steps)
        if found is not None:
            # What comes before the end of a pipeline is a transaction, if nobody begins another.
            self._send(steps, found)
            return
        connection = self._connection
        connection.exec_driver_sql(BEGIN)
        try:
            for step in steps:
                self._run(step)
        except DBAPIError as error:
            if not error.connection_invalidated:
                connection.exec_driver_sql(ROLLBACK)
            raise
        connection.exec_driver_sql(COMMIT)

    def _find_all(self, steps: Sequence[_Step]) -> list[Prepared | str] | None:
        """Return what the driver runs; None where SQLAlchemy does, and where there is no pipeline.

        One step goes this way as well: the driver has to know what it has prepared, see `_send`.
        """
        if self._connection.dialect.name != "postgresql":
            return None
        found = [self._find(step) for step in steps]
        return None if None in found else found  # type: ignore[return-value]

    def _find(self, step: _Step) -> Prepared | str | None:
        kind, statement, values, _ = step
        if kind == _SAY:
            return str(statement)
        return find_prepared(self._connection, statement, values[0] if kind == _TELL else values)

    def _run(self, step: _Step) -> None:
        kind, statement, values, answer = step
        if kind == _SAY:
            self._connection.exec_driver_sql(statement)
        elif kind == _TELL:
            write(self._connection, statement, values)
        elif answer is not None:
            answer.rows = rows(self._connection, statement, values)

    def _send(self, steps: Sequence[_Step], found: Sequence[Any]) -> None:
        """Run them in psycopg's pipeline, of which one is not run when one before it failed.

        Rows are fetched after its end: a fetch inside would send what there is, and wait for it.
        Statements are prepared when they are first run, and what is said never is. Of those that
        psycopg prepares later it forgets to take back that it has, if they are not run.
        """
        connection = self._connection
        errors = connection.dialect.loaded_dbapi.Error
        fetches: list[tuple[Answer, _Fetch]] = []
        refused: Exception | None = None
        try:
            with driver_of(connection).pipeline():
                refused = self._fill(steps, found, fetches)
            if refused is None:
                for answer, fetch in fetches:
                    answer.rows = fetch()
        except errors as error:
            # What comes after a refusal says only that it was not run.
            refused = refused or error
        except BaseException:
            connection.invalidate()
            raise
        if refused is not None:
            raise _failure(connection, refused) from refused

    def _fill(
        self, steps: Sequence[_Step], found: Sequence[Any], fetches: list[tuple[Answer, _Fetch]]
    ) -> Exception | None:
        """Have the pipeline run the statements; return why the server has refused one already."""
        driver = driver_of(self._connection)
        try:
            for (_, _, values, answer), prepared in zip(steps, found, strict=True):
                if isinstance(prepared, str):
                    driver.cursor().execute(prepared, prepare=False)
                elif answer is None:
                    prepared.send_many(self._connection, values)
                else:
                    fetches.append((answer, prepared.send(self._connection, values)))
        except BaseException as error:
            if isinstance(error, Exception) and getattr(error, "sqlstate", None) is not None:
                return error
            # It is not the server that refuses. What was sent would be committed by the end of the
            # pipeline: that must not come.
            driver.close()
            raise
        return None


def _failure(connection: Connection, error: Exception) -> Exception:
    """Return the driver's error as SQLAlchemy's; a connection that was closed here is given up."""
    dbapi = connection.dialect.loaded_dbapi
    if not driver_of(connection).closed or isinstance(error, dbapi.OperationalError):
        return wrapped(connection, error, None)
    connection.invalidate()
    return DBAPIError.instance(
        None, None, error, dbapi.Error, hide_parameters=True, dialect=connection.dialect
    )
