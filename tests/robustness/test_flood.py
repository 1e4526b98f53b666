"""Clients that send as much as they can: the server's memory stays within what was said."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import h2.exceptions
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hansard.v1 import agent_service_pb2, agent_service_pb2_grpc
from tests.robustness.test_memory import Memory
from tests.support.http2 import RawConnection, frame, raw_connection
from tests.support.server import open_channel, serve_process

MIB = 1024 * 1024
CONNECTIONS = 100
STREAMS = 10
REQUEST_MAX_BYTES = MIB
METHODS = ("hansard.v1.EventService/AppendEvents", "hansard.v1.ArtifactService/UploadArtifacts")
# 64 requests and 100 uploads, a frame each, and of 1,000 calls what comes unasked, 64 KiB; twice,
# since what is freed is not given back at once.
BOUND_BYTES = 2 * ((64 + 100) * 2 * REQUEST_MAX_BYTES + 1_000 * 64 * 1024)


async def push(connection: RawConnection, stream: int, data: bytes) -> None:
    sent = 0
    while sent < len(data) and not connection.closed:
        try:
            more = await connection.send(stream, data[sent:])
        except (h2.exceptions.ProtocolError, ConnectionError):
            return
        sent += more
        if not more:
            try:
                async with asyncio.timeout(0.3):
                    await connection.receive()
            except TimeoutError:
                return


async def test_memory_is_bounded_whatever_a_hundred_connections_send(tmp_path: Path) -> None:
    arguments = ("--listen=127.0.0.1:0", f"--data-dir={tmp_path}", "--insecure")
    limit = f"request_max_bytes={REQUEST_MAX_BYTES}"
    # Of each frame all but the last byte, so that nothing is ever done with it.
    whole = 2 * REQUEST_MAX_BYTES
    data = frame(bytes(whole - 6), length=whole - 5)
    with serve_process(*arguments, "--set", limit) as served:
        address = served.wait_for("serving")["address"]
        async with open_channel(address) as channel:
            agents = agent_service_pb2_grpc.AgentServiceStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)
            await agents.ListAgents(agent_service_pb2.ListAgentsRequest())
            memory = Memory(served.process.pid)
            memory.begin()
            async with AsyncExitStack() as connections:
                for method in METHODS:
                    opened = [
                        await connections.enter_async_context(raw_connection(address))
                        for _ in range(CONNECTIONS)
                    ]
                    await asyncio.gather(*(flood(each, method, data) for each in opened))
                assert memory.moved_bytes() < BOUND_BYTES
                # Probes are answered all the while.
                assert (await health.Check(health_pb2.HealthCheckRequest())).status
            # When they have gone, there is room again.
            async with asyncio.timeout(60):
                while await is_refused(agents):  # noqa: ASYNC110 - nobody says when
                    await asyncio.sleep(0.05)


async def is_refused(agents: agent_service_pb2_grpc.AgentServiceAsyncStub) -> bool:
    call: Any = agents.ListAgents(agent_service_pb2.ListAgentsRequest())
    code = await call.code()
    assert code in {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    return code is not grpc.StatusCode.OK


async def flood(connection: RawConnection, method: str, data: bytes) -> None:
    """Start calls, and send as much of the data in each as the server takes."""
    for _ in range(STREAMS):
        try:
            stream = await connection.start_call(method)
        except (h2.exceptions.ProtocolError, ConnectionError):
            break
        await push(connection, stream, data)
