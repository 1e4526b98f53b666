"""Files of any size pass through a server whose memory hardly moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from tests.support.server import open_channel, serve_process

MIB = 1024 * 1024
FILE_BYTES = 300 * MIB
WARM_UP_BYTES = 64 * MIB
MOVES_LESS_THAN_BYTES = 32 * MIB
CHUNK_BYTES = MIB
"""The largest that an upload may have."""
BLOCK_BYTES = 256 * 1024
"""A chunk of a download."""
AGENT_KEY, SESSION_KEY = "agent", "session"

_FILLING = bytes(range(256)) * 1023 + bytes(248)

Part = artifact_service_pb2.UploadArtifactsRequest


class Memory:
    """The resident memory of a process, as Linux counts it."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self._before = 0

    def begin(self) -> None:
        """Let the peak be what is resident now."""
        (self._folder / "clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def moved_bytes(self) -> int:
        """Return how far the peak has risen since `begin`."""
        return self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} in {self._folder}/status")


def block(number: int) -> bytes:
    """Return the file's block of this number; no two are equal."""
    return number.to_bytes(8, "big") + _FILLING


async def upload(stub: artifact_service_pb2_grpc.ArtifactServiceAsyncStub, size_bytes: int) -> str:
    """Upload a file in the largest chunks that there are; return its artifact's id."""
    per_chunk = CHUNK_BYTES // BLOCK_BYTES

    async def parts() -> AsyncIterator[Part]:
        yield Part(
            start=artifact_service_pb2.UploadStart(agent_key=AGENT_KEY, session_key=SESSION_KEY)
        )
        yield Part(header=artifact_service_pb2.UploadHeader(filename="large.bin"))
        for first in range(0, size_bytes // BLOCK_BYTES, per_chunk):
            yield Part(chunk=b"".join(block(first + number) for number in range(per_chunk)))

    event = await stub.UploadArtifacts(parts())
    return event.artifact_upload.artifacts[0].artifact_id


async def download(
    stub: artifact_service_pb2_grpc.ArtifactServiceAsyncStub, artifact_id: str
) -> int:
    """Download a file, of which every block must be what was sent; return its size."""
    request = artifact_service_pb2.DownloadArtifactRequest(
        agent_key=AGENT_KEY, session_key=SESSION_KEY, artifact_id=artifact_id
    )
    blocks = 0
    async for part in stub.DownloadArtifact(request):
        if part.HasField("chunk"):
            assert part.chunk == block(blocks), f"block {blocks} is not what was sent"
            blocks += 1
    return blocks * BLOCK_BYTES


async def create_session(channel: grpc.aio.Channel) -> None:
    agents: agent_service_pb2_grpc.AgentServiceAsyncStub
    agents = agent_service_pb2_grpc.AgentServiceStub(channel)
    await agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key=AGENT_KEY, name="Agent", model=agent_pb2.Model(name="hansard/scripted")
        )
    )
    sessions: session_service_pb2_grpc.SessionServiceAsyncStub
    sessions = session_service_pb2_grpc.SessionServiceStub(channel)
    await sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key=AGENT_KEY, key=SESSION_KEY, name="Session"
        )
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
async def test_a_file_of_300_mib_moves_the_servers_memory_by_less_than_32(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with serve_process("--listen", "127.0.0.1:0", "--data-dir", data) as served:
        address = served.wait_for("serving")["address"]
        async with open_channel(address) as channel:
            await create_session(channel)
            stub: artifact_service_pb2_grpc.ArtifactServiceAsyncStub
            stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
            # What is loaded, and allocated once, by the first transfer is not the file's.
            artifact_id = await upload(stub, WARM_UP_BYTES)
            assert await download(stub, artifact_id) == WARM_UP_BYTES

            memory = Memory(served.process.pid)
            memory.begin()
            artifact_id = await upload(stub, FILE_BYTES)
            up = memory.moved_bytes()
            memory.begin()
            received = await download(stub, artifact_id)
            down = memory.moved_bytes()
    assert received == FILE_BYTES
    assert up < MOVES_LESS_THAN_BYTES
    assert down < MOVES_LESS_THAN_BYTES
