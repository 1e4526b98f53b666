"""The sweep: artifacts whose time has run out, and bytes that nobody refers to, are removed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog

from hansard_server.artifacts.blobs import Blobs, StoredObject
from hansard_server.artifacts.upload import UPLOAD_MAX_S
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND, Clock, now_us
from hansard_server.domain.errors import ArtifactNotFound
from hansard_server.domain.values import dataclass
from hansard_server.failpoints import hit
from hansard_server.repository.api import ReadTx, Store, WriteTx
from hansard_server.repository.blobs import BlobName, BlobUse

GRACE_S = 3_600.0
_ARTIFACTS_AT_ONCE = 100
_BLOBS_AT_ONCE = 500
_COMMIT_TIME = 1.1
"""Of the longest upload: after so long its bytes have become an artifact's, or never will."""
_LISTINGS_PER_GRACE = 2

_log = structlog.get_logger("hansard.sweep")


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has removed: artifacts, blobs, unfinished files; and found without a row."""

    expired: int = 0
    blobs: int = 0
    adopted: int = 0
    leftovers: int = 0


class ArtifactSweep:
    """Removes artifacts that have expired, and bytes to which no artifact refers.

    Every blob has a row, which says whether it is marked. A sweep marks those that no artifact
    refers to, and removes those that were marked `grace_s` before. Twice in this time it lists the
    object store: bytes without a row, which somebody was killed before writing, get one, marked,
    when they are older than any upload. Several processes may sweep at a time: what they know is in
    the rows.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        *,
        interval_s: float,
        grace_s: float = GRACE_S,
        upload_max_s: float = UPLOAD_MAX_S,
        clock: Clock = now_us,
    ) -> None:
        """Make one for the process. No upload takes longer than `upload_max_s`."""
        self._store = store
        self._blobs = blobs
        self._interval_s = interval_s
        self._grace_us = round(grace_s * MICROSECONDS_PER_SECOND)
        self._upload_max_us = round(upload_max_s * _COMMIT_TIME * MICROSECONDS_PER_SECOND)
        self._clock = clock
        self._next_listing_us = 0

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001 - logged with its traceback; the next round tries again
                _log.exception("sweeping artifacts failed")

    async def sweep(self) -> Swept:
        """Do one round; return what was done. Raises StoreUnavailable."""
        expired = await self._delete_expired()
        removed = await self._sweep_blobs()
        adopted = leftovers = 0
        if self._clock() >= self._next_listing_us:
            adopted = await self._adopt_unknown()
            leftovers = await self._blobs.remove_leftovers(
                self._upload_max_us / MICROSECONDS_PER_SECOND
            )
            self._next_listing_us = self._clock() + self._grace_us // _LISTINGS_PER_GRACE
        swept = Swept(expired, removed, adopted, leftovers)
        if swept != Swept():
            _log.info(
                "artifacts swept",
                expired=expired,
                blobs=removed,
                adopted=adopted,
                leftovers=leftovers,
            )
        return swept

    # Blobs ----------------------------------------------------------------------------------------

    async def _sweep_blobs(self) -> int:
        removed = 0
        after: BlobName = ("", "")
        while True:
            found = await self._store.read(partial(_scan, after))
            due = [use.name for use in found if self._is_to_change(use)]
            if due:
                removed += await self._settle(due)
            if len(found) < _BLOBS_AT_ONCE:
                return removed
            after = found[-1].name

    def _is_to_change(self, use: BlobUse) -> bool:
        since_us = use.unreferenced_since_us
        if use.referenced:
            return since_us is not None
        return since_us is None or since_us <= self._clock() - self._grace_us

    async def _settle(self, names: Sequence[BlobName]) -> int:
        now = self._clock()

        def decide(tx: WriteTx) -> Sequence[BlobName]:
            return tx.settle_blobs(names, now, before_us=now - self._grace_us)

        removed = await self._store.write(decide)
        hit("blobs.settled")
        by_tenant: dict[str, list[str]] = {}
        for tenant, key in removed:
            by_tenant.setdefault(tenant, []).append(key)
        for tenant, keys in by_tenant.items():
            # If this fails, bytes without a row are left, which a listing finds.
            await self._blobs.delete(tenant, keys)
        return len(removed)

    async def _adopt_unknown(self) -> int:
        adopted = 0
        for tenant in await self._blobs.tenants():
            async for batch in self._blobs.scan(tenant):
                adopted += await self._adopt(tenant, batch)
        return adopted

    async def _adopt(self, tenant: str, batch: Sequence[StoredObject]) -> int:
        now = self._clock()
        before_s = (now - self._upload_max_us) / MICROSECONDS_PER_SECOND
        old = [item.key for item in batch if item.modified_at.timestamp() <= before_s]
        unknown = await self._store.read(lambda tx: tx.find_unknown_blobs(tenant, old))
        if unknown:
            await self._store.write(lambda tx: tx.adopt_blobs(tenant, sorted(unknown), now))
        return len(unknown)

    # Artifacts ------------------------------------------------------------------------------------

    async def _delete_expired(self) -> int:
        deleted = 0
        while True:
            found = await self._store.read(partial(_find_expired, self._clock()))
            of_these = 0
            for tenant, session_uid, artifact_id in found:
                of_these += await self._delete(tenant, session_uid, artifact_id)
            deleted += of_these
            # Those of a deleted session are the purge's, and must not keep this going for ever.
            if len(found) < _ARTIFACTS_AT_ONCE or not of_these:
                return deleted

    async def _delete(self, tenant: str, session_uid: str, artifact_id: str) -> bool:
        def decide(tx: WriteTx) -> None:
            tx.delete_artifact(tenant, session_uid, artifact_id)

        try:
            await self._store.write(decide)
        except ArtifactNotFound:
            return False  # somebody was faster
        return True


def _scan(after: BlobName, tx: ReadTx) -> Sequence[BlobUse]:
    return tx.scan_blobs(after, _BLOBS_AT_ONCE)


def _find_expired(now_us: int, tx: ReadTx) -> Sequence[tuple[str, str, str]]:
    return tx.find_expired_artifacts(now_us, _ARTIFACTS_AT_ONCE)
