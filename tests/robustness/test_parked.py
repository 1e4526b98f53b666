"""Readers that take one message and stop: they hold no connection and no memory that grows, nobody
else notices, and when they go on, or come back, they miss nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import artifact_service_pb2, event_pb2
from tests.support.measured import MODULE, look, settled
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import TWENTY_DELTAS, Talk, items, output, rating

MIB = 1024 * 1024
WATCHES = 12
DOWNLOADS = 6
FILE_MIB = 12
FIXED_WINDOW = ("grpc.http2.bdp_probe", 0)
"""Else a reader's window grows with what it is sent, and a whole file fits into it."""
GROWS_LESS_THAN_BYTES = 8 * MIB
"""While 16 MiB more are written: each of these readers has not read as many."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


class Parked:
    """A reader on a connection of its own that has read one message."""

    def __init__(self, talk: Talk, call: Any) -> None:
        self.talk = talk
        self.call = call
        self.source = aiter(call)
        self.first: Any = None

    async def park(self) -> Parked:
        self.first = await anext(self.source)
        return self


async def upload(talk: Talk) -> tuple[str, bytes]:
    """Upload a file; return its id and SHA-256."""
    part = artifact_service_pb2.UploadArtifactsRequest
    digest = hashlib.sha256()

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield part(start=artifact_service_pb2.UploadStart(**talk.keys))
        yield part(header=artifact_service_pb2.UploadHeader(filename="a.bin"))
        for number in range(FILE_MIB):
            chunk = bytes([number]) * MIB
            digest.update(chunk)
            yield part(chunk=chunk)

    event = await talk.server.artifacts.UploadArtifacts(parts())
    return event.artifact_upload.artifacts[0].artifact_id, digest.digest()


async def write(talk: Talk, mebibytes: int) -> None:
    """Write so much, and have a turn for each mebibyte."""
    for _ in range(mebibytes):
        await talk.append(*[output("x" * (MIB // 2)) for _ in range(2)])
        assert items(await talk.send())[-1] == "turn_end"


async def rest(parked: Parked, last_sequence: int) -> list[event_pb2.Event]:
    """Return all events that a watch has, up to the last."""
    events = [parked.first.event] if parked.first.HasField("event") else []
    while not events or events[-1].sequence < last_sequence:
        response = await anext(parked.source)
        if response.HasField("event"):
            events.append(response.event)
    return events


async def park_and_go_on(address: str, process: ServeProcess) -> None:
    server: Any = None
    port = int(address.rpartition(":")[2])
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(address))
        talk = await Talk(Running(server, channel)).begin(TWENTY_DELTAS)
        artifact_id, digest = await upload(talk)
        await write(talk, 10)
        parked = []
        for number in range(WATCHES + DOWNLOADS):
            own = await stack.enter_async_context(open_channel(address, FIXED_WINDOW))
            mine = Talk(Running(server, own))
            request = artifact_service_pb2.DownloadArtifactRequest(
                artifact_id=artifact_id, **mine.keys
            )
            call = (
                mine.watch(include_deltas=bool(number % 2))
                if number < WATCHES
                else mine.server.artifacts.DownloadArtifact(request)
            )
            parked.append(await Parked(mine, call).park())

        await write(talk, 6)
        before = await look(process, port)
        await write(talk, 16)
        after = await look(process, port)
        assert after.calls == after.clients - 1 == len(parked)
        # The writer's own.
        assert after.connections_held <= 1
        grown = after.memory_bytes - before.memory_bytes
        print(f"before: {before}\nafter:  {after}")  # noqa: T201 - the figures
        assert grown < GROWS_LESS_THAN_BYTES

        (last,) = await talk.append(rating())
        wanted = list(range(1, last + 1))
        for number, reader in enumerate(parked[:WATCHES]):
            if number % 3:
                events = await rest(reader, last)
            else:
                # Its connection is lost, and it comes back for what it has not seen.
                seen = [reader.first.event] if reader.first.HasField("event") else []
                reader.call.cancel()
                again = await Parked(talk, talk.watch(len(seen))).park()
                events = seen + await rest(again, last)
                again.call.cancel()
            assert [event.sequence for event in events] == wanted
            reader.call.cancel()
        for reader in parked[WATCHES:]:
            got = hashlib.sha256()
            async for response in reader.source:
                got.update(response.chunk)
            assert got.digest() == digest


async def test_readers_that_stop_harm_nobody_and_miss_nothing(
    store_url: str, tmp_path: Path
) -> None:
    with serve_process(
        *("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), "--store", store_url),
        # They are to stay, as long as this test may take.
        *("--set", "stall_s=0"),
        module=MODULE,
    ) as process:
        address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
        port = int(address.rpartition(":")[2])
        await park_and_go_on(address, process)
        idle = await settled(process, port)
        assert (idle.clients, idle.calls, idle.feeds) == (0, 0, 0)
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
