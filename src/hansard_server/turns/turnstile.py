"""The turnstile: lets so many readers through in each round of the event loop, and no more.

Without it an event that a thousand readers wait for would keep the loop from everything else until
the last of them has been served. While a call waits for its answer it pauses now and then, too:
what answers runs in other threads, which get little of a loop that never rests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

READERS_A_ROUND = 4
"""Serving one takes tens of microseconds; a call that others make needs about ten rounds."""
READERS_BETWEEN_PAUSES = 16
PAUSE_S = 0.001


class Turnstile:
    """Lets readers through in the order in which they came."""

    def __init__(
        self, readers_a_round: int = READERS_A_ROUND, *, hurried: Callable[[], bool] = lambda: False
    ) -> None:
        """Let `readers_a_round` through in one round of the loop.

        `hurried` tells whether a call waits for its answer.
        """
        self._readers_a_round = readers_a_round
        self._hurried = hurried
        self._passed_since_pause = 0
        self._passed = 0
        self._scheduled = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def admit(self, waiters: Iterable[asyncio.Future[None]]) -> None:
        """Set the futures done, as many as may pass in each round."""
        self._waiting.extend(waiters)
        self._let_through()

    async def enter(self) -> None:
        """Return when it is the caller's turn: at once as long as few come."""
        if not self._waiting and self._passed < self._readers_a_round:
            self._count()
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _let_through(self) -> None:
        while self._waiting and self._passed < self._readers_a_round:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._count()
                waiter.set_result(None)

    def _count(self) -> None:
        self._passed += 1
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next_round)

    def _next_round(self) -> None:
        self._passed_since_pause += self._passed
        if self._passed_since_pause >= READERS_BETWEEN_PAUSES:
            self._passed_since_pause = 0
            if self._hurried():
                self._passed = self._readers_a_round
                asyncio.get_running_loop().call_later(PAUSE_S, self._end_pause)
                return
        self._end_pause()

    def _end_pause(self) -> None:
        self._passed = 0
        self._scheduled = False
        self._let_through()
