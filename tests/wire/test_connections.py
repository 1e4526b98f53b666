"""Connections that are no client's of gRPC: pings without end, headers without end, silence."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import h2.errors
import h2.events
import pytest

from hansard.v1 import agent_service_pb2
from tests.support.certificates import Authority
from tests.support.databases import Databases
from tests.support.http2 import PATIENCE_S, frame, header, raw_connection
from tests.support.server import Running, failure, make_settings, running_server
from tests.wire.test_tls import serving

LIST_AGENTS = "hansard.v1.AgentService/ListAgents"
MAX_STREAMS = 5


@pytest.fixture
async def limited(databases: Databases, tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server with a low limit of streams for a connection."""
    settings = make_settings(
        tmp_path / "data", databases.migrated("sqlite"), connection_max_streams=MAX_STREAMS
    )
    async with running_server(settings) as running:
        yield running


async def test_client_that_pings_too_often_is_sent_away(plain: Running) -> None:
    async with raw_connection(plain.server.address) as connection:
        gone: list[h2.events.ConnectionTerminated] = []
        while not gone:
            connection.h2.ping(b"12345678")
            await connection.flush()
            await connection.receive()
            gone = [e for e in connection.events if isinstance(e, h2.events.ConnectionTerminated)]
        assert gone[0].error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        assert gone[0].additional_data == b"too_many_pings"
        pings = [e for e in connection.events if isinstance(e, h2.events.PingAckReceived)]
        # Two too many are forgiven, and grpc counts anew after each frame that it sends by itself,
        # of which a connection begins with two.
        assert len(pings) <= 8
        await connection.wait_closed()
    # It alone was sent away.
    await plain.agents.ListAgents(agent_service_pb2.ListAgentsRequest())


async def test_frame_that_says_it_is_too_large_is_refused_unread(plain: Running) -> None:
    async with raw_connection(plain.server.address) as connection:
        # One past grpc's own limit, of which not even the beginning is sent.
        length = 2 * 4 * 1024 * 1024 + 1
        stream = await connection.start_call(LIST_AGENTS)
        await connection.send(stream, frame(b"", length=length))
        await connection.wait_for(h2.events.StreamEnded)
        status = header(connection.events, stream, "grpc-status")
        assert status == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])


async def test_headers_without_end_are_refused(plain: Running) -> None:
    for size_bytes, passes in ((15_000, True), (33_000, False)):
        call = plain.agents.ListAgents(
            agent_service_pb2.ListAgentsRequest(), metadata=(("x-much", "x" * size_bytes),)
        )
        if passes:
            await call
        else:
            assert (await failure(call)).code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_connection_takes_so_many_streams_and_no_more(limited: Running) -> None:
    async with raw_connection(limited.server.address) as connection:
        said = connection.h2.remote_settings.max_concurrent_streams
        assert said == MAX_STREAMS
        for _ in range(MAX_STREAMS):
            await connection.start_call(LIST_AGENTS)
        # One who does not listen to that.
        connection.h2.remote_settings.max_concurrent_streams = 2 * MAX_STREAMS
        connection.h2.remote_settings.acknowledge()
        stream = await connection.start_call(LIST_AGENTS)
        refused = await connection.wait_for(h2.events.StreamReset)
        assert refused.stream_id == stream
        assert refused.error_code == h2.errors.ErrorCodes.REFUSED_STREAM


@pytest.mark.parametrize("secured", [False, True])
async def test_silent_connection_is_closed(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, secured: bool
) -> None:
    monkeypatch.setattr("hansard_server.app.listener._HANDSHAKE_TIMEOUT_MS", 300)
    settings = make_settings(tmp_path / "data", databases.migrated("sqlite"))
    tls = Authority("ours").issue().write(tmp_path) if secured else {}
    async with serving(settings, **tls) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        if secured:
            # The first half of what TLS begins with.
            hello = client_hello()
            writer.write(hello[: len(hello) // 2])
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(1_000):
                pass
        writer.close()


async def test_idle_connection_is_closed_and_its_client_notices_nothing(
    databases: Databases, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path / "data", databases.migrated("sqlite"), connection_idle_s=1)
    async with running_server(settings) as running:
        request = agent_service_pb2.ListAgentsRequest()
        await running.agents.ListAgents(request)
        async with raw_connection(running.server.address) as connection:
            gone = await connection.wait_for(h2.events.ConnectionTerminated)
            assert gone.additional_data == b"connection idle"
        await running.agents.ListAgents(request)


def client_hello() -> bytes:
    """Return what a client of TLS sends first."""
    sent, received = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(received, sent, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()
