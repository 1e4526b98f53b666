"""The store: where queries, decisions and commands run, and who hears of what they did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.errors import EventAlreadyExists, StoreUnavailable
from hansard_server.repository.api import Change, ReadTx, WriteTx
from hansard_server.repository.commands import Command, OwnedCommand
from hansard_server.repository.sql.batch import Skipped
from hansard_server.repository.sql.engine import (
    EngineOptions,
    committing,
    make_engine,
    reading,
    writing,
)
from hansard_server.repository.sql.jobs import Done, Job, Waits
from hansard_server.repository.sql.migrations import check_schema
from hansard_server.repository.sql.probe import probe_write
from hansard_server.repository.sql.readers import ReaderPool
from hansard_server.repository.sql.writer import CommandRuns, OutcomeUnknown, Writer, run_jobs

T = TypeVar("T")

_SQLITE_READERS = 4
_POSTGRESQL_READERS = 8
_POSTGRESQL_DECIDERS = 8
# One for each reader and decider, the writer's, and one to spare.
_POOL_CONNECTIONS = 18
_DECISION_TRIES = 5
_RETRIED_SQLSTATES = frozenset({"40001", "40P01", "23505"})
# A standby, or a database that somebody has set to be read only.
# The second one: by a connection that has been a reader's, and says since whether it writes.
_READ_ONLY_SQLSTATES = frozenset({"25006", "0A000"})


class SqlStore:
    """A Store (see repository.api) on SQLite or PostgreSQL.

    On SQLite all writes go through one thread, which commits whatever waits together. On PostgreSQL
    commands do, and decisions run on a pool of connections.
    """

    def __init__(self, engine: Engine, *, clock: Clock = now_us) -> None:
        """Take over the engine; `open` makes one."""
        self._engine = engine
        self._clock = clock
        self._listeners: list[Callable[[Change], None]] = []
        self._loop = asyncio.get_running_loop()
        self._writes_fail = False
        """A write has failed, and the probe has not gone well since."""
        self._sqlite = engine.dialect.name == "sqlite"
        self._waits = Waits(self._loop)
        self._read_engine = reading(engine)
        self._readers = ReaderPool(
            self._read_engine,
            self._tell,
            threads=_SQLITE_READERS if self._sqlite else _POSTGRESQL_READERS,
            in_process=self._sqlite,
        )
        self._deciders = (
            None if self._sqlite else ThreadPoolExecutor(_POSTGRESQL_DECIDERS, "hansard-decider")
        )
        # Nothing else may keep it from saying whether the database answers.
        self._checker = ThreadPoolExecutor(1, "hansard-check")
        self._write_engine = writing(engine)
        self._run = partial(run_jobs, clock=clock)
        self._writer = (
            Writer(self._write_engine, self._run, self._publish)
            if self._sqlite
            else Writer(committing(engine), CommandRuns(clock), self._publish)
        )

    @classmethod
    async def open(cls, url: str, *, clock: Clock = now_us) -> SqlStore:
        """Return a store on the database. Raises ValueError for other URLs, SchemaMismatch,
        StoreUnavailable.
        """
        options = EngineOptions(pool_size=_POOL_CONNECTIONS)
        store = cls(make_engine(url, options), clock=clock)
        try:
            await store.check()
        except BaseException:
            await store.close()
            raise
        return store

    def expect(self, crowd: Callable[[], int]) -> None:
        """Have commands of a crowd of calls wait for each other; see the Protocol."""
        self._writer.crowd = crowd

    async def read(self, query: Callable[[ReadTx], T]) -> T:
        """Return the query's result; see the Protocol."""
        job = self._waits.begin(query)
        self._readers.submit(job)
        return cast("T", await self._waits.end(job))

    async def write(self, decide: Callable[[WriteTx], T]) -> T:
        """Return the decision's result after its commit; see the Protocol."""
        return cast("T", await self._do(decide))

    async def submit(self, command: Command) -> Any:
        """Return the command's result after its commit; see the Protocol."""
        try:
            try:
                return await self._do(command)
            except Skipped:
                # The head is locked by somebody else's transaction: wait for it outside the batch.
                return await self._do_alone(command)
        except (IntegrityError, OutcomeUnknown) as error:
            # An id is taken: by an earlier run of this command whose commit was not heard of, or,
            # for the minted ids of a turn's events, by a caller's event.
            if isinstance(error, IntegrityError) and isinstance(command, OwnedCommand):
                msg = "an event's id is taken"
                raise EventAlreadyExists(msg) from error
            msg = "it is not known whether the call took effect"
            raise StoreUnavailable(msg, retry_after_s=1.0) from error

    @contextlib.contextmanager
    def listen(self, on_change: Callable[[Change], None]) -> Iterator[None]:
        """Have `on_change` called after every commit of this process, until exit."""
        self._listeners.append(on_change)
        try:
            yield
        finally:
            self._listeners.remove(on_change)

    async def check(self) -> None:
        """Return when the database answers and has a schema that this code knows; see Protocol."""
        job = self._waits.begin(lambda _: None)
        self._loop.run_in_executor(self._checker, self._check_for, job)
        await self._waits.end(job)

    async def close(self) -> None:
        """Finish what was accepted, and give everything back."""
        await asyncio.to_thread(self._close)

    def _check_for(self, job: Job) -> None:
        outcome: object = None
        try:
            self._check()
        except Exception as error:  # noqa: BLE001 - raised by the one who waits
            outcome = error
        self._tell([Done(job, outcome)])

    def _check(self) -> None:
        with _unavailable(), self._read_engine.connect() as connection:
            check_schema(connection)
        if self._writes_fail:
            # Reads may work where writes do not: on a full disk, in a read-only file. Only this
            # tells that all is well: small writes may find room where others do not.
            with _unavailable(), self._write_engine.begin() as connection:
                probe_write(connection)
            self._writes_fail = False

    def _close(self) -> None:
        self._writer.close()
        if self._deciders is not None:
            self._deciders.shutdown()
        self._readers.close()
        self._checker.shutdown()
        self._engine.dispose()

    async def _do(self, work: Command | Callable[[Any], Any]) -> object:
        if callable(work) and self._deciders is not None:
            return await self._do_alone(work)
        job = self._waits.begin(work)
        self._writer.submit(job)
        return await self._waits.end(job)

    async def _do_alone(self, work: Command | Callable[[Any], Any]) -> object:
        job = self._waits.begin(work)
        self._loop.run_in_executor(self._deciders or self._checker, self._write_alone, job)
        return await self._waits.end(job)

    def _write_alone(self, job: Job) -> None:
        if job.given_up:
            return
        for attempt in range(1, _DECISION_TRIES + 1):
            try:
                with self._write_engine.begin() as connection:
                    written, changes = self._run(connection, [job])
            except Exception as error:  # noqa: BLE001 - whoever waits must be told
                if attempt < _DECISION_TRIES and _was_conflict(error):
                    continue
                written, changes = [Done(job, error)], []
            self._publish(written, changes)
            return

    def _publish(self, written: Sequence[Done], changes: Sequence[Change]) -> None:
        if any(_is_out_of_order(done.outcome) for done in written):
            self._writes_fail = True
        self._loop.call_soon_threadsafe(self._deliver, written, changes)

    def _tell(self, read: Sequence[Done]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, read, ())

    def _deliver(self, written: Sequence[Done], changes: Sequence[Change]) -> None:
        # Listeners first: who waits for a write may at once follow what it did.
        for change in changes:
            for on_change in tuple(self._listeners):
                on_change(change)
        for done in written:
            if done.job.future.done():
                continue
            if isinstance(done.outcome, Exception):
                done.job.future.set_exception(_domain_error(done.outcome))
            else:
                done.job.future.set_result(done.outcome)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        raise _domain_error(error) from error


def _domain_error(error: Exception) -> Exception:
    """Return what a caller may see of a database's error; others as they are."""
    if _is_out_of_order(error):
        unavailable = StoreUnavailable("the database does not answer", retry_after_s=1.0)
        unavailable.__cause__ = error
        return unavailable
    return error


def _is_out_of_order(error: object) -> bool:
    """Tell whether the error says that the database does not do its work, whatever it is asked."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return True
    return getattr(getattr(error, "orig", None), "sqlstate", None) in _READ_ONLY_SQLSTATES


def _was_conflict(error: Exception) -> bool:
    if isinstance(error, IntegrityError):
        return True
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
    return sqlstate in _RETRIED_SQLSTATES
