"""Patience with the store: a turn outlasts a database that is started again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hansard_server.domain.errors import StoreUnavailable

T = TypeVar("T")

STORE_PAUSES_S = (0.1, 0.5, 2.0, 5.0, 10.0)
"""How long a turn waits before it asks the store once more, while that does not answer."""


async def outlast(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what `ask` returns, which may be called again and again.

    Raises StoreUnavailable when the store does not answer for long.
    """
    for pause_s in STORE_PAUSES_S:
        try:
            return await ask()
        except StoreUnavailable:
            await asyncio.sleep(pause_s)
    return await ask()
