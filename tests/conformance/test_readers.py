"""Queries that share a transaction: each is answered for itself, from what was committed before."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from sqlalchemy import Pool, event

from hansard_server.domain.errors import AgentNotFound, StoreUnavailable
from hansard_server.repository.api import ReadTx
from hansard_server.repository.sql import jobs, readers
from hansard_server.repository.sql.reads import SqlReadTx
from hansard_server.repository.sql.store import SqlStore
from tests.support.records import AGENT, TENANT, with_session

PATIENCE_S = 30


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[SqlStore]:
    store = await SqlStore.open(store_url)
    yield store
    await store.close()


class Slow:
    """A query that lasts until it is told to go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, _tx: ReadTx) -> str:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return "slow"


def find(key: str) -> Callable[[ReadTx], str]:
    return lambda tx: tx.get_agent(TENANT, key).uid


async def test_nobody_waits_behind_a_slow_query(store: SqlStore) -> None:
    await with_session(store)
    slow = [Slow(), Slow()]
    async with asyncio.timeout(PATIENCE_S):
        # Before, behind and between slow ones, all submitted in one round.
        queries = (find(AGENT.key), slow[0], find(AGENT.key), slow[1], find(AGENT.key))
        waiting = [asyncio.ensure_future(store.read(query)) for query in queries]
        quick = [waiting[0], waiting[2], waiting[4]]
        assert await asyncio.gather(*quick) == [AGENT.uid] * 3
        for query in slow:
            query.go_on.set()
        assert await asyncio.gather(*waiting[1::2]) == ["slow"] * 2


@pytest.mark.parametrize("database", ["sqlite"])
async def test_one_reader_of_sqlite_answers_what_is_quick(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_STUCK_S", PATIENCE_S)

    def name(_tx: ReadTx) -> str:
        time.sleep(0.001)
        return threading.current_thread().name

    names = await asyncio.gather(*(store.read(name) for _ in range(100)))

    assert len(set(names)) == 1


async def test_a_reader_keeps_its_connection(store: SqlStore) -> None:
    def pool(tx: ReadTx) -> Pool:
        assert isinstance(tx, SqlReadTx)
        return tx.connection.engine.pool

    taken: list[str] = []
    event.listen(
        await store.read(pool),
        "checkout",
        lambda *_: taken.append(threading.current_thread().name),
    )
    # One reader may be at the end of its transaction, and another help.
    readers_ = {await store.read(lambda _: threading.current_thread().name) for _ in range(20)}

    assert set(taken) <= readers_
    assert len(taken) == len(set(taken))


async def test_query_that_fails_harms_no_other(store: SqlStore) -> None:
    await with_session(store)

    def break_(_tx: ReadTx) -> str:
        raise ValueError

    queries = (find(AGENT.key), find("nobody"), break_) * 20
    outcomes = await asyncio.gather(*map(store.read, queries), return_exceptions=True)
    kinds = [outcome if isinstance(outcome, str) else type(outcome) for outcome in outcomes]
    assert kinds == [AGENT.uid, AgentNotFound, ValueError] * 20


async def test_read_sees_what_was_committed_before(store: SqlStore) -> None:
    await with_session(store)
    many = 40

    async def write_and_read(number: int) -> None:
        key = f"{AGENT.key}-{number}"
        agent = replace(AGENT, key=key, uid=f"uid-{number}")
        await store.write(lambda tx: tx.insert_agent(agent, None))
        assert await store.read(find(key)) == f"uid-{number}"

    noise = [asyncio.create_task(_read_all_the_time(store)) for _ in range(8)]
    try:
        await asyncio.gather(*(write_and_read(number) for number in range(many)))
    finally:
        for task in noise:
            task.cancel()
        await asyncio.gather(*noise, return_exceptions=True)


async def test_caller_that_goes_away_leaves_the_others(store: SqlStore) -> None:
    await with_session(store)
    slow = Slow()
    first = asyncio.create_task(store.read(slow))
    await asyncio.to_thread(slow.begun.wait, PATIENCE_S)
    behind = [asyncio.create_task(store.read(find(AGENT.key))) for _ in range(20)]
    await asyncio.sleep(0)
    for task in (first, *behind[::2]):
        task.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*behind[1::2]) == [AGENT.uid] * 10
    slow.go_on.set()


async def test_what_takes_too_long_is_given_up(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_session(store)
    monkeypatch.setattr(jobs, "ANSWER_TIMEOUT_S", 0.1)
    slow = [Slow() for _ in range(8)]
    asked = []
    stuck = [asyncio.create_task(store.read(query)) for query in slow]
    late = asyncio.create_task(store.read(lambda _: asked.append("late")))
    for task in (*stuck, late):
        with pytest.raises(StoreUnavailable):
            await task
    for query in slow:
        query.go_on.set()
    monkeypatch.undo()
    assert await store.read(find(AGENT.key)) == AGENT.uid
    # Nobody waited for it any more when there was a reader.
    assert asked == []


async def _read_all_the_time(store: SqlStore) -> None:
    while True:
        await store.read(find(AGENT.key))
