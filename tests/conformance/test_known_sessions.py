"""What is taken for known, and has changed meanwhile: the outcome is that of who has looked first.

Only on PostgreSQL, where other processes write, too; random histories of two: see `test_model`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from hansard_server.domain.clock import now_us
from hansard_server.domain.errors import (
    AgentDisabled,
    EventAlreadyExists,
    RequestIdReused,
    SequenceMismatch,
    SessionBusy,
    SessionDisabled,
    SessionNotFound,
)
from hansard_server.domain.records import EventType, TurnRecord
from hansard_server.repository.api import Alteration, EventScan
from hansard_server.repository.commands import (
    ArtifactQuota,
    Command,
    FindInterrupted,
    LeaseLost,
    TakeTurn,
    Upload,
    WhenBusy,
)
from hansard_server.repository.sql import known, prepared
from hansard_server.repository.sql.batch import Batch, Skipped
from hansard_server.repository.sql.engine import committing
from hansard_server.repository.sql.known import DatabaseClock, KnownSessions
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.trips import Trip
from tests.support.commands import LEASE, NAME, accept, append, claim, custom, draft, finish, step
from tests.support.records import AGENT, SESSION, TENANT, artifact, session

pytestmark = [
    pytest.mark.usefixtures("whole"),
    pytest.mark.parametrize("run_by", ["sqlalchemy", "driver"]),
]
RIGHT, NOT_KNOWN, WRONG = 1, 2, 3
"""Trips of a batch: all in one; what is read, and then written; the same after the one in vain."""
SECOND_US = 1_000_000
_END_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
def database() -> str:
    """Return the kind of database."""
    return "postgresql"


class Process:
    """One of several processes that write to the database."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known = KnownSessions()
        self.connection = committing(engine).connect()
        self._trips = 0
        for name in ("make", "commit"):
            monkeypatch.setattr(Trip, name, self._counted(getattr(Trip, name)))

    def _counted(self, method: Callable[[Trip], None]) -> Callable[[Trip], None]:
        def counting(trip: Trip) -> None:
            self._trips += 1
            method(trip)

        return counting

    def run(self, *commands: Command) -> tuple[int, list[Any]]:
        """Return how many trips a batch took, and its outcomes."""
        self._trips = 0
        with self.connection.begin():
            batch = Batch(self.connection, now_us, skip_locked=True, known=self.known)
            outcomes = batch.run(commands)
        return self._trips, outcomes

    def count_prepared(self) -> int:
        """Return how many statements the database keeps for this process."""
        counted = text("SELECT count(*) FROM pg_prepared_statements")
        with self.connection.begin():
            return int(self.connection.execute(counted).scalar_one())


@pytest.fixture
def process(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """Give a process that has just written to the session."""
    process = Process(engine, monkeypatch)
    process.run(append())
    assert process.run(append(claim=claim("used")))[0] == RIGHT
    yield process
    process.connection.close()


async def appended(store: SqlStore) -> None:
    await store.submit(append())


async def took_a_turn(store: SqlStore) -> None:
    await store.submit(accept())


async def disabled(store: SqlStore) -> None:
    await store.write(lambda tx: tx.update_session(replace(SESSION, enabled=False)))


async def agent_disabled(store: SqlStore) -> None:
    await store.write(lambda tx: tx.update_agent(replace(AGENT, enabled=False)))


async def deleted(store: SqlStore) -> None:
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, now_us()))


async def made_anew(store: SqlStore) -> None:
    await deleted(store)
    await store.write(lambda tx: tx.insert_session(replace(SESSION, uid="another"), None))


@pytest.mark.parametrize(
    ("change", "command", "error"),
    [
        (appended, append(expected_last_sequence=2), SequenceMismatch),
        (took_a_turn, append(), SessionBusy),
        (took_a_turn, accept(when_busy=WhenBusy.REJECT), SessionBusy),
        (disabled, append(), SessionDisabled),
        (agent_disabled, accept(), AgentDisabled),
        (deleted, append(), SessionNotFound),
    ],
)
async def test_what_others_did_refuses(
    store: SqlStore,
    process: Process,
    change: Callable[[SqlStore], Awaitable[None]],
    command: Command,
    error: type[Exception],
) -> None:
    await change(store)
    trips, [outcome] = process.run(command)
    assert trips == WRONG
    assert isinstance(outcome, error)


