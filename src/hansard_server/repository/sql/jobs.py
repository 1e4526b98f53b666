"""Jobs: what threads do for calls that wait, and how long it is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from hansard_server.domain.errors import StoreUnavailable
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import Change
from hansard_server.repository.commands import Command

ANSWER_TIMEOUT_S = 15.0
"""A call gives up on the database after this long; what it asked for may still happen."""
_LOOK_INTERVAL_S = 0.25

Work = Command | Callable[[Any], Any]
"""A command, or a function of a transaction."""


@dataclass(slots=True, eq=False)
class Job:
    """Something that waits for a thread.

    Who waits awaits `future`. Going away cancels that, and the job is done all the same; with
    `given_up` it is not begun any more.
    """

    work: Work
    future: asyncio.Future[Any]
    given_up: bool = False
    since: float = field(default=0.0, repr=False)


@dataclass(frozen=True, slots=True)
class Done:
    """What one job came to; an exception is raised by the one who waits."""

    job: Job
    outcome: object


Publish = Callable[[Sequence[Done], Sequence[Change]], None]
"""Called in the thread that did jobs, after their transaction."""
Tell = Callable[[Sequence[Done]], None]
"""The same, for jobs that change nothing."""


class Waits:
    """Waits for jobs: one timer looks at them all, and gives up those that take too long."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # The oldest first.
        self._jobs: dict[Job, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, work: Work) -> Job:
        """Return a new job, for a thread to do."""
        return Job(work, self._loop.create_future())

    async def end(self, job: Job) -> Any:
        """Return the job's outcome, or raise it. Raises StoreUnavailable when it takes too long."""
        job.since = self._loop.time()
        self._jobs[job] = None
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_INTERVAL_S, self._look)
        try:
            return await job.future
        finally:
            del self._jobs[job]

    def _look(self) -> None:
        """Give up what has taken too long, and come again while anybody waits."""
        late = self._loop.time() - ANSWER_TIMEOUT_S
        for job in self._jobs:
            if job.since > late:
                break
            # What has not begun yet is not done any more: its caller is told, and may repeat it.
            job.given_up = True
            if not job.future.done():
                job.future.set_exception(
                    StoreUnavailable("the database does not answer", retry_after_s=1.0)
                )
        self._timer = self._loop.call_later(_LOOK_INTERVAL_S, self._look) if self._jobs else None
