"""Several workers on one port: they come back, they stop together, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import TWENTY_DELTAS, Talk, check_turn, items, stored

WORKERS = 2


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Give a PostgreSQL database with the schema."""
    url = databases.migrated("postgresql")
    yield url
    check_store(url)
    databases.drop(url)


def serve(folder: Path, url: str, *more: str) -> Any:
    return serve_process(
        *("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", url),
        *("--workers", str(WORKERS), "--set", "drain_deadline_s=10", "--set", "lease_s=2"),
        *more,
    )


def workers_of(process: ServeProcess) -> set[int]:
    pid = process.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return {int(child) for child in children.split()}


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has waited for is no process any more.
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"


def until_gone(pids: set[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(is_there(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[p for p in pids if is_there(p)]}"
        time.sleep(0.02)


async def address_of(process: ServeProcess) -> str:
    return str((await asyncio.to_thread(process.wait_for, "workers_serving"))["address"])


async def test_workers_share_a_port_and_come_back(url: str, tmp_path: Path) -> None:
    server: Any = None
    with serve(tmp_path, url) as process:
        address = await address_of(process)
        first = workers_of(process)
        assert len(first) == WORKERS
        async with open_channel(address) as channel:
            await Talk(Running(server, channel)).begin(TWENTY_DELTAS)
        # Connections fall to either of them: a turn, its readers and its repeats meet nevertheless.
        for number in range(4):
            await asyncio.gather(*(_send(address, f"{number}") for _ in range(4)))
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(process.wait_for, "worker_ended")
        await asyncio.to_thread(process.wait_for, "serving")
        second = workers_of(process)
        assert len(second) == WORKERS
        assert first & second == first - {killed}
        await asyncio.gather(*(_send(address, "again") for _ in range(4)))
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
        until_gone(second, 1)


async def _send(address: str, request_id: str) -> None:
    server: Any = None
    async with open_channel(address) as channel:
        async with asyncio.timeout(60):
            responses = await Talk(Running(server, channel)).send("A", request_id=request_id)
        check_turn(responses)
        assert items(responses)[-1] == "turn_end"
        assert len(stored(responses)) == 3


async def test_workers_go_when_their_parent_is_killed(url: str, tmp_path: Path) -> None:
    with serve(tmp_path, url) as process:
        await address_of(process)
        workers = workers_of(process)
        process.send(signal.SIGKILL)
        await asyncio.to_thread(process.process.wait)
        await asyncio.to_thread(until_gone, workers, 15)


async def test_worker_that_hangs_is_killed_at_the_deadline(url: str, tmp_path: Path) -> None:
    with serve(tmp_path, url, "--set", "drain_deadline_s=1") as process:
        await address_of(process)
        workers = workers_of(process)
        os.kill(min(workers), signal.SIGSTOP)
        started = time.monotonic()
        process.send(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)
        # The deadline, and what a busy machine needs.
        assert time.monotonic() - started < 15
        until_gone(workers, 1)


def test_workers_are_refused_on_sqlite(tmp_path: Path) -> None:
    with serve(tmp_path, f"sqlite:///{tmp_path / 'hansard.db'}") as process:
        assert process.wait() == 2
        assert "workers: is 2, and a SQLite database is for one process" in process.log
        assert len(process.log.splitlines()) == 1


def test_workers_that_cannot_start_say_so_once(databases: Databases, tmp_path: Path) -> None:
    with serve(tmp_path, databases.empty("postgresql")) as process:
        assert process.wait() == 3
        assert process.log.count("hansard migrate") == 1
        assert "Traceback" not in process.log
