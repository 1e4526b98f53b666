"""A server that stops: what is told, what finishes, what is cut off, and when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hansard.v1 import agent_service_pb2, agent_service_pb2_grpc
from hansard_server.app import Server
from hansard_server.lifecycle import Calls, Closers, Drain
from tests.support.databases import Databases
from tests.support.server import failure, make_settings, open_channel, running_server
from tests.wire.conftest import agent_request

T = TypeVar("T")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_running_call_finishes_and_new_ones_are_refused(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, databases.migrated("sqlite"), drain_notice_s=0.2)
    async with running_server(settings) as running:
        may_go, reached = asyncio.Event(), asyncio.Event()
        hold(running.server, monkeypatch, may_go, reached)
        health: Any = health_pb2_grpc.HealthStub(running.channel)
        call = running.agents.CreateAgent(agent_request(key="a"))
        await reached.wait()
        stopping = asyncio.create_task(running.server.stop())
        await running.server.drain.started.wait()
        refused = await failure(
            running.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key="a"))
        )
        assert (refused.reason, refused.retry_s) == ("SERVER_SHUTTING_DOWN", 1.0)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        assert not stopping.done()
        may_go.set()
        assert (await call).key == "a"
        await stopping


def hold(
    server: Server, monkeypatch: pytest.MonkeyPatch, may_go: asyncio.Event, reached: asyncio.Event
) -> None:
    """Have every write of the server wait."""
    from hansard_server.repository.sql.store import SqlStore  # noqa: PLC0415 - for this one

    write = SqlStore.write

    async def held(self: SqlStore, decide: Callable[[Any], T]) -> T:
        reached.set()
        await may_go.wait()
        return await write(self, decide)

    monkeypatch.setattr(SqlStore, "write", held)
    assert server.address


async def test_streams_end_themselves_at_once(databases: Databases, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, databases.migrated("sqlite"), drain_deadline_s=30)
    server = await Server.start(settings)
    async with open_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        reflection = stub.ServerReflectionInfo()
        await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await reflection.read()).list_services_response.service
        started = time.monotonic()
        await server.stop()
        # Cut off, they would end after some 18 s.
        assert time.monotonic() - started < 10
        assert (await watch.read()).status == NOT_SERVING
        for stream in (watch, reflection):
            refused = await failure(stream.read())
            assert refused.reason == "SERVER_SHUTTING_DOWN"


async def test_call_that_does_not_end_is_cut_off(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, databases.migrated("sqlite"), drain_deadline_s=1)
    server = await Server.start(settings)
    reached = asyncio.Event()
    hold(server, monkeypatch, asyncio.Event(), reached)
    async with open_channel(server.address) as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        call = asyncio.ensure_future(failure(stub.CreateAgent(agent_request())))
        await reached.wait()
        started = time.monotonic()
        await server.stop()
        # The deadline, and what a busy machine needs; nothing else would ever end it.
        assert time.monotonic() - started < 5
        assert (await call).code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_health_follows_the_store(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hansard_server.repository.sql.store import SqlStore  # noqa: PLC0415 - for this one

    works = True

    async def check(_store: SqlStore) -> None:
        if not works:
            raise OSError("no database")

    monkeypatch.setattr(SqlStore, "check", check)
    settings = make_settings(tmp_path, databases.migrated("sqlite"), health_interval_s=0.01)
    async with running_server(settings) as running:
        health: Any = health_pb2_grpc.HealthStub(running.channel)
        services = ["", "hansard.v1.AgentService", "hansard.v1.SessionService"]
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=s)) for s in services]
        for expected in (SERVING, NOT_SERVING, SERVING):
            works = expected == SERVING
            for watch in watches:
                assert (await watch.read()).status == expected
            for service in services:
                checked = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert checked.status == expected
        unknown = health_pb2.HealthCheckRequest(service="hansard.v1.NoService")
        assert (await failure(health.Check(unknown))).code is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(unknown)
        response = await watch.read()
        assert response.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        for open_watch in (*watches, watch):
            open_watch.cancel()


async def test_drain_wakes_what_waits_and_keeps_its_deadline() -> None:
    drain = Drain()
    assert Drain().remaining_s is None
    assert await drain.unless_started(lambda: asyncio.sleep(0, "done")) == "done"
    with pytest.raises(StopAsyncIteration):
        await drain.unless_started(lambda: anext(empty()))
    with pytest.raises(TimeoutError):
        await drain.unless_started(fails)
    waiting = asyncio.ensure_future(drain.unless_started(asyncio.Event().wait))
    await asyncio.sleep(0)
    drain.begin(5)
    drain.begin(500)
    with pytest.raises(Exception, match="stopping"):
        await waiting
    with pytest.raises(Exception, match="stopping"):
        await drain.unless_started(lambda: asyncio.sleep(0))
    assert 4 < (drain.remaining_s or 0) <= 5


async def empty() -> AsyncIterator[int]:
    """Yield nothing."""
    for number in range(0):
        yield number


async def fails() -> None:
    raise TimeoutError


async def test_closers_run_in_reverse_under_one_deadline() -> None:
    closers = Closers()
    closed: list[str] = []

    def closer(name: str, wait_s: float = 0) -> Callable[[], Awaitable[None]]:
        async def close() -> None:
            await asyncio.sleep(wait_s)
            closed.append(name)

        return close

    async def broken() -> None:
        closed.append("broken")
        raise OSError

    closers.add("first", closer("first"))
    closers.add("broken", broken)
    closers.add("last", closer("last"))
    await closers.close(5)
    assert closed == ["last", "broken", "first"]
    closers.add("after", closer("after"))
    closers.add("hangs", closer("hangs", 3600))
    started = time.monotonic()
    await closers.close(0.2)
    assert time.monotonic() - started < 10
    assert "hangs" not in closed


async def test_calls_are_counted() -> None:
    calls = Calls()
    assert await calls.finish(0)
    with calls:
        assert not await calls.finish(0.01)
    assert await calls.finish(0)
