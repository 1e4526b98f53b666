"""The turnstile: lets so many readers through in each round of the event loop, and no more.

Without it an event that a thousand readers wait for would keep the loop from everything else until
the last of them has been served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

READERS_A_ROUND = 4
"""Serving one takes tens of microseconds; a call that others make needs about ten rounds."""


class Turnstile:
    """Lets readers through in the order in which they came."""

    def __init__(self, readers_a_round: int = READERS_A_ROUND) -> None:
        """Let `readers_a_round` through in one round of the loop."""
        self._readers_a_round = readers_a_round
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
        self._passed = 0
        self._scheduled = False
        self._let_through()
