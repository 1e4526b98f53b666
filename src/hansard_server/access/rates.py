"""Rates shared by all processes: each leases a few permits at a time, and gives them to calls
without asking anybody.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import field
from typing import Protocol

import structlog

from hansard_server.domain.clock import MICROSECONDS_PER_SECOND, Clock, now_us
from hansard_server.domain.errors import DomainError, RateLimitExceeded
from hansard_server.domain.rates import Lease, Rate, lease
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import Store

_log = structlog.get_logger("hansard.rates")

BATCH_S = 0.05
"""What a process leases at a time: a rate's permits of this time, and 1 at least."""
LEASE_S = 1.0
"""Permits that nobody has used for so long are given up: others may have needed them."""
_PROMISES_MAX_S = 5.0
_PROMISES_MIN = 8
"""Clients that are refused together are each told the time of another permit: so many, or those of
so long a time.
"""
_FORGET_INTERVAL_S = 60.0
BUCKETS_MAX = 10_000
"""A process remembers so many buckets, those used last."""


class PermitSource(Protocol):
    """Where permits come from."""

    async def lease(self, tenant: str, subject: str, rate: Rate, wanted: int) -> Lease:
        """Return up to `wanted` permits of the subject's bucket. Raises StoreUnavailable."""
        ...


class LocalPermits:
    """Buckets of this process alone: where no other serves the same database."""

    def __init__(self, clock: Clock = now_us) -> None:
        self._clock = clock
        self._full_at_us: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def lease(self, tenant: str, subject: str, rate: Rate, wanted: int) -> Lease:
        """Return up to `wanted` permits; see the Protocol."""
        key = (tenant, subject)
        leased = lease(rate, self._full_at_us.pop(key, 0), self._clock(), wanted)
        self._full_at_us[key] = leased.full_at_us
        if len(self._full_at_us) > BUCKETS_MAX:
            self._full_at_us.popitem(last=False)
        return leased


class StoredPermits:
    """Buckets in the database, by its clock: all processes that serve it share them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def lease(self, tenant: str, subject: str, rate: Rate, wanted: int) -> Lease:
        """Return up to `wanted` permits; see the Protocol."""
        return await self._store.write(lambda tx: tx.lease_permits(tenant, subject, rate, wanted))

    async def forget_full(self) -> None:
        """Remove again and again, until cancelled, what need not be remembered."""
        while True:
            await asyncio.sleep(_FORGET_INTERVAL_S)
            try:
                await self._store.write(lambda tx: tx.forget_full_buckets())
            except Exception:  # noqa: BLE001 - logged with its traceback
                _log.exception("forgetting full buckets failed")


@dataclass(slots=True)
class _Bucket:
    """What this process holds of a bucket. Times are the loop's, in seconds."""

    permits: int = 0
    expires_at: float = 0.0
    # Nothing is to be had before.
    dry_until: float = 0.0
    # The time that was told to whoever was refused last.
    promised_until: float = 0.0
    waiting: int = 0
    refill: asyncio.Task[None] | None = field(default=None, repr=False)


class RateLimiter:
    """Gives permits to calls: at once while some are held, else after one question to the source.

    While half of a batch is left the next one is fetched, so that calls need not wait for it.
    """

    def __init__(self, source: PermitSource) -> None:
        self._source = source
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()

    async def take(self, tenant: str, subject: str, rate: Rate, *, words: str) -> None:
        """Return when the call may go on.

        Raises RateLimitExceeded, which begins with `words` and says after what time to come again;
        StoreUnavailable.
        """
        key = (tenant, subject)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._remember(key)
        else:
            self._buckets.move_to_end(key)
        now = asyncio.get_running_loop().time()
        while bucket.permits == 0 or bucket.expires_at <= now:
            if now < bucket.dry_until:
                raise _refused(bucket, rate, now, words)
            await self._fetch(bucket, key, rate)
            now = asyncio.get_running_loop().time()
        bucket.permits -= 1
        batch = _batch(rate)
        if batch > 1 and bucket.permits <= batch // 2 and now >= bucket.dry_until:
            self._start_refill(bucket, key, rate, wanted=batch)

    def _remember(self, key: tuple[str, str]) -> _Bucket:
        bucket = self._buckets[key] = _Bucket()
        while len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return bucket

    async def _fetch(self, bucket: _Bucket, key: tuple[str, str], rate: Rate) -> None:
        bucket.waiting += 1
        try:
            # One question at a time, and not only for the call that happened to ask.
            refill = self._start_refill(bucket, key, rate, wanted=max(_batch(rate), bucket.waiting))
            await asyncio.shield(refill)
        finally:
            bucket.waiting -= 1

    def _start_refill(
        self, bucket: _Bucket, key: tuple[str, str], rate: Rate, *, wanted: int
    ) -> asyncio.Task[None]:
        if bucket.refill is None:
            bucket.refill = asyncio.create_task(self._refill(bucket, key, rate, wanted))
            bucket.refill.add_done_callback(_note_failure)
        return bucket.refill

    async def _refill(self, bucket: _Bucket, key: tuple[str, str], rate: Rate, wanted: int) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            leased = await self._source.lease(*key, rate, wanted)
        finally:
            bucket.refill = None
        if bucket.expires_at <= asked:
            bucket.permits = 0
        bucket.permits += leased.permits
        bucket.expires_at = loop.time() + LEASE_S
        if leased.permits < wanted:
            # Counted from the answer: whoever waits so long from now on does not come too early.
            bucket.dry_until = loop.time() + leased.wait_us / MICROSECONDS_PER_SECOND


def _batch(rate: Rate) -> int:
    return max(1, int(rate.per_s * BATCH_S))


def _refused(bucket: _Bucket, rate: Rate, now: float, words: str) -> RateLimitExceeded:
    # Each is told the time of a permit of its own.
    next_free = bucket.promised_until + rate.interval_us / MICROSECONDS_PER_SECOND
    ahead_s = max(_PROMISES_MAX_S, _PROMISES_MIN * rate.interval_us / MICROSECONDS_PER_SECOND)
    latest = bucket.dry_until + ahead_s
    bucket.promised_until = min(max(bucket.dry_until, next_free), latest)
    wait_s = bucket.promised_until - now
    return RateLimitExceeded(
        f"{words}: at most {rate.per_s:g} a second",
        # What travels has whole milliseconds.
        retry_after_s=math.ceil(wait_s * 1_000) / 1_000,
        metadata={"limit_per_s": f"{rate.per_s:g}"},
    )


def _note_failure(task: asyncio.Task[None]) -> None:
    # Who waits for the task hears of it too; a fetch ahead of time has nobody who waits.
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, DomainError):
        _log.error("leasing permits failed", exc_info=error)
