"""Buckets in a database: shared by all that serve it."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import Engine, func, select

from hansard_server.access.rates import StoredPermits
from hansard_server.domain.rates import Rate
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.tables import buckets
from tests.support.records import TENANT

SLOW = Rate(0.01)


async def test_boundary_and_one_past_it(store: SqlStore) -> None:
    permits = StoredPermits(store)
    assert (await permits.lease(TENANT, "a", SLOW, 5)).permits == 1
    refused = await permits.lease(TENANT, "a", SLOW, 5)
    assert refused.permits == 0
    assert 0 < refused.wait_us <= SLOW.interval_us
    # Of each tenant and subject its own.
    assert (await permits.lease(TENANT, "b", SLOW, 5)).permits == 1
    assert (await permits.lease("another", "a", SLOW, 5)).permits == 1


async def test_many_at_once_get_no_more_than_there_is(store: SqlStore) -> None:
    permits, rate = StoredPermits(store), Rate(40)
    started = time.monotonic()
    leases = await asyncio.gather(*(permits.lease(TENANT, "a", rate, 3) for _ in range(30)))
    elapsed_s = time.monotonic() - started
    in_all = sum(lease.permits for lease in leases)
    assert rate.burst <= in_all <= rate.burst + rate.per_s * elapsed_s + 1


async def test_full_buckets_are_forgotten_and_others_are_not(
    store: SqlStore, engine: Engine
) -> None:
    permits = StoredPermits(store)
    await permits.lease(TENANT, "slow", SLOW, 1)
    await permits.lease(TENANT, "fast", Rate(100_000), 1)
    await asyncio.sleep(0.001)
    await store.write(lambda tx: tx.forget_full_buckets())
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(buckets)).scalar_one() == 1
    assert (await permits.lease(TENANT, "slow", SLOW, 1)).permits == 0
    assert (await permits.lease(TENANT, "fast", Rate(100_000), 1)).permits == 1
