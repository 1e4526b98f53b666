"""The keys in memory: how often the store is asked, and what is believed for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, cast

import pytest

from hansard_server.access import key_cache
from hansard_server.access.key_cache import KeyCache
from hansard_server.domain.access import ApiKeyRecord, Grant, Role
from hansard_server.domain.errors import StoreUnavailable, Unauthorized
from hansard_server.repository.api import Store

KEY = ApiKeyRecord(
    tenant="t",
    id="key_1",
    name="Key",
    secret_sha256=b"",
    grants=(Grant(Role.ADMINISTRATOR),),
    created_at_us=0,
)
NOW_US = 1_000


class Keys:
    """A store of keys that counts what it is asked; `gate` holds its answers back."""

    def __init__(self, *keys: ApiKeyRecord) -> None:
        self.keys = {key.id: key for key in keys}
        self.asked: list[tuple[str, ...]] = []
        self.noted: dict[tuple[str, str], int] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.works = True

    async def read(self, query: Callable[[Any], Any]) -> Any:
        answer = query(self)
        await self.gate.wait()
        if not self.works:
            raise StoreUnavailable("no answer")
        return answer

    async def write(self, decide: Callable[[Any], Any]) -> Any:
        return decide(self)

    def find_api_keys(self, key_ids: Collection[str]) -> dict[str, ApiKeyRecord]:
        self.asked.append(tuple(key_ids))
        return {key_id: self.keys[key_id] for key_id in key_ids if key_id in self.keys}

    def note_api_key_use(self, used_at_us: dict[tuple[str, str], int]) -> None:
        self.noted |= used_at_us


class Time:
    """The monotonic clock, by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(key_cache, "time", time)
    return time


def cache_of(keys: Keys) -> KeyCache:
    return KeyCache(cast("Store", keys), ttl_s=5, clock=lambda: NOW_US)


async def test_store_is_asked_once_for_a_key_in_use(clock: Time) -> None:
    keys = Keys(KEY)
    cache = cache_of(keys)
    assert cache.recall(KEY.id) is None
    known = await cache.look_up(KEY.id)
    clock.now = 4.9
    assert cache.recall(KEY.id) is known
    assert keys.asked == [(KEY.id,)]
    clock.now = 5.0
    assert cache.recall(KEY.id) is None


async def test_many_unknown_keys_hold_one_reader_and_little_memory(
    clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "_UNKNOWN_MAX", 100)
    keys = Keys(KEY)
    keys.gate.clear()
    cache = cache_of(keys)
    ids = [f"key_x{n}" for n in range(1_000)]
    waiting = [asyncio.create_task(cache.look_up(key_id)) for key_id in (*ids, *ids, KEY.id)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # However many ask: one look-up at a time.
    assert len(keys.asked) == 1
    keys.gate.set()
    *refused, known = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, Unauthorized) for error in refused)
    assert not isinstance(known, BaseException)
    assert sum(map(len, keys.asked)) == 1_001
    assert max(map(len, keys.asked)) <= 256
    assert len(cache._unknown) == 100
    # Known not to be there: refused without asking.
    asked = len(keys.asked)
    with pytest.raises(Unauthorized):
        cache.recall(ids[-1])
    assert len(keys.asked) == asked


@pytest.mark.parametrize("field", ["revoked_at_us", "expires_at_us"])
async def test_key_that_is_not_valid_is_refused(clock: Time, field: str) -> None:
    cache = cache_of(Keys(replace(KEY, **{field: NOW_US})))
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await cache.look_up(KEY.id)


async def test_key_expires_while_it_is_known(clock: Time) -> None:
    now_us = NOW_US
    keys = Keys(replace(KEY, expires_at_us=NOW_US + 1))
    cache = KeyCache(cast("Store", keys), ttl_s=5, clock=lambda: now_us)
    await cache.look_up(KEY.id)
    assert cache.recall(KEY.id)
    now_us += 1
    with pytest.raises(Unauthorized):
        cache.recall(KEY.id)


async def test_what_is_revoked_here_stays_revoked_whatever_a_late_answer_says(clock: Time) -> None:
    keys = Keys(KEY)
    cache = cache_of(keys)
    keys.gate.clear()
    late = asyncio.create_task(cache.look_up(KEY.id))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert keys.asked
    cache.revoke(KEY.id)
    keys.gate.set()
    with pytest.raises(Unauthorized):
        await late
    with pytest.raises(Unauthorized):
        await cache.look_up(KEY.id)


async def test_store_that_does_not_answer_lets_nobody_in_for_longer(clock: Time) -> None:
    keys = Keys(KEY)
    cache = cache_of(keys)
    await cache.look_up(KEY.id)
    keys.works = False
    with pytest.raises(StoreUnavailable):
        await cache.look_up("key_2")
    assert cache.recall(KEY.id)
    clock.now = 6
    with pytest.raises(StoreUnavailable):
        await cache.look_up(KEY.id)


async def test_stream_ends_when_its_key_is_found_revoked(clock: Time) -> None:
    keys = Keys(KEY)
    cache = cache_of(keys)
    known = await cache.look_up(KEY.id)

    async def stream() -> None:
        async with asyncio.timeout(None) as scope:
            with cache.hold(known, scope):
                await asyncio.Event().wait()

    running = [asyncio.create_task(stream()) for _ in range(3)]
    await asyncio.sleep(0)
    await cache._reload([KEY.id])
    await asyncio.sleep(0)
    assert not any(task.done() for task in running)
    keys.keys[KEY.id] = replace(KEY, revoked_at_us=NOW_US)
    await cache._reload([KEY.id])
    async with asyncio.timeout(20):
        ended = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(error, TimeoutError) for error in ended)
    assert not known.streams


async def test_keys_that_rest_are_forgotten_and_their_last_use_is_written_down(
    clock: Time,
) -> None:
    keys = Keys(KEY)
    cache = cache_of(keys)
    known = await cache.look_up(KEY.id)
    cache.note(known)
    clock.now = 51
    cache._forget_unused()
    assert KEY.id in cache._known
    await cache.note_use()
    assert keys.noted == {("t", KEY.id): NOW_US}
    keys.noted.clear()
    await cache.note_use()
    assert keys.noted == {}
    cache._forget_unused()
    assert not cache._known


async def test_roles_follow_the_store(clock: Time) -> None:
    keys = Keys(KEY)
    cache = cache_of(keys)
    known = await cache.look_up(KEY.id)
    assert known.by_key.administrator
    keys.keys[KEY.id] = replace(KEY, grants=(Grant(Role.AGENT_USER, "uid", "a"),))
    await cache._reload([KEY.id])
    assert known.by_key.role_on("a") is Role.AGENT_USER
    assert known.by_token.by_token
    assert not known.by_token.administrator
