"""What the process takes on: past that, calls are refused at once and told when to come again, so
that those that were taken are served in a bounded time. And how requests are read: only when a call
was let in, so that no stranger's bytes fill the memory.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import grpc.aio
import structlog

from hansard_server.domain.errors import DomainError, InvalidRequest, RateLimitExceeded
from hansard_server.domain.limits import KIB
from hansard_server.domain.values import dataclass
from hansard_server.servicers.arrivals import Arrivals
from hansard_server.servicers.interceptors import Call, Proceed
from hansard_server.servicers.status import DETAILS_KEY, to_wire

_log = structlog.get_logger("hansard.admission")

_RETRY_FIRST_S = 0.5
_RETRY_SPREAD_MIN_S = 1.0
_RETRY_SPREAD_MAX_S = 30.0
"""Refused clients come again spread over this time after the first half second, not together: over
the more time the more they are.
"""
_RETRY_STEP_S = 0.1
_REFUSALS_DUE_PER_S = 500
"""To refuse so many costs a process of ours less than a tenth of what it has."""
_LOOK_AT_ARRIVALS_S = 0.05
_SAY_SO_INTERVAL_S = 1.0
SMALL_REQUEST_BYTES = 64 * KIB
"""As much of a request as may arrive before anybody asks for it: HTTP/2's window for a stream."""
REQUEST_PATIENCE_S = 30.0
"""A request of one message must have arrived after this time."""
_HURRY_AFTER_S = 1.0
"""When others wait, after this one."""
_LOOK_INTERVAL_S = 0.25
_PROBE_REQUESTS = 16


class Admission:
    """The outermost interceptor: counts calls and streams, and refuses those past the caps.

    A stream of responses is a call until its first response, and only a stream from then on. The
    health service is always answered. Calls that have arrived and that grpc has not handed out yet
    count too: it hands out few at a time, so that under load they wait there, however many.

    Attributes:
        calls: how many calls are being served now.
        streams: how many streams of responses are open now.
        uploads: how many streams of requests are open now.
        refused: how many were refused since the start.
    """

    name = "admission"

    def __init__(self, *, max_calls: int, max_streams: int, max_uploads: int) -> None:
        self.calls = self.streams = self.uploads = self.refused = 0
        self._max_calls = max_calls
        self._max_streams = max_streams
        self._max_uploads = max_uploads
        self._said_at = 0.0
        self._arrivals: Arrivals | None = None
        self._handed_out = 0
        self._waiting = 0
        self._looked_at = 0.0
        self._crowd = 0
        self._refusals: dict[int, _Refusal] = {}
        self._spread_s = _RETRY_SPREAD_MIN_S
        self._refused_before = 0
        self._spread_at = 0.0

    def count(self, arrivals: Arrivals) -> None:
        """Count what has arrived at the server, too."""
        self._arrivals = arrivals

    def crowd(self) -> int:
        """Return how many calls are being served or have arrived; any thread may ask.

        Those that had arrived are known from the last look, which is some time ago if none came.
        """
        return max(self._crowd, self.calls)

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call, or refuse it with RATE_LIMIT_EXCEEDED and a time to come again."""
        self._look()
        self._handed_out += 1
        try:
            return await self._admit(call, proceed)
        finally:
            self._handed_out -= 1

    async def _admit(self, call: Call, proceed: Proceed) -> Any:
        method = call.method
        if method.probe:
            return await proceed(call)
        if self.calls + self._waiting >= self._max_calls:
            return await self._refuse(call)
        if method.request_streaming:
            return await self._upload(call, proceed)
        if method.response_streaming:
            return await self._stream(call, proceed)
        self.calls += 1
        try:
            return await proceed(call)
        finally:
            self.calls -= 1

    async def _stream(self, call: Call, proceed: Proceed) -> Any:
        if self.streams >= self._max_streams:
            return await self._refuse(call)
        self.calls += 1
        self.streams += 1
        opened = False

        def open_() -> None:
            nonlocal opened
            if not opened:
                opened = True
                self.calls -= 1

        call.when_answered(open_)
        try:
            return await proceed(call)
        finally:
            open_()
            self.streams -= 1

    async def _upload(self, call: Call, proceed: Proceed) -> Any:
        if self.uploads >= self._max_uploads:
            return await self._refuse(call)
        self.uploads += 1
        try:
            return await proceed(call)
        finally:
            self.uploads -= 1

    def _look(self) -> None:
        """Look at what waits in grpc's queue; between two looks it is what has not come since."""
        self._waiting = max(self._waiting - 1, 0)
        now = time.monotonic()
        if self._arrivals is not None and now - self._looked_at >= _LOOK_AT_ARRIVALS_S:
            self._looked_at = now
            # This call is not among those that were handed out yet.
            self._waiting = max(self._arrivals.unfinished() - self._handed_out - 1, 0)
            self._crowd = self.calls + self._waiting + 1

    def _spread(self, now: float) -> None:
        """Once a second, find over how long a time those who are refused now come again."""
        passed_s = now - self._spread_at
        if passed_s < _SAY_SO_INTERVAL_S:
            return
        rate = (self.refused - self._refused_before) / passed_s
        wanted = self._spread_s * rate / _REFUSALS_DUE_PER_S
        self._spread_s = min(max(wanted, _RETRY_SPREAD_MIN_S), _RETRY_SPREAD_MAX_S)
        self._spread_at, self._refused_before = now, self.refused

    async def _refuse(self, call: Call) -> Any:
        # As cheap as can be: no line for each, and the answers are kept.
        self.refused += 1
        now = time.monotonic()
        self._spread(now)
        if now - self._said_at >= _SAY_SO_INTERVAL_S:
            self._said_at = now
            _log.warning(
                "calls are refused: more than may run at a time",
                calls=self.calls,
                waiting=self._waiting,
                streams=self.streams,
                uploads=self.uploads,
                refused=self.refused,
            )
        step = int(random.random() * self._spread_s / _RETRY_STEP_S)  # noqa: S311 - spreads them
        refusal = self._refusals.get(step)
        if refusal is None:
            refusal = self._refusals[step] = _refusal(step)
        await call.context.abort(*refusal)


