"""Deletes sessions whose time has run out, and removes the rows of what was deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from hansard_server.domain.clock import MICROSECONDS_PER_SECOND, Clock, now_us
from hansard_server.repository.api import Store

_log = structlog.get_logger("hansard.sweeper")
_SESSIONS_AT_ONCE = 100
_ROWS_AT_ONCE = 500


class Sweeper:
    """Works in small pieces, each a transaction of its own, so that nobody waits for it long.

    Replicas may sweep at the same time: each piece looks again, under the session's lock.
    """

    def __init__(
        self, store: Store, *, interval_s: float, keep_deleted_s: float, clock: Clock = now_us
    ) -> None:
        """Request ids of what was deleted are remembered for `keep_deleted_s`."""
        self._store = store
        self._interval_s = interval_s
        self._keep_rows_us = round(keep_deleted_s * MICROSECONDS_PER_SECOND)
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Have the next round begin at once: something was deleted, and others wait for its end."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._woken.wait()
            self._woken.clear()
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001 - logged with its traceback
                # The next round tries again; the health service tells whether the store works.
                _log.exception("sweeping failed")

    async def sweep(self) -> int:
        """Delete what has expired and remove what was deleted; return how many sessions expired."""
        expired = 0
        while True:
            now = self._clock()
            found = await self._find(now)
            deleted = 0
            for tenant, uid in found:
                deleted += await self._delete(tenant, uid, now)
            expired += deleted
            # Rows that can't be deleted now must not keep this round going for ever.
            if len(found) < _SESSIONS_AT_ONCE or not deleted:
                break
        await self._purge()
        if expired:
            _log.info("sessions expired", count=expired)
        return expired

    async def _find(self, now_us: int) -> Sequence[tuple[str, str]]:
        return await self._store.read(
            lambda tx: tx.find_expired_sessions(now_us, _SESSIONS_AT_ONCE)
        )

    async def _delete(self, tenant: str, uid: str, now_us: int) -> bool:
        return await self._store.write(lambda tx: tx.delete_expired_session(tenant, uid, now_us))

    async def _purge(self) -> None:
        while await self._store.write(
            lambda tx: tx.purge_deleted(
                self._clock(), keep_rows_us=self._keep_rows_us, max_rows=_ROWS_AT_ONCE
            )
        ):
            pass