async def test_what_others_did_comes_first(store: SqlStore, process: Process) -> None:
    await appended(store)
    trips, [outcome] = process.run(append())
    assert (trips, outcome.events[0][1]) == (WRONG, 4)
    await store.write(
        lambda tx: tx.alter_event(TENANT, SESSION.uid, outcome.events[0][0], Alteration.HIDE, 1)
    )
    # It has been wrong once, and does not look before it has seen twice that it is right.
    assert [process.run(append())[0] for _ in range(4)] == [NOT_KNOWN] * 3 + [RIGHT]


async def test_what_is_no_activity_is_seen_too(store: SqlStore, process: Process) -> None:
    _, [outcome] = process.run(append())
    hidden = outcome.events[0][0]
    await store.write(lambda tx: tx.alter_event(TENANT, SESSION.uid, hidden, Alteration.HIDE, 1))
    assert process.run(append())[0] == WRONG
    altered = await store.read(lambda tx: tx.find_altered(TENANT, SESSION.uid, 0, 10))
    assert [number for number, _ in altered] == [1]


async def test_a_database_that_was_set_back(process: Process, engine: Engine) -> None:
    """Versions are counted from there again, so that one may be met a second time."""
    [before] = process.known._sessions.values()
    with engine.begin() as connection:
        connection.execute(text("UPDATE session_heads SET last_active_at = last_active_at + 1"))
        version = text("SELECT CAST(xmin AS TEXT) FROM session_heads")
        before.version = connection.execute(version).scalar_one()
    assert process.run(append())[0] == WRONG


async def test_a_name_that_means_another_session(store: SqlStore, process: Process) -> None:
    await made_anew(store)
    trips, [outcome] = process.run(append())
    # The new one has to be found first.
    assert (trips, outcome.session_uid) == (WRONG + 1, "another")


