"""Clients that connect, begin a call, and go away, again and again: nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import artifact_service_pb2
from tests.support.measured import MODULE, POOL_MAX, is_back, settled
from tests.support.server import Running, open_channel, serve_process
from tests.support.talk import TWENTY_DELTAS, Talk

MIB = 1024 * 1024
MEMORY_GROWS_LESS_THAN_BYTES = 24 * MIB
"""SQLite's page caches and the object store's threads take some of it, once: 2,000 rounds moved it
by 7 MiB, and 4,800 of one kind no further.
"""
KINDS = ("watch", "send", "upload", "download")
FILE_BYTES = 3 * MIB


def calls_of(talk: Talk, artifact_id: str) -> dict[str, Callable[[], Any]]:
    """Return one call of each kind."""
    part = artifact_service_pb2.UploadArtifactsRequest

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield part(start=artifact_service_pb2.UploadStart(**talk.keys))
        yield part(header=artifact_service_pb2.UploadHeader(filename="a.bin"))
        while True:  # it never ends by itself
            yield part(chunk=bytes(100_000))
            await asyncio.sleep(0.005)

    return {
        "watch": lambda: talk.watch(include_deltas=True),
        "send": lambda: talk.stream("Hello?"),
        "upload": lambda: talk.server.artifacts.UploadArtifacts(parts()),
        "download": lambda: talk.server.artifacts.DownloadArtifact(
            artifact_service_pb2.DownloadArtifactRequest(artifact_id=artifact_id, **talk.keys)
        ),
    }


async def one_round(address: str, artifact_id: str, kind: str, rng: random.Random) -> None:
    """Connect, begin a call, wait for its first message or a moment, and go away."""
    server: Any = None
    async with open_channel(address) as channel:
        call = calls_of(Talk(Running(server, channel)), artifact_id)[kind]()
        waiting = asyncio.ensure_future(_first(call, kind))
        await asyncio.wait([waiting], timeout=rng.choice([0.0, 0.01, 0.05]))
        if rng.random() < 0.8:
            call.cancel()
            await asyncio.wait([waiting])
    waiting.cancel()
    await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()


async def _first(call: Any, kind: str) -> Any:
    return await (call if kind == "upload" else anext(aiter(call), None))


async def prepare(address: str) -> str:
    """Make agent, session and a file; return the file's id."""
    server: Any = None
    part = artifact_service_pb2.UploadArtifactsRequest
    async with open_channel(address) as channel:
        talk = await Talk(Running(server, channel)).begin(TWENTY_DELTAS)

        async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
            yield part(start=artifact_service_pb2.UploadStart(**talk.keys))
            yield part(header=artifact_service_pb2.UploadHeader(filename="b.bin"))
            for _ in range(FILE_BYTES // MIB):
                yield part(chunk=bytes(MIB))

        event = await talk.server.artifacts.UploadArtifacts(parts())
    return event.artifact_upload.artifacts[0].artifact_id


async def run(store_url: str, folder: Path, *, warm_up: int, rounds: int) -> None:
    rng = random.Random(int(os.environ.get("HANSARD_SEED", "1")))
    arguments = (*("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", store_url),)
    with serve_process(*arguments, module=MODULE) as process:
        address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
        port = int(address.rpartition(":")[2])
        artifact_id = await prepare(address)
        # What is loaded and allocated once is nobody's leak.
        for number in range(warm_up):
            await one_round(address, artifact_id, KINDS[number % len(KINDS)], rng)
        before = await settled(process, port)
        for number in range(rounds):
            await one_round(address, artifact_id, KINDS[number % len(KINDS)], rng)
        after = await settled(process, port, before)
        print(f"before: {before}\nafter:  {after}")  # noqa: T201 - the figures
        assert (after.clients, after.calls, after.feeds, after.turns) == (0, 0, 0, 0)
        assert is_back(after, before)
        assert after.connections <= POOL_MAX
        assert after.threads <= before.threads + POOL_MAX
        grown = after.memory_bytes - before.memory_bytes
        assert grown < MEMORY_GROWS_LESS_THAN_BYTES
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    # What the broken uploads have sent is not left behind either.
    left = [path for path in (folder / "artifacts").rglob("*") if path.is_file()]
    assert len(left) == 1, left


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


async def test_clients_that_go_away_leave_nothing(store_url: str, tmp_path: Path) -> None:
    await run(store_url, tmp_path, warm_up=40, rounds=80)


@pytest.mark.soak
async def test_500_clients_of_each_kind_that_go_away_leave_nothing(
    store_url: str, tmp_path: Path
) -> None:
    await run(store_url, tmp_path, warm_up=400, rounds=500 * len(KINDS))