class RequestReader:
    """Reads the request of calls that have one: after whoever lets calls in, before validation.

    Of calls whose request is not small, or has not arrived, only so many go on at a time; the
    others wait, their bytes held back by HTTP/2's flow control. Whoever waits for long has a
    request ended that is slow to arrive. Probes have places of their own.
    """

    name = "request"

    def __init__(self, *, large_requests: int, patience_s: float = REQUEST_PATIENCE_S) -> None:
        """`large_requests` calls at a time may have a large request in memory."""
        self._slots = asyncio.Semaphore(large_requests)
        self._probe_slots = asyncio.Semaphore(_PROBE_REQUESTS)
        self._patience_s = patience_s
        # The oldest first. One timer looks at them all: one for each would cost more than the rest.
        self._readings: dict[_Reading, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call with its request as bytes. Raises InvalidRequest, RateLimitExceeded."""
        if call.method.request_streaming:
            return await proceed(call)
        slots = self._probe_slots if call.method.probe else self._slots
        if slots.locked():
            await self._wait(slots)
        else:
            await slots.acquire()
        try:
            call.request = await self._read(call)
        except BaseException:
            slots.release()
            raise
        if len(call.request) <= SMALL_REQUEST_BYTES:
            slots.release()
            return await proceed(call)
        release = _once(slots.release)
        if call.method.response_streaming:
            call.when_answered(release)
        try:
            return await proceed(call)
        finally:
            release()

    async def _read(self, call: Call) -> bytes:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
        patience_s = _HURRY_AFTER_S if call.method.probe else self._patience_s
        reading = _Reading(task, loop.time(), patience_s)
        self._readings[reading] = None
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_INTERVAL_S, self._look)
        try:
            received = await call.context.read()
        except asyncio.CancelledError:
            # Not by us, or by others too: then it is theirs.
            if reading.ended is None or task.uncancel():
                raise
            raise reading.ended from None
        finally:
            self._readings.pop(reading, None)
        if received is grpc.aio.EOF:
            # Also after grpc has refused a frame by itself: then this is not heard of.
            raise InvalidRequest("the call ended without its request")
        return bytes(received)

    async def _wait(self, slots: asyncio.Semaphore) -> None:
        while True:
            try:
                async with asyncio.timeout(_HURRY_AFTER_S):
                    await slots.acquire()
            except TimeoutError:
                self._end_slowest()
            else:
                return

    def _end_slowest(self) -> None:
        reading = next(iter(self._readings), None)
        now = asyncio.get_running_loop().time()
        if reading is not None and now - reading.started >= _HURRY_AFTER_S:
            self._end(
                reading,
                RateLimitExceeded(
                    "the request arrived too slowly, and others waited", retry_after_s=1.0
                ),
            )

    def _look(self) -> None:
        """End what has taken too long, and come again while anything is read."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = [r for r in self._readings if now - r.started >= r.patience_s]
        for reading in late:
            words = f"the request did not arrive within {reading.patience_s:g} s"
            self._end(reading, InvalidRequest(words))
        self._timer = loop.call_later(_LOOK_INTERVAL_S, self._look) if self._readings else None

    def _end(self, reading: _Reading, error: DomainError) -> None:
        del self._readings[reading]
        reading.ended = error
        reading.task.cancel()


@dataclass(slots=True, eq=False)
class _Reading:
    """A request that is being read; `ended` says why it was given up."""

    task: asyncio.Task[Any]
    started: float
    patience_s: float
    ended: DomainError | None = None


def _once(do: Callable[[], None]) -> Callable[[], None]:
    done = False

    def do_once() -> None:
        nonlocal done
        if not done:
            done = True
            do()

    return do_once


_Refusal = tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]


def _refusal(step: int) -> _Refusal:
    error = RateLimitExceeded(
        "the server serves as many calls as it can at a time; come again later",
        retry_after_s=_RETRY_FIRST_S + step * _RETRY_STEP_S,
    )
    wire = to_wire(error)
    return wire.code, wire.message, ((DETAILS_KEY, wire.details),)