async def test_one_that_is_wrong_harms_no_other_of_its_batch(
    store: SqlStore, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So often that the driver prepares statements while it happens."""
    other = session(7)
    await store.write(lambda tx: tx.insert_session(other, None))
    there = replace(NAME, session_key=other.key)
    process.run(append(session=there))
    monkeypatch.setattr(known, "_TRUSTED", 0)
    monkeypatch.setattr(known, "_WRONG_IN_A_ROW", 100)
    for number in range(12):
        await store.submit(append(session=there))
        trips, outcomes = process.run(append(), append(session=there, claim=claim(f"{number}")))
        assert trips == WRONG
        assert [o.events[0][1] for o in outcomes] == [3 + number, 3 + 2 * number]
    assert process.run(append(), append(session=there))[0] == RIGHT


async def test_a_turn_that_was_taken_over(store: SqlStore, process: Process) -> None:
    trips, [accepted] = process.run(accept())
    assert trips == RIGHT
    assert process.run(step(accepted.turn))[0] == RIGHT
    # Only the turn's row has changed.
    taken = TakeTurn(
        tenant=TENANT, session_uid=SESSION.uid, turn_id=accepted.turn.id, lease=LEASE, force=True
    )
    turn: TurnRecord = await store.submit(taken)
    trips, [outcome] = process.run(step(accepted.turn))
    assert trips == WRONG
    assert isinstance(outcome, LeaseLost)
    trips, [outcome] = process.run(finish(turn))
    assert (trips, outcome.turn.fence) == (RIGHT, 2)


async def test_a_lease_that_was_renewed_stays_so(
    store: SqlStore, process: Process, engine: Engine
) -> None:
    _, [accepted] = process.run(accept())
    turn = (TENANT, SESSION.uid, accepted.turn.id)
    await store.write(lambda tx: tx.renew_leases(LEASE.owner, [turn], 1_000 * SECOND_US))
    with engine.connect() as connection:
        until = text("SELECT lease_until FROM turns")
        renewed = connection.execute(until).scalar_one()
        assert process.run(step(accepted.turn))[0] == WRONG
        assert connection.execute(until).scalar_one() == renewed
    # The session was as it is known: it is no reason to mistrust.
    assert process.run(step(accepted.turn))[0] == RIGHT


async def test_ids_that_are_there_already(process: Process) -> None:
    trips, [first] = process.run(append(draft(b"1", id="aev_given", given_id=True)))
    assert trips == RIGHT
    trips, outcomes = process.run(
        append(draft(b"1", id="aev_given", given_id=True)),
        append(draft(b"2", id="aev_given", given_id=True)),
    )
    assert (trips, outcomes[0].events) == (NOT_KNOWN, first.events)
    assert isinstance(outcomes[1], EventAlreadyExists)
    trips, [again] = process.run(append(draft(b"1", id="aev_given", given_id=True)))
    assert (trips, again.events) == (WRONG, first.events)
    trips, [again] = process.run(append(claim=claim("used")))
    assert (trips, again.events[0][1]) == (WRONG, 2)
    trips, [outcome] = process.run(append(claim=claim("used", b"other")))
    assert trips == WRONG
    assert isinstance(outcome, RequestIdReused)


def test_what_is_written_by_several_trips_is_read_first(process: Process) -> None:
    turn = process.run(accept())[1][0].turn
    summary = replace(draft(type=EventType.COMPACTION), hides=(1, 2))
    trips, [outcome] = process.run(step(turn, summary))
    # What is read; what is new; what is hidden is not by a trip; and the end.
    assert (trips, outcome.last_sequence) == (3, 4)
    file = replace(artifact(1), session_uid=SESSION.uid)
    upload = Upload(artifacts=(file,), quota=ArtifactQuota(max_files=9, max_bytes=1_000))
    trips, [_] = process.run(append(custom(), while_busy=True, upload=upload))
    assert trips == 3
    assert process.run(finish(turn))[0] == RIGHT


def test_a_turn_that_waits_is_read_and_starts(process: Process) -> None:
    _, [running, waiting] = process.run(accept(), accept())
    trips, [finished] = process.run(finish(running.turn))
    assert (trips, finished.next_turn.id) == (NOT_KNOWN + 1, waiting.turn.id)
    # Both in one batch need no reading: what waits has come with it.
    _, [waiting, finished] = process.run(accept(), finish(finished.next_turn))
    assert finished.next_turn.id == waiting.turn.id


async def test_what_is_locked_elsewhere_is_not_waited_for(process: Process, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM session_heads FOR UPDATE"))
        trips, [outcome] = process.run(append())
    assert trips == WRONG
    assert isinstance(outcome, Skipped)
    assert process.run(append())[0] == RIGHT


async def test_many_at_once_leave_one_record(store: SqlStore, engine: Engine, url: str) -> None:
    """Locks that another one has just given back show what he has written."""
    others = [await SqlStore.open(url) for _ in range(3)]
    stores = [store, *others]
    outcomes = await asyncio.gather(
        *(stores[number % 4].submit(append(claim=claim(f"{number}"))) for number in range(200))
    )
    assert sorted(outcome.events[0][1] for outcome in outcomes) == list(range(1, 201))
    for other in others:
        await other.close()


async def test_a_process_that_is_always_wrong_seldom_tries(
    store: SqlStore, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_TOLERANCE_US", -1)
    trips = [process.run(append())[0] for _ in range(40)]
    assert trips[:3] == [WRONG] * 3
    assert [index for index, count in enumerate(trips) if count == WRONG] == [
        0,
        1,
        2,
        3,
        5,
        9,
        17,
        33,
    ]
    monkeypatch.undo()
    monkeypatch.setattr(process.known, "_pause_batches", 0)
    other = await store.submit(append())
    assert other.events[0][1] == 43


async def test_what_refused_batches_leave_is_cleared(
    process: Process,
    run_by: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(known, "_WRONG_KEPT", 10)
    monkeypatch.setattr(known, "_WRONG_IN_A_ROW", 1_000)
    counts = []
    for _ in range(30):
        process.run(append(claim=claim("used")))
        counts.append(process.count_prepared())
    # psycopg warns of what it takes for lost.
    assert not caplog.records
    assert max(counts) < 30
    if run_by == "driver":
        # Those of the batch that follows.
        assert counts[9] < counts[8]
    assert process.run(append())[0] == RIGHT


def test_turns_are_kept_as_long_as_they_are_small(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_TURNS_MAX_BYTES", 100)
    kept = []
    for size in (90, 101):
        [accepted] = process.run(accept(input=draft(b"x" * size, type=EventType.INPUT_MESSAGE)))[1]
        kept.append(process.run(step(accepted.turn))[0])
        process.run(finish(accepted.turn))
    assert kept == [RIGHT, NOT_KNOWN]
    assert process.known._turns._bytes == 0


async def test_turns_of_others_are_not_kept(store: SqlStore, process: Process) -> None:
    turn = (await store.submit(accept())).turn
    # It is read for this one.
    process.run(FindInterrupted(session=NAME))
    assert process.known._turns._bytes == 0
    assert process.run(step(turn))[0] == NOT_KNOWN
    assert process.known._turns._bytes > 0


async def test_a_connection_that_ended_meanwhile_is_no_loss(
    store: SqlStore, engine: Engine
) -> None:
    await store.submit(append())
    await store.submit(append())
    with engine.connect() as connection:
        # It returns when they are gone.
        assert all(connection.execute(text(_END_OTHERS)).scalars())
    appended = await store.submit(append(expected_last_sequence=2))
    assert appended.events[0][1] == 3


async def test_what_fails_here_is_not_committed_in_part(
    store: SqlStore, run_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of this process, and not of the database, while it sends."""
    for number in range(2):
        await store.submit(append(claim=claim(f"{number}")))
    if run_by == "driver":
        send_many = prepared.Prepared.send_many

        def fail(self: prepared.Prepared, connection: Any, many: Any) -> None:
            if "UPDATE session_heads" in self._text:
                raise MemoryError
            send_many(self, connection, many)

        with monkeypatch.context() as patched:
            patched.setattr(prepared.Prepared, "send_many", fail)
            with pytest.raises(MemoryError):
                await store.submit(append())
    # Text that PostgreSQL does not take.
    with pytest.raises(DBAPIError):
        await store.submit(append(claim=claim("a\0b")))
    outcome = await store.submit(append(expected_last_sequence=2))
    assert outcome.events[0][1] == 3


async def test_the_time_is_the_databases(
    store: SqlStore, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong_us in (3_600 * SECOND_US, -3_600 * SECOND_US):
        before = DatabaseClock.now_us
        with monkeypatch.context() as patched:
            patched.setattr(
                DatabaseClock,
                "now_us",
                lambda clock, before=before, wrong_us=wrong_us: before(clock) + wrong_us,
            )
            assert process.run(append())[0] == WRONG
    assert process.run(append())[0] == RIGHT
    scan = EventScan(limit=1_000, max_bytes=1 << 30, max_rows=100_000)
    page = await store.read(lambda tx: tx.scan_events(TENANT, SESSION.uid, scan))
    assert len(page.events) == 5
    # The database is here.
    assert all(abs(event.created_at_us - now_us()) < 60 * SECOND_US for event in page.events)


def test_the_clock_follows_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = DatabaseClock()
    assert clock.now_us() is None
    monkeypatch.setattr(known, "_process_us", lambda: 10 * SECOND_US)
    clock.hear(1_000 * SECOND_US)
    assert clock.now_us() == 1_000 * SECOND_US
    # It was heard sooner after it looked: the greater difference is nearer.
    clock.hear(1_000 * SECOND_US + 100)
    assert clock.now_us() == 1_000 * SECOND_US + 100
    # A lesser one counts a little, since clocks drift.
    clock.hear(1_000 * SECOND_US + 100 - 1_600)
    assert clock.now_us() == 1_000 * SECOND_US
    # Somebody has set it.
    for there_us in (5_000 * SECOND_US, 1_000 * SECOND_US):
        clock.hear(there_us)
        assert clock.now_us() == there_us


async def test_the_newest_sessions_are_kept(store: SqlStore, engine: Engine) -> None:
    newest = KnownSessions(max_sessions=1)
    other = session(7)
    await store.write(lambda tx: tx.insert_session(other, None))
    there = replace(NAME, session_key=other.key)
    for name in (NAME, there):
        with committing(engine).connect() as connection, connection.begin():
            Batch(connection, now_us, skip_locked=True, known=newest).run([append(session=name)])
    assert newest.assume([append()]) is None
    assert newest.assume([append(session=there)]) is not None
    # Files and calls are looked at first.
    assert newest.assume([append(draft(tool_call_id="call"), session=there)]) is None
