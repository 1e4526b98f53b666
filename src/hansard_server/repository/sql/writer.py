"""The writer: one thread that does whatever waits as one transaction on a connection of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from hansard_server.domain.clock import Clock
from hansard_server.failpoints import hit
from hansard_server.repository.api import Change
from hansard_server.repository.commands import AcceptInput, AnswerCalls, AppendDrafts
from hansard_server.repository.sql.batch import Batch
from hansard_server.repository.sql.engine import has_ended
from hansard_server.repository.sql.jobs import Done, Job, Publish, Work
from hansard_server.repository.sql.known import KnownSessions
from hansard_server.repository.sql.writes import SqlWriteTx

BATCH_MAX_JOBS = 256
_GATHER_S = 0.002
_GATHER_TIMES = 4
"""Jobs are waited for so often at most, and only as long as some come."""
_CROWD = 16
"""Of fewer calls none waits for the others."""

Decision = Callable[[SqlWriteTx], Any]
Run = Callable[[Connection, Sequence[Job]], tuple[list[Done], list[Change]]]
"""Runs jobs in order in one transaction; `run_jobs` and CommandRuns are such."""


class OutcomeUnknown(Exception):  # noqa: N818 - the database's word, and not ours, is missing
    """The connection broke after the commit was asked for, and before it was answered."""


class Writer:
    """A thread that takes whatever waits, and commits it together.

    Consecutive commands are one Batch; a decision gets a savepoint of its own, so that one that is
    refused harms no other. A database error rolls everything back and runs each job alone. Where it
    is not known whether a commit has happened, only those are run again that then find what they
    did; the others come to OutcomeUnknown.

    Attributes:
        crowd: tells, in any thread, how many calls run or are about to.
    """

    def __init__(self, engine: Engine, run: Run, publish: Publish) -> None:
        """Start the thread, which runs jobs by `run` on connections of the engine."""
        self.crowd: Callable[[], int] = lambda: 0
        self._engine = engine
        self._run_jobs = run
        self._publish = publish
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="hansard-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Have the job done."""
        self._jobs.put(job)

    def close(self) -> None:
        """Return when everything that was submitted is done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection: Connection | None = None
        closing = False
        while not closing:
            taken, closing = self._take()
            jobs = [job for job in taken if not job.given_up]
            if not jobs:
                continue
            try:
                if connection is not None and has_ended(connection):
                    _discard(connection)
                    connection = None
                connection = connection or self._engine.connect()
                self._write_together(connection, jobs)
            except DBAPIError:
                _discard(connection)
                connection = None
                self._write_each_alone(jobs)
            except OutcomeUnknown as error:
                _discard(connection)
                connection = None
                unsafe = [job for job in jobs if not _may_be_repeated(job.work)]
                self._publish([Done(job, error) for job in unsafe], ())
                self._write_each_alone([job for job in jobs if job not in unsafe])
            except Exception as error:  # noqa: BLE001 - whoever waits must be told
                _discard(connection)
                connection = None
                self._publish([Done(job, error) for job in jobs], ())
        _discard(connection)

    def _take(self) -> tuple[list[Job], bool]:
        first = self._jobs.get()
        if first is None:
            return [], True
        jobs = [first]
        closing = self._take_waiting(jobs)
        wanted = self.crowd() // 2
        if wanted < _CROWD // 2:
            return jobs, closing
        # A transaction costs as much as several commands in it do, and of those who were answered
        # together the first comes back long before the last.
        for _ in range(_GATHER_TIMES):
            count = len(jobs)
            if closing or count >= wanted:
                break
            time.sleep(_GATHER_S)
            closing = self._take_waiting(jobs)
            if len(jobs) == count:
                break
        return jobs, closing

    def _take_waiting(self, jobs: list[Job]) -> bool:
        """Add what has been submitted; return whether that was all there will be."""
        while len(jobs) < BATCH_MAX_JOBS:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return True
            jobs.append(job)
        return False

    def _write_together(self, connection: Connection, jobs: Sequence[Job]) -> None:
        with connection.begin():
            hit("write.begun")
            written, changes = self._run_jobs(connection, jobs)
        hit("write.committed")
        self._publish(written, changes)

    def _write_each_alone(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                with self._engine.begin() as connection:
                    written, changes = self._run_jobs(connection, [job])
            except Exception as error:  # noqa: BLE001 - whoever waits must be told
                self._publish([Done(job, error)], ())
            else:
                self._publish(written, changes)


def run_jobs(
    connection: Connection, jobs: Sequence[Job], *, clock: Clock
) -> tuple[list[Done], list[Change]]:
    """Run jobs in order in the connection's transaction; return outcomes and changes.

    Raises database errors; nothing of the transaction may be committed then.
    """
    written: list[Done] = []
    changes: list[Change] = []
    commands: list[Job] = []

    def run_commands() -> None:
        if commands:
            batch = Batch(connection, clock)
            outcomes = batch.run([job.work for job in commands])  # type: ignore[misc]
            written.extend(map(Done, commands, outcomes))
            changes.extend(batch.changes)
            commands.clear()

    for job in jobs:
        if not callable(job.work):
            commands.append(job)
            continue
        run_commands()
        outcome, made = run_decision(connection, job.work)
        written.append(Done(job, outcome))
        changes.extend(made)
    run_commands()
    return written, changes


class CommandRuns:
    """Runs commands as one Batch that is the whole transaction.

    The connection is one of an engine that leaves transactions alone, see `committing`.
    """

    def __init__(self, clock: Clock) -> None:
        """Know no session yet."""
        self._clock = clock
        self._known = KnownSessions()

    def __call__(
        self, connection: Connection, jobs: Sequence[Job]
    ) -> tuple[list[Done], list[Change]]:
        """Run the jobs, and commit; return outcomes and changes.

        Sessions that are locked elsewhere are skipped. Raises OutcomeUnknown; and other database
        errors, with which what was begun is to be rolled back.
        """
        batch = Batch(connection, self._clock, skip_locked=True, known=self._known)
        try:
            outcomes = batch.run([job.work for job in jobs])  # type: ignore[misc]
        except DBAPIError as error:
            if batch.ending and error.connection_invalidated:
                raise OutcomeUnknown from error
            raise
        return list(map(Done, jobs, outcomes)), batch.changes


def run_decision(connection: Connection, decide: Decision) -> tuple[object, Sequence[Change]]:
    """Run a decision in a savepoint; return its outcome and changes. Raises database errors."""
    tx = SqlWriteTx(connection)
    savepoint = connection.begin_nested()
    try:
        outcome = decide(tx)
    except DBAPIError:
        savepoint.rollback()
        raise
    except Exception as error:  # noqa: BLE001 - the decision's own refusal
        savepoint.rollback()
        return error, ()
    hit("decision.made")
    savepoint.commit()
    return outcome, tx.changes


def _may_be_repeated(work: Work) -> bool:
    """Tell whether a command that took effect is no other when it is run again.

    A claim gives the first answer, and a turn's owner knows its own steps; the others would be
    refused for what they did themselves.
    """
    makes = isinstance(work, AppendDrafts | AcceptInput | AnswerCalls)
    return not makes or getattr(work, "claim", None) is not None


def _discard(connection: Connection | None) -> None:
    if connection is not None:
        connection.invalidate()
        connection.close()
