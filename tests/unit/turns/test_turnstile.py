"""A thousand readers are woken: whoever else uses the loop has its turn between a few of them."""

from __future__ import annotations

import asyncio

from hansard_server.turns.feeds import SessionFeed
from hansard_server.turns.turnstile import READERS_A_ROUND, READERS_BETWEEN_PAUSES, Turnstile

READERS = 1_000
STEPS = 10
"""So often a call comes back to the loop, more or less."""


async def test_others_wait_for_a_few_readers_and_not_for_all() -> None:
    feed = SessionFeed()
    served = 0

    async def read() -> None:
        nonlocal served
        await feed.wait(feed.version)
        served += 1

    readers = [asyncio.create_task(read()) for _ in range(READERS)]
    await asyncio.sleep(0)
    feed.wake()
    for _ in range(STEPS):
        await asyncio.sleep(0)
    assert 0 < served <= READERS_A_ROUND * (STEPS + 1)
    await asyncio.gather(*readers)
    assert served == READERS


async def test_readers_with_more_to_read_pass_one_by_one() -> None:
    turnstile = Turnstile(readers_a_round=2)
    order: list[str] = []

    async def read(name: str) -> None:
        for _ in range(3):
            await turnstile.enter()
            order.append(name)

    await asyncio.gather(*(read(name) for name in "abc"))
    assert sorted(order) == list("aaabbbccc")
    # Nobody who waits is passed over.
    assert order.index("c") < 6


async def test_readers_that_have_left_take_nobodys_place() -> None:
    feed = SessionFeed()
    readers = [asyncio.create_task(feed.wait(0)) for _ in range(READERS_A_ROUND * 3)]
    await asyncio.sleep(0)
    for reader in readers[:-1]:
        reader.cancel()
    await asyncio.wait(readers[:-1])
    feed.wake()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert readers[-1].done()


async def test_reader_that_leaves_while_it_is_let_through_loses_no_place() -> None:
    turnstile = Turnstile(readers_a_round=1)
    await turnstile.enter()
    first, second = (asyncio.create_task(turnstile.enter()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(10):
        await second


async def test_pauses_for_whoever_waits_for_an_answer() -> None:
    loop = asyncio.get_running_loop()
    hurried = True
    turnstile = Turnstile(hurried=lambda: hurried)
    waiters = [loop.create_future() for _ in range(4 * READERS_BETWEEN_PAUSES)]
    turnstile.admit(waiters)
    for _ in range(READERS_BETWEEN_PAUSES):
        await asyncio.sleep(0)
    passed = sum(waiter.done() for waiter in waiters)
    assert READERS_BETWEEN_PAUSES <= passed < len(waiters)
    hurried = False
    await asyncio.gather(*waiters)
