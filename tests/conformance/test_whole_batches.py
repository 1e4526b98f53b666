"""Batches that are whole transactions, which they are on PostgreSQL, and what they guess."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from hansard_server.domain.clock import now_us
from hansard_server.domain.errors import SessionNotFound
from hansard_server.domain.records import EventRecord
from hansard_server.repository.api import EventScan
from hansard_server.repository.commands import Command
from hansard_server.repository.sql.batch import Batch, Skipped
from hansard_server.repository.sql.decisions import Named
from hansard_server.repository.sql.engine import committing
from hansard_server.repository.sql.known import KnownSessions
from hansard_server.repository.sql.store import SqlStore
from tests.support.commands import NAME, accept, append, claim, draft, step
from tests.support.records import SESSION, TENANT, session

pytestmark = [
    pytest.mark.usefixtures("whole"),
    pytest.mark.parametrize("run_by", ["sqlalchemy", "driver"]),
]
ALL = EventScan(limit=1_000, max_bytes=1 << 30, max_rows=100_000)


@pytest.fixture
def database() -> str:
    """Return the kind of database."""
    return "postgresql"


async def events_of(store: SqlStore, uid: str) -> tuple[EventRecord, ...]:
    return (await store.read(lambda tx: tx.scan_events(TENANT, uid, ALL))).events


def named(uid: str) -> Named:
    return Named(TENANT, uid, enabled=True, agent_enabled=True)


def run_whole(engine: Engine, known: KnownSessions, *commands: Command) -> list[object]:
    with committing(engine).connect() as connection, connection.begin():
        return Batch(connection, now_us, skip_locked=True, known=known).run(commands)


async def test_a_wrong_guess_is_made_good(engine: Engine, store: SqlStore) -> None:
    other = session(7)
    await store.write(lambda tx: tx.insert_session(other, None))
    there = replace(NAME, session_key=other.key)
    turn = (await store.submit(accept(session=there, claim=claim("r")))).turn
    known = KnownSessions()
    known.learn_name(NAME, named("nobody"))
    known.learn_name(there, named(SESSION.uid))
    ours, again, stepped, nobody = run_whole(
        engine,
        known,
        append(draft(b"1")),
        # Its session is locked already, but not what its request made.
        accept(session=there, claim=claim("r")),
        step(turn, draft(b"2")),
        append(session=replace(NAME, session_key="nobody")),
    )
    assert ours.session_uid == SESSION.uid  # type: ignore[attr-defined]
    assert again.claimed  # type: ignore[attr-defined]
    assert again.turn.id == turn.id  # type: ignore[attr-defined]
    assert [event.payload for event in stepped.events] == [b"2"]  # type: ignore[attr-defined]
    assert isinstance(nobody, SessionNotFound)
    assert (known.find_uid(NAME), known.find_uid(there)) == (SESSION.uid, other.uid)


async def test_what_is_locked_elsewhere_is_skipped_and_the_rest_done(
    engine: Engine, store: SqlStore
) -> None:
    other = session(7)
    await store.write(lambda tx: tx.insert_session(other, None))
    there = replace(NAME, session_key=other.key)
    known = KnownSessions()
    for is_known in (False, True):
        with engine.begin() as connection:
            connection.execute(
                text("SELECT 1 FROM session_heads WHERE session_uid = :uid FOR UPDATE"),
                {"uid": SESSION.uid},
            )
            skipped, done = run_whole(
                engine, known, append(claim=claim(f"{is_known}")), append(session=there)
            )
        assert isinstance(skipped, Skipped)
        assert done.session_uid == other.uid  # type: ignore[attr-defined]
    assert await events_of(store, SESSION.uid) == ()
    assert len(await events_of(store, other.uid)) == 2


async def test_a_whole_batch_that_fails_leaves_nothing(engine: Engine, store: SqlStore) -> None:
    there = (await store.submit(append())).events[0][0]
    taken = append(draft(b"x", id=there))
    with pytest.raises(IntegrityError):
        run_whole(engine, KnownSessions(), append(claim=claim("r")), taken)
    assert len(await events_of(store, SESSION.uid)) == 1
    # The pool has the connection again, and it is as good as any.
    with engine.connect() as connection:
        assert not connection.connection.dbapi_connection.autocommit  # type: ignore[union-attr]
        assert connection.execute(text("SELECT count(*) FROM claims")).scalar_one() == 0


def test_the_newest_names_are_kept() -> None:
    known = KnownSessions(max_names=2)
    names = [replace(NAME, session_key=f"{number}") for number in range(3)]
    for name in names:
        known.learn_name(name, named(f"uid-{name.session_key}"))
        known.learn_name(name, named(f"uid-{name.session_key}"))
    assert [known.find_uid(name) for name in names] == [None, "uid-1", "uid-2"]
