"""The sweep: artifacts whose time has run out, and bytes that no row refers to, are removed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from hansard_server.artifacts.blobs import Blobs, StoredObject
from hansard_server.artifacts.upload import UPLOAD_MAX_S
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND, Clock, now_us
from hansard_server.domain.errors import ArtifactNotFound
from hansard_server.repository.api import ReadTx, Store, WriteTx

GRACE_S = 2 * UPLOAD_MAX_S
_ARTIFACTS_AT_ONCE = 100
_MARKS_MAX = 200_000

_log = structlog.get_logger("hansard.sweep")


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has removed."""

    expired: int = 0
    blobs: int = 0
    leftovers: int = 0


class ArtifactSweep:
    """Removes bytes that a crash has left between their put and the commit, and those whose
    artifacts were deleted.

    Bytes go when two sweeps at least `grace_s` apart have found no row that refers to them: an
    upload may be about to commit, and a fork about to share them. Marks live in this process: after
    a restart the wait begins anew, which costs time and nothing else.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        *,
        interval_s: float,
        grace_s: float = GRACE_S,
        clock: Clock = now_us,
    ) -> None:
        """Make one for the process. `grace_s` must be longer than any upload."""
        self._store = store
        self._blobs = blobs
        self._interval_s = interval_s
        self._grace_us = round(grace_s * MICROSECONDS_PER_SECOND)
        self._grace_s = grace_s
        self._clock = clock
        self._marked_at: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001 - logged with its traceback; the next round tries again
                _log.exception("sweeping artifacts failed")

    async def sweep(self) -> Swept:
        """Do one round; return what was removed. Raises StoreUnavailable."""
        expired = await self._delete_expired()
        marked_before = self._marked_at
        self._marked_at = {}
        removed = 0
        for tenant in await self._blobs.tenants():
            async for batch in self._blobs.scan(tenant):
                removed += await self._sweep_batch(tenant, batch, marked_before)
        leftovers = await self._blobs.remove_leftovers(self._grace_s)
        swept = Swept(expired, removed, leftovers)
        if swept != Swept():
            _log.info("artifacts swept", expired=expired, blobs=removed, leftovers=leftovers)
        return swept

    async def _sweep_batch(
        self,
        tenant: str,
        batch: Sequence[StoredObject],
        marked_before: dict[tuple[str, str], int],
    ) -> int:
        keys = [item.key for item in batch]
        unreferenced = await self._store.read(lambda tx: tx.find_unreferenced_blobs(tenant, keys))
        now = self._clock()
        due = []
        for key in unreferenced:
            marked_at = marked_before.get((tenant, key), now)
            if now - marked_at >= self._grace_us:
                due.append(key)
            elif len(self._marked_at) < _MARKS_MAX:
                self._marked_at[tenant, key] = marked_at
        await self._blobs.delete(tenant, due)
        return len(due)

    async def _delete_expired(self) -> int:
        deleted = 0
        while True:
            found = await self._store.read(partial(_find_expired, self._clock()))
            for tenant, session_uid, artifact_id in found:
                deleted += await self._delete(tenant, session_uid, artifact_id)
            if len(found) < _ARTIFACTS_AT_ONCE:
                return deleted

    async def _delete(self, tenant: str, session_uid: str, artifact_id: str) -> bool:
        def decide(tx: WriteTx) -> None:
            tx.delete_artifact(tenant, session_uid, artifact_id)

        try:
            await self._store.write(decide)
        except ArtifactNotFound:
            return False  # somebody was faster
        return True


def _find_expired(now_us: int, tx: ReadTx) -> Sequence[tuple[str, str, str]]:
    return tx.find_expired_artifacts(now_us, _ARTIFACTS_AT_ONCE)
