"""Two servers on one PostgreSQL, one of them killed at a time: nobody notices but by waiting.

The clients are those of `test_kill`: whatever they call, either server may answer. A turn whose
owner was killed is taken over as soon as its lease has run out.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select

from hansard_server.domain.records import TurnStatus
from hansard_server.repository.sql.engine import database_now_us
from hansard_server.repository.sql.tables import turns
from tests.robustness.test_kill import (
    LEASE_S,
    SESSIONS,
    World,
    check,
    finish,
    prepare,
    watch,
    work,
)
from tests.support.databases import Databases
from tests.support.server import ServeProcess, serve_process

OVERDUE_MAX_S = 5.0
"""A lease that ran out is taken in a fraction of a second; the rest is for a busy machine."""


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Give a PostgreSQL database with the schema."""
    url = databases.migrated("postgresql")
    yield url
    databases.drop(url)


class Replicas:
    """Two servers, one of which is always there."""

    def __init__(self, world: World, folder: Path, url: str, stack: ExitStack) -> None:
        self._world = world
        self._arguments = (
            *("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", url),
            *("--set", f"lease_s={LEASE_S}"),
        )
        self._stack = stack
        self.running: dict[str, ServeProcess] = {}

    async def start(self) -> None:
        process = self._stack.enter_context(serve_process(*self._arguments))
        address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
        self.running[address] = process
        self._world.live = list(self.running)

    async def kill_one(self) -> None:
        """Kill one in the middle of its work."""
        address = self._world.rng.choice(list(self.running))
        process = self.running.pop(address)
        process.send(signal.SIGKILL)
        self._world.live = list(self.running)
        await asyncio.to_thread(process.wait)


class Leases:
    """Looks for turns that nobody works on though their lease has run out."""

    def __init__(self, url: str) -> None:
        self.worst_s = 0.0
        self._engine = create_engine(url)
        self._worst = select(func.max(database_now_us() - turns.c.lease_until)).where(
            turns.c.status == int(TurnStatus.RUNNING)
        )

    async def run(self) -> None:
        while True:
            self.worst_s = max(self.worst_s, await asyncio.to_thread(self._overdue_s))
            await asyncio.sleep(0.05)

    def _overdue_s(self) -> float:
        with self._engine.connect() as connection:
            return int(connection.scalar(self._worst) or 0) / 1e6

    def close(self) -> None:
        self._engine.dispose()


async def run(url: str, folder: Path, rounds: int) -> None:
    seed = int(os.environ.get("HANSARD_SEED", time.time_ns() % 1_000_000))
    print(f"HANSARD_SEED={seed}")  # noqa: T201 - to replay it
    world = World(random.Random(seed))
    leases = Leases(url)
    with ExitStack() as stack:
        stack.callback(leases.close)
        replicas = Replicas(world, folder, url, stack)
        await asyncio.gather(replicas.start(), replicas.start())
        await prepare(world)
        world.up.set()
        looking = asyncio.create_task(leases.run())
        clients = [asyncio.create_task(work(world, client)) for client in range(6)]
        watchers = [asyncio.create_task(watch(world, f"s{n}")) for n in range(SESSIONS)]
        for _ in range(rounds):
            await asyncio.sleep(0.1 + world.rng.random())
            await replicas.kill_one()
            await replicas.start()
        world.stopping = True
        await finish(clients, watchers)
        looking.cancel()
        await check(world, url, folder)
        for process in replicas.running.values():
            process.send(signal.SIGTERM)
        for process in replicas.running.values():
            assert await asyncio.to_thread(process.wait) == 0
    print(f"rounds={rounds} turns={len(world.turns)} overdue_s={leases.worst_s:.2f}")  # noqa: T201
    assert leases.worst_s < OVERDUE_MAX_S, "a turn had no owner for longer than its lease"


async def test_one_of_two_killed_at_random_moments(url: str, tmp_path: Path) -> None:
    await run(url, tmp_path, rounds=3)


@pytest.mark.soak
async def test_one_of_two_killed_at_200_random_moments(url: str, tmp_path: Path) -> None:
    await run(url, tmp_path, rounds=200)
