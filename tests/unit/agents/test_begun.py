"""Begun: a coroutine that is run in two pieces does what it does in one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard_server.agents.begun import Begun

STEPS = st.lists(st.sampled_from(["pass", "sleep", "future", "guard", "fail"]), max_size=6)


class UnluckyError(Exception):
    """What a step may raise."""


async def work(steps: Sequence[str], seen: list[object]) -> int:
    """Do the steps; note what happens, and in which task."""
    for step in steps:
        seen.append((step, asyncio.current_task()))
        match step:
            case "sleep":
                await asyncio.sleep(0)
            case "future":
                future = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(future.set_result, None)
                await future
            case "guard":
                try:
                    async with asyncio.timeout(0.001):
                        await asyncio.Event().wait()
                except TimeoutError:
                    seen.append("late")
            case "fail":
                raise UnluckyError
    return len(steps)


async def outcome(waiting: Awaitable[object]) -> object:
    try:
        return await waiting
    except UnluckyError:
        return UnluckyError


async def in_two(steps: Sequence[str], seen: list[object]) -> object:
    begun = Begun(work(steps, seen))
    return begun.value if begun.done else await begun


@given(STEPS)
def test_it_comes_to_the_same(steps: Sequence[str]) -> None:
    async def both() -> None:
        plain: list[object] = []
        fast: list[object] = []
        assert await outcome(work(steps, plain)) == await outcome(in_two(steps, fast))
        assert fast == plain

    asyncio.run(both())


@given(STEPS)
def test_it_has_ended_when_nothing_waits(steps: Sequence[str]) -> None:
    async def begin() -> None:
        seen: list[object] = []
        waits = next((step for step in steps if step != "pass"), "pass")
        if waits == "fail":
            with pytest.raises(UnluckyError):
                Begun(work(steps, seen))
            return
        begun = Begun(work(steps, seen))
        assert begun.done is (waits == "pass")
        begun.close()

    asyncio.run(begin())


@pytest.mark.parametrize("where", ["first", "later"])
async def test_it_is_cancelled_where_it_waits(where: str) -> None:
    seen: list[Any] = []

    async def wait() -> None:
        try:
            if where == "later":
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def run() -> None:
        await Begun(wait())

    task = asyncio.create_task(run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


def test_an_error_may_come_before_it_goes_on() -> None:
    async def work_on() -> str:
        try:
            await Waiting("first")
        except UnluckyError:
            await Waiting("second")
        return "done"

    begun = Begun(work_on())
    assert begun.throw(UnluckyError()) == "second"
    with pytest.raises(StopIteration, match="done"):
        begun.send(None)


class Waiting:
    """Something to await that says what it waits for."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __await__(self) -> Generator[str, None, None]:
        yield self._what
