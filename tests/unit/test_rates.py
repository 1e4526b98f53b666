"""Buckets of permits: never more than their rate, and waits that are true."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard_server.access import rates
from hansard_server.access.rates import LocalPermits, RateLimiter
from hansard_server.domain.errors import RateLimitExceeded, StoreUnavailable
from hansard_server.domain.rates import Lease, Rate, lease

SECOND_US = 1_000_000


@pytest.mark.parametrize(
    ("per_s", "burst", "interval_us"),
    [
        *((100, 100, 10_000), (1, 1, 1_000_000), (0.2, 1, 5_000_000)),
        *((3, 3, 333_334), (2.5, 3, 400_000)),
    ],
)
def test_full_bucket_gives_a_second_and_then_one_at_a_time(
    per_s: float, burst: int, interval_us: int
) -> None:
    rate = Rate(per_s)
    assert (rate.burst, rate.interval_us) == (burst, interval_us)
    all_of_it = lease(rate, 0, SECOND_US, burst + 1)
    assert all_of_it.permits == burst
    assert all_of_it.wait_us == interval_us
    now = SECOND_US + interval_us
    assert lease(rate, all_of_it.full_at_us, now - 1, 1).permits == 0
    assert lease(rate, all_of_it.full_at_us, now, 2).permits == 1


@given(
    per_s=st.floats(0.01, 5_000),
    steps=st.lists(st.tuples(st.integers(0, 3 * SECOND_US), st.integers(0, 300)), max_size=40),
)
def test_never_more_than_the_rate_and_every_wait_is_true(
    per_s: float, steps: list[tuple[int, int]]
) -> None:
    rate, now, full_at = Rate(per_s), SECOND_US, 0
    given_in_all = 0
    for pause_us, wanted in steps:
        now += pause_us
        leased = lease(rate, full_at, now, wanted)
        assert 0 <= leased.permits <= wanted
        given_in_all += leased.permits
        full_at = leased.full_at_us
        assert lease(rate, full_at, now + leased.wait_us, 1).permits == 1
        if leased.permits < wanted:
            assert lease(rate, full_at, now + leased.wait_us - 1, 1).permits == 0
    assert given_in_all <= rate.burst + (now - SECOND_US) * per_s / SECOND_US + 1


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is leased be used for as long as the machine takes."""
    monkeypatch.setattr(rates, "LEASE_S", 3_600.0)


class Source:
    """LocalPermits that can be held up, and counts."""

    def __init__(self) -> None:
        self.now_us = SECOND_US
        self.asked: list[int] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.broken = False
        self._permits = LocalPermits(lambda: self.now_us)

    async def lease(self, tenant: str, subject: str, rate: Rate, wanted: int) -> Lease:
        self.asked.append(wanted)
        await self.go_on.wait()
        if self.broken:
            raise StoreUnavailable("no answer")
        return await self._permits.lease(tenant, subject, rate, wanted)


async def take(limiter: RateLimiter, rate: Rate, subject: str = "s") -> float | None:
    """Take a permit; None, or how long to wait."""
    try:
        await limiter.take("t", subject, rate, words="too many")
    except RateLimitExceeded as error:
        return error.retry_after_s
    return None


async def test_boundary_and_one_past_it() -> None:
    limiter, rate = RateLimiter(Source()), Rate(100)
    assert [await take(limiter, rate) for _ in range(100)] == [None] * 100
    wait_s = await take(limiter, rate)
    assert wait_s is not None
    assert 0 < wait_s <= 0.01
    assert await take(limiter, rate, "another") is None


async def test_few_questions_serve_many_calls() -> None:
    source, rate = Source(), Rate(1_000)
    limiter = RateLimiter(source)
    for _ in range(500):
        assert await take(limiter, rate) is None
        await asyncio.sleep(0)
    # Batches of 50, the next one fetched before the last is used up.
    assert len(source.asked) <= 12
    assert set(source.asked) == {50}


async def test_calls_that_come_together_ask_once_and_get_what_there_is() -> None:
    source, rate = Source(), Rate(20)
    limiter = RateLimiter(source)
    source.go_on.clear()
    taking = [asyncio.ensure_future(take(limiter, rate)) for _ in range(30)]
    await asyncio.sleep(0)
    source.go_on.set()
    waits = await asyncio.gather(*taking)
    assert waits.count(None) == 20
    assert len(source.asked) <= 3
    # Each of the others was told the time of a permit of its own, 50 ms from one to the next.
    told = sorted(wait for wait in waits if wait is not None)
    assert 0.3 < told[-1] - told[0] <= 0.45


async def test_refused_calls_ask_nobody() -> None:
    source, rate = Source(), Rate(0.01)
    limiter = RateLimiter(source)
    assert await take(limiter, rate) is None
    assert await take(limiter, rate) is not None
    asked = len(source.asked)
    for _ in range(100):
        assert await take(limiter, rate) is not None
    assert len(source.asked) == asked


async def test_waiting_as_told_lets_in() -> None:
    limiter, rate = RateLimiter(LocalPermits()), Rate(5)
    while (wait_s := await take(limiter, rate)) is None:
        pass
    assert 0 < wait_s <= 0.2
    await asyncio.sleep(wait_s)
    assert await take(limiter, rate) is None


async def test_permits_that_nobody_used_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "LEASE_S", 0.0)
    source, rate = Source(), Rate(100)
    limiter = RateLimiter(source)
    for _ in range(3):
        await take(limiter, rate)
        await asyncio.sleep(0.001)
    # Nothing is left of a batch when the next call comes.
    assert len(source.asked) >= 3


async def test_source_in_trouble_is_told_to_who_waits_and_to_no_other() -> None:
    source, rate = Source(), Rate(100)
    limiter = RateLimiter(source)
    source.broken = True
    with pytest.raises(StoreUnavailable):
        await take(limiter, rate)
    source.broken = False
    assert await take(limiter, rate) is None
    source.broken = True
    # The batch goes on; fetching the next one ahead of time fails unseen.
    assert [await take(limiter, rate) for _ in range(4)] == [None] * 4
    with pytest.raises(StoreUnavailable):
        await take(limiter, rate)


async def test_a_process_remembers_so_many_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "BUCKETS_MAX", 3)
    permits = LocalPermits()
    limiter = RateLimiter(permits)
    for number in range(10):
        assert await take(limiter, Rate(0.01), f"s{number}") is None
    assert len(limiter._buckets) == 3
    assert len(permits._full_at_us) == 3
    assert await take(limiter, Rate(0.01), "s9") is not None
