"""The keeper: renews the leases of the turns that run here, and finds what nobody works on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from hansard_server.domain.errors import StoreUnavailable
from hansard_server.repository.api import Store
from hansard_server.repository.commands import StartNext
from hansard_server.turns.engine import TurnEngine

_log = structlog.get_logger("hansard.turns")

RECOVERY_INTERVAL_S = 5.0
RECOVERY_PAUSE_S = 0.1
_RECOVERY_BATCH = 100


class TurnKeeper:
    """Keeps an engine's turns, and gives it those that have lost their owner.

    `alone`: no other process uses the store, so that every running turn that is not the engine's
    has lost its owner.
    """

    def __init__(self, store: Store, engine: TurnEngine, *, lease_s: float, alone: bool) -> None:
        """Make a keeper; `open` sets it to work."""
        self._store = store
        self._engine = engine
        self._lease_s = lease_s
        self._alone = alone
        self._unknown: set[str] = set()
        self._free = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take over what an earlier process left unfinished; begin to keep leases and queues."""
        await self.recover(at_start=True)
        self._task = asyncio.create_task(self._keep(), name="turn-keeper")

    async def close(self) -> None:
        """Stop keeping."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def look(self) -> None:
        """Look soon for what nobody serves: another process has given something up."""
        self._free.set()

    async def recover(self, *, at_start: bool = False) -> None:
        """Take over turns that have lost their owner, and start what waits where nothing runs."""
        expired_only = not (at_start and self._alone)
        found: Sequence[object] = [None] * _RECOVERY_BATCH
        while len(found) == _RECOVERY_BATCH:
            found = turns = await self._store.read(
                lambda tx: tx.find_unfinished_turns(_RECOVERY_BATCH, expired_only=expired_only)
            )
            abandoned = [turn for turn in turns if turn.id not in self._engine.turn_ids]
            await asyncio.gather(
                *(self._engine.take_over(turn, force=not expired_only) for turn in abandoned)
            )
            if not abandoned:
                break
        found = expired = await self._store.read(lambda tx: tx.find_expired_calls(_RECOVERY_BATCH))
        # What there is more of comes in the next round: a clock that is behind must not hold this.
        await asyncio.gather(*(self._engine.expire(*turn) for turn in expired))
        found = [None] * _RECOVERY_BATCH
        while len(found) == _RECOVERY_BATCH:
            found = queues = await self._store.read(lambda tx: tx.find_idle_queues(_RECOVERY_BATCH))
            await asyncio.gather(*(self._start_next(*session) for session in queues))

    async def _keep(self) -> None:
        """Renew the leases, and look for turns and queues that nobody serves."""
        loop = asyncio.get_running_loop()
        interval_s = min(self._lease_s / 3, RECOVERY_INTERVAL_S)
        renew_at = loop.time() + interval_s
        recover_at = renew_at
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(renew_at, recover_at)):
                    await self._free.wait()
            self._free.clear()
            recover_at = loop.time() + interval_s
            try:
                if loop.time() >= renew_at:
                    renew_at = recover_at
                    await self._renew_leases()
                    await self._adopt()
                if not self._engine.draining:
                    await self.recover()
                    recover_at = loop.time() + await self._next_recovery_s(interval_s)
            except StoreUnavailable:
                _log.warning("turn_keeper_waits", reason=StoreUnavailable.reason)
            except Exception:  # noqa: BLE001 - logged with its traceback; the next round tries again
                _log.exception("turn_keeper_failed")

    async def _renew_leases(self) -> None:
        # Of the turns that do run here, and no others: a lease that this process was given without
        # hearing of it must run out.
        keys = self._engine.leased
        if keys:
            lease_s = self._lease_s
            await self._store.write(lambda tx: tx.renew_leases(self._engine.owner, keys, lease_s))

    async def _next_recovery_s(self, interval_s: float) -> float:
        """Return when to look again: as soon as the lease of another process may have run out."""
        if self._alone:
            return interval_s
        owner = self._engine.owner
        ends_s = await self._store.read(lambda tx: tx.next_lease_end_s(owner))
        if ends_s is None:
            return interval_s
        return min(max(ends_s, RECOVERY_PAUSE_S), interval_s)

    async def _adopt(self) -> None:
        """Take up turns that the store gave this process without its hearing of it.

        Only what is found twice: a turn that was just given may be about to start.
        """
        found = await self._store.read(
            lambda tx: tx.find_owned_turns(self._engine.owner, _RECOVERY_BATCH)
        )
        unknown = {turn.id: turn for turn in found if turn.id not in self._engine.turn_ids}
        again = [turn for turn_id, turn in unknown.items() if turn_id in self._unknown]
        self._unknown = set(unknown)
        if not self._engine.draining:
            await asyncio.gather(*(self._engine.take_over(turn, force=True) for turn in again))

    async def _start_next(self, tenant: str, session_uid: str) -> None:
        next_turn = await self._store.submit(
            StartNext(tenant=tenant, session_uid=session_uid, lease=self._engine.lease)
        )
        if next_turn is not None:
            self._engine.start(next_turn)
