"""The readers: threads that answer queries, as many as wait in one transaction.

Waking a thread costs more than a lookup, so that one goes on as long as queries come, and another
is woken when some have waited for a moment: behind a slow one nobody waits for long.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from hansard_server.domain.values import dataclass
from hansard_server.repository.sql.jobs import Done, Job, Tell
from hansard_server.repository.sql.reads import SqlReadTx

GROUP_MAX_QUERIES = 64
_GROUP_MAX_S = 0.002
"""A transaction that has lasted so long takes no more queries."""
_RELIEF_S = 0.002
"""After so long another reader helps, and what was answered is told."""
_STUCK_S = 0.010
"""A reader of a database in this process gets on as long as no query lasts longer: it may have to
wait for the interpreter, 5 ms each time."""
_READ, _END = "read", "end"


@dataclass(slots=True)
class _Waiting:
    number: int
    job: Job


@dataclass(slots=True, eq=False)
class _Group:
    """Queries of one transaction: those submitted up to a number, before it began.

    Attributes:
        number: groups are counted.
        since: when it began with the query that it is at.
    """

    up_to: int
    number: int
    since: float
    done: list[Done] = field(default_factory=list)
    count: int = 0


class _Kept:
    """A reader's connection, which it keeps: to take it from the pool costs more than a lookup."""

    def __init__(self, engine: Engine, losses: list[int]) -> None:
        """Connect when it is needed; `losses` is another number after connections have broken."""
        self._engine = engine
        self._losses = losses
        self._at = 0
        self._connection: Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give the connection in a transaction. After an error another one is taken."""
        if self._connection is not None and self._at != self._losses[0]:
            self.close()
        if self._connection is None:
            self._at = self._losses[0]
            self._connection = self._engine.connect()
        try:
            with self._connection.begin():
                yield self._connection
        except BaseException:
            self.close()
            raise

    @property
    def connected(self) -> bool:
        """Whether there is one."""
        return self._connection is not None

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class ReaderPool:
    """Threads with a connection each. All methods are the event loop's to call."""

    def __init__(self, engine: Engine, tell: Tell, *, threads: int, in_process: bool) -> None:
        """Read by at most so many threads, which start when they are needed.

        Those of a database `in_process` would only take the interpreter from each other: there one
        reads as long as it gets on.
        """
        self._engine = engine
        self._tell = tell
        self._max_threads = threads
        self._threads: list[threading.Thread] = []
        self._loop = asyncio.get_running_loop()
        self._relief: asyncio.TimerHandle | None = None
        self._tokens: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._in_process = in_process
        # All of these under the lock.
        self._waiting: deque[_Waiting] = deque()
        self._groups: set[_Group] = set()
        self._submitted = 0
        self._active = 0
        self._begun = 0
        self._losses = [0]
        self._kept: list[_Kept] = []
        event.listen(engine.pool, "invalidate", self._lose)

    def submit(self, job: Job) -> None:
        """Have the query answered by what is committed now, or later."""
        with self._lock:
            self._submitted += 1
            self._waiting.append(_Waiting(self._submitted, job))
            nobody = self._active == 0
            self._active += nobody
        if nobody:
            self._wake()
        if self._relief is None:
            self._relief = self._loop.call_later(_RELIEF_S, self._relieve)

    @property
    def connections(self) -> int:
        """How many connections the threads keep."""
        return sum(kept.connected for kept in self._kept)

    def close(self) -> None:
        """Return when everything that was submitted is answered. May be called in any thread."""
        for _ in self._threads:
            self._tokens.put(_END)
        for thread in self._threads:
            thread.join()

    def _relieve(self) -> None:
        with self._lock:
            full = self._active >= self._max_threads
            help_ = bool(self._waiting) and not full and not self._get_on()
            self._active += help_
            done = [one for group in self._groups for one in group.done]
            for group in self._groups:
                group.done = []
            busy = self._active > 0
        if help_:
            self._wake()
        if done:
            self._tell(done)
        self._relief = self._loop.call_later(_RELIEF_S, self._relieve) if busy else None

    def _wake(self) -> None:
        if self._active > len(self._threads):
            number = len(self._threads)
            thread = threading.Thread(
                target=self._run, name=f"hansard-reader_{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._tokens.put(_READ)

    def _run(self) -> None:
        kept = _Kept(self._engine, self._losses)
        self._kept.append(kept)
        while self._tokens.get() == _READ:
            group = None
            while (group := self._begin(group)) is not None:
                self._read(kept, group)
                with self._lock:
                    self._groups.discard(group)
                self._hand_over(group)
        kept.close()

    def _lose(self, *_: object) -> None:
        """Have all readers connect anew: others will be broken where one is."""
        self._losses[0] += 1

    def _begin(self, before: _Group | None) -> _Group | None:
        with self._lock:
            if not self._waiting or self._is_superfluous(before):
                self._active -= 1
                return None
            self._begun += 1
            group = _Group(self._submitted, self._begun, time.perf_counter())
            self._groups.add(group)
            return group

    def _get_on(self) -> bool:
        """Tell whether more readers would be of no use."""
        if not self._in_process:
            return False
        if len(self._groups) < self._active:
            return True
        late = time.perf_counter() - _STUCK_S
        return any(group.since > late for group in self._groups)

    def _is_superfluous(self, before: _Group | None) -> bool:
        """Tell whether another reader has begun a group since the one `before`: it gets on."""
        if not self._in_process or before is None:
            return False
        return any(group.number > before.number for group in self._groups)

    def _next(self, group: _Group) -> Job | None:
        """Return the next query that was submitted before the group's transaction began."""
        with self._lock:
            while self._waiting and self._waiting[0].number <= group.up_to:
                job = self._waiting.popleft().job
                if not job.given_up:
                    return job
        return None

    def _finish(self, group: _Group, job: Job, outcome: object) -> None:
        with self._lock:
            group.done.append(Done(job, outcome))
            group.count += 1
            group.since = time.perf_counter()

    def _hand_over(self, group: _Group) -> None:
        with self._lock:
            done, group.done = group.done, []
        if done:
            self._tell(done)

    def _read(self, kept: _Kept, group: _Group) -> None:
        job = self._next(group)
        if job is None:
            return
        try:
            with kept.transaction() as connection:
                tx = SqlReadTx(connection)
                began = time.perf_counter()
                while job is not None:
                    current, job = job, None
                    outcome = _answer(tx, current)
                    self._finish(group, current, outcome)
                    late = time.perf_counter() - began > _GROUP_MAX_S
                    failed = isinstance(outcome, SQLAlchemyError)
                    if not (late or failed or group.count >= GROUP_MAX_QUERIES):
                        job = self._next(group)
                # Nothing was written: nobody has to wait for the end of it.
                self._hand_over(group)
        except Exception as error:  # noqa: BLE001 - whoever waits must be told
            # Without a connection nothing was asked; at the end all is answered.
            if job is not None:
                self._finish(group, job, error)


def _answer(tx: SqlReadTx, job: Job) -> object:
    work = job.work
    assert callable(work)  # noqa: S101 - for the type checker: readers are given no commands
    try:
        return work(tx)
    except Exception as error:  # noqa: BLE001 - raised by the one who waits
        return error
