"""How the server stops: the drain that streams watch, the calls that still run, the closers, and
the lock that lets one process alone have a SQLite database.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import structlog

from hansard_server.domain.errors import ServerShuttingDown

T = TypeVar("T")

_log = structlog.get_logger("hansard.lifecycle")

RETRY_AFTER_S = 1.0
"""When a client that met a stopping server should come back, in seconds."""


class Drain:
    """Says that the server is stopping. Streams watch `started` and end themselves.

    Attributes:
        started: set once, when the server begins to stop.
    """

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self._deadline: float | None = None
        self._waits: set[asyncio.Timeout] = set()

    def begin(self, deadline_s: float) -> None:
        """Begin to stop; all must be over in `deadline_s` seconds. A second call does nothing."""
        if self.started.is_set():
            return
        now = asyncio.get_running_loop().time()
        self._deadline = now + deadline_s
        self.started.set()
        for wait in tuple(self._waits):
            wait.reschedule(now)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the process is gone; None while the server is not stopping."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def check(self) -> None:
        """Do nothing, or raise ServerShuttingDown when the server is stopping."""
        if self.started.is_set():
            raise shutting_down()

    async def unless_started(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Return what `wait` gives; it is cancelled, and ServerShuttingDown raised, when the server
        begins to stop meanwhile or has done so before.
        """
        self.check()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._waits.add(scope)
                try:
                    return await wait()
                finally:
                    self._waits.discard(scope)
        except TimeoutError:
            if scope.expired():
                raise shutting_down() from None
            raise


def shutting_down(*, sequence: int | None = None) -> ServerShuttingDown:
    """Return the error that ends a call; `sequence` is the place where a stream may be resumed."""
    metadata = {} if sequence is None else {"sequence": str(sequence)}
    return ServerShuttingDown(
        "the server is stopping", metadata=metadata, retry_after_s=RETRY_AFTER_S
    )


class Calls:
    """Counts the calls that run now; a context manager around each of them.

    `unanswered` counts those of them that have one answer, which their callers wait for.
    """

    def __init__(self) -> None:
        self.running = 0
        self.unanswered = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self.running += 1
        self._none.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.running -= 1
        if self.running == 0:
            self._none.set()

    async def finish(self, within_s: float) -> bool:
        """Wait until no call runs; False when some still did after `within_s` seconds."""
        try:
            async with asyncio.timeout(within_s):
                await self._none.wait()
        except TimeoutError:
            return False
        return True


class Closers:
    """What must be closed at the end: the last thing opened first, all under one deadline."""

    def __init__(self) -> None:
        self._closers: list[tuple[str, Callable[[], Awaitable[object]]]] = []

    def add(self, name: str, close: Callable[[], Awaitable[object]]) -> None:
        """Have `close` called when the server stops, before what was added earlier."""
        self._closers.append((name, close))

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run the work in a task of its own, which is cancelled when it is to be closed."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.add(name, partial(cancel, task))

    async def close(self, within_s: float) -> None:
        """Close everything. One that fails, or is late, is logged and keeps no other waiting."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self._closers:
            name, close = self._closers.pop()
            try:
                async with asyncio.timeout_at(deadline):
                    await close()
            except TimeoutError:
                _log.warning("not closed in time", part=name)
            except Exception:  # noqa: BLE001 - logged with its traceback
                _log.exception("closing failed", part=name)


async def cancel(task: asyncio.Task[object]) -> None:
    """Cancel a background task and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait([task])


class AlreadyLocked(Exception):  # noqa: N818 - reads as what happened
    """Another process has the lock."""


class ProcessLock:
    """A lock of the operating system on a file: it goes with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises AlreadyLocked, OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise AlreadyLocked(str(path)) from None
        except BaseException:
            os.close(self._file)
            raise
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back; the file stays."""
        os.close(self._file)
