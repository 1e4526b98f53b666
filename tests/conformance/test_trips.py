"""Statements that go to the database together do what they do one after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from hansard_server.repository.sql import batch_statements, prepared
from hansard_server.repository.sql.engine import committing, make_engine, writing
from hansard_server.repository.sql.rows import event_values
from hansard_server.repository.sql.tables import events
from hansard_server.repository.sql.trips import Trip
from tests.conformance.test_prepared import PREPARED, SELECTS, plainly, values_for, without_clock
from tests.support import records
from tests.support.records import TENANT

COUNT = select(func.count().label("count")).where(events.c.session_uid == "trips")


def written(*numbers: int) -> list[dict[str, object]]:
    return [event_values(TENANT, "trips", records.event(number)) for number in numbers]


def test_rows_are_the_same_as_alone(filled: Callable[[str], Engine], database: str) -> None:
    with writing(filled(database)).begin() as connection:
        trip = Trip(connection)
        # Some of them find nothing, and some twice the same.
        asked = [*PREPARED, *PREPARED[:5]]
        answers = [trip.ask(SELECTS[name], values_for(connection, name)) for name in asked]
        assert not any(answer.rows for answer in answers)
        trip.make()
        for name, answer in zip(asked, answers, strict=True):
            if name.endswith(".NOW") or "LEASE" in name:
                continue
            expected = prepared.rows(connection, SELECTS[name], values_for(connection, name))
            assert list(map(without_clock, answer.rows)) == list(map(without_clock, expected)), name
        connection.rollback()


@pytest.mark.parametrize("by", ["driver", "sqlalchemy"])
def test_each_sees_what_those_before_it_wrote(
    filled: Callable[[str], Engine], database: str, by: str
) -> None:
    with writing(filled(database)).begin() as connection:

        def run() -> list[int]:
            trip = Trip(connection)
            trip.tell(batch_statements.INSERT_EVENTS, [])
            before = trip.ask(COUNT, {})
            trip.tell(batch_statements.INSERT_EVENTS, written(1))
            between = trip.ask(COUNT, {})
            trip.tell(batch_statements.INSERT_EVENTS, written(*range(2, 102)))
            after = trip.ask(COUNT, {})
            trip.make()
            # What was run is forgotten.
            trip.make()
            return [answer.rows[0].count for answer in (before, between, after)]

        if by == "driver":
            assert run() == [0, 1, 101]
        else:
            with plainly(connection):
                assert run() == [0, 1, 101]
        connection.rollback()


def test_nothing_is_run_after_one_that_failed(engine: Engine, database: str) -> None:
    begin, commit = ("BEGIN", "COMMIT") if database == "postgresql" else ("SELECT 1", "SELECT 2")
    used = committing(engine) if database == "postgresql" else writing(engine)
    with used.connect() as connection:
        transaction = connection.begin()
        trip = Trip(connection)
        trip.say(begin)
        trip.tell(batch_statements.INSERT_EVENTS, written(1, 2))
        trip.tell(batch_statements.INSERT_EVENTS, written(1))
        trip.say(commit)
        with pytest.raises(IntegrityError):
            trip.make()
        transaction.rollback()
        # The same connection takes the next ones.
        with connection.begin():
            trip.say(begin)
            trip.tell(batch_statements.INSERT_EVENTS, written(7))
            trip.say(commit)
            trip.make()
    with engine.connect() as connection:
        assert connection.execute(select(events.c.sequence)).scalars().all() == [7]


@pytest.mark.parametrize("database", ["postgresql"])
@pytest.mark.parametrize("by", ["driver", "sqlalchemy"])
def test_a_commit_is_all_or_nothing(engine: Engine, by: str) -> None:
    there = select(events.c.sequence).order_by(events.c.sequence)
    with (
        committing(engine).connect() as connection,
        connection.begin(),
        plainly(connection) if by == "sqlalchemy" else nullcontext(),
    ):
        trip = Trip(connection)
        for number in range(10, 100, 10):
            # What is behind the one that fails is not run, nor taken for prepared after.
            trip.tell(batch_statements.INSERT_EVENTS, written(number))
            trip.tell(batch_statements.INSERT_EVENTS, written(number))
            trip.tell(batch_statements.INSERT_EVENTS, written(number + 1, number + 2))
            with pytest.raises(IntegrityError):
                trip.commit()
            trip.commit()
            trip.tell(batch_statements.INSERT_EVENTS, written(number + 1, number + 2))
            count = trip.ask(COUNT, {})
            trip.commit()
            assert count.rows[0].count == number // 5
            with engine.connect() as other:
                assert other.execute(there).scalars().all()[-2:] == [number + 1, number + 2]


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_commit_is_read_committed(engine: Engine) -> None:
    alter = f'ALTER DATABASE "{engine.url.database}" SET default_transaction_isolation = {{}}'
    with engine.begin() as connection:
        connection.execute(text(alter.format("serializable")))
    engine.dispose()
    with committing(engine).connect() as connection, connection.begin():
        trip = Trip(connection)
        shown = trip.ask(select(func.current_setting("transaction_isolation").label("is_")), {})
        trip.commit()
    assert shown.rows[0].is_ == "read committed"


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_connection_that_breaks_is_given_up(store_url: str) -> None:
    engine = make_engine(store_url)
    with committing(engine).connect() as connection:
        transaction = connection.begin()
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with engine.begin() as other:
            other.execute(text(f"SELECT pg_terminate_backend({pid})"))
        trip = Trip(connection)
        trip.say("BEGIN")
        trip.tell(batch_statements.INSERT_EVENTS, written(1))
        with pytest.raises(DBAPIError) as caught:
            trip.make()
        assert caught.value.connection_invalidated
        assert connection.invalidated
        transaction.rollback()
        assert connection.execute(select(func.count()).select_from(events)).scalar_one() == 0
    engine.dispose()
