"""Rates and caps of keys and agents: at their boundary, one past it, and over replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from hansard.v1 import (
    agent_service_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
)
from hansard_server.servicers.rate_limits import KeyLimits
from tests.support.databases import Databases
from tests.support.server import DETAILS_KEY, Running, failure, make_settings, running_server
from tests.support.talk import Talk, rating
from tests.wire.conftest import agent_request
from tests.wire.test_interceptors import request, running_bench

SLOW = 0.25
"""One at once, and one more every 4 s."""
INTERVAL_S = 4.0


@asynccontextmanager
async def running(folder: Path, url: str, **limits: object) -> AsyncIterator[Running]:
    async with running_server(make_settings(folder, url, **limits)) as server:
        yield server


async def create(server: Running, agent_key: str, key: str = "", request_id: str = "") -> Any:
    return await server.sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key=agent_key, key=key, name="S", request_id=request_id
        )
    )


async def listed(server: Running, agent_key: str) -> list[session_pb2.Session]:
    response = await server.sessions.ListSessions(
        session_service_pb2.ListSessionsRequest(agent_key=agent_key)
    )
    return list(response.sessions)


async def test_sessions_of_an_agent_have_a_rate(store_url: str, tmp_path: Path) -> None:
    async with running(tmp_path, store_url, agent_max_sessions_per_s=SLOW) as server:
        for key in ("a", "b"):
            await server.agents.CreateAgent(agent_request(key=key))
        await create(server, "a")
        refused = await failure(create(server, "a"))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason == "RATE_LIMIT_EXCEEDED"
        assert refused.message == "too many new sessions of agent a: at most 0.25 a second"
        assert refused.retry_s is not None
        assert 0 < refused.retry_s <= INTERVAL_S
        # Other agents and other calls are free of it, and nothing is left of what was refused.
        await create(server, "b")
        assert len(await listed(server, "a")) == 1
        # Who waits as long as it is told gets in.
        await asyncio.sleep(refused.retry_s)
        await create(server, "a")


async def test_two_replicas_share_a_rate(databases: Databases, tmp_path: Path) -> None:
    url = databases.migrated("postgresql")
    limits = {"agent_max_sessions_per_s": 0.01}
    async with (
        running(tmp_path / "one", url, **limits) as one,
        running(tmp_path / "two", url, **limits) as two,
    ):
        await one.agents.CreateAgent(agent_request(key="a"))
        await create(one, "a")
        refused = await failure(create(two, "a"))
        assert refused.reason == "RATE_LIMIT_EXCEEDED"
        assert refused.retry_s is not None
        assert 90 < refused.retry_s <= 100
    databases.drop(url)


async def test_default_is_a_hundred_sessions_a_second(databases: Databases, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, databases.migrated("sqlite"))
    default = type(settings).model_fields["agent_max_sessions_per_s"].default
    assert default == 100
    settings = settings.model_copy(update={"agent_max_sessions_per_s": default})
    async with running_server(settings) as server:
        await server.agents.CreateAgent(agent_request(key="a"))
        loop = asyncio.get_running_loop()
        started, made = loop.time(), 0
        refused = None
        while refused is None:
            results = await asyncio.gather(
                *(create(server, "a") for _ in range(60)), return_exceptions=True
            )
            refused = next((r for r in results if isinstance(r, BaseException)), None)
            made += sum(not isinstance(result, BaseException) for result in results)
        assert 100 <= made <= 101 + 100 * (loop.time() - started)


async def test_inputs_of_an_agent_have_a_rate_and_interrupts_have_none(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.migrated("sqlite")
    async with running(tmp_path, url, agent_max_inputs_per_s=0.01) as server:
        talk = await Talk(server).begin()
        assert (await talk.send("hello"))[-1].HasField("turn_end")
        refused = await failure(talk.send("hello"))
        assert refused.reason == "RATE_LIMIT_EXCEEDED"
        stream = server.events.SendEvent(
            event_service_pb2.SendEventRequest(**talk.keys, interrupt={})
        )
        assert [item async for item in stream] == []


async def test_calls_of_a_key_have_a_rate(databases: Databases, tmp_path: Path) -> None:
    url = databases.migrated("sqlite")
    async with running(tmp_path, url, key_max_calls_per_s=0.01) as server:
        await server.agents.ListAgents(agent_service_pb2.ListAgentsRequest())
        refused = await failure(server.agents.ListAgents(agent_service_pb2.ListAgentsRequest()))
        assert refused.reason == "RATE_LIMIT_EXCEEDED"
        assert refused.message.startswith("too many calls of the key")


async def test_streams_of_a_key_have_a_cap(databases: Databases, tmp_path: Path) -> None:
    url = databases.migrated("sqlite")
    async with running(tmp_path, url, key_max_streams=3) as server:
        talk = await Talk(server).begin()
        watch = event_service_pb2.WatchEventsRequest(**talk.keys)
        streams = [server.events.WatchEvents(watch) for _ in range(3)]
        for stream in streams:
            await stream.read()
        one_more: Any = server.events.WatchEvents(watch)
        assert await one_more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = dict(await one_more.trailing_metadata())[DETAILS_KEY]
        quota = error_details_pb2.QuotaFailure()
        found = status_pb2.Status.FromString(details).details
        assert [True for detail in found if detail.Unpack(quota)] == [True]
        (violation,) = quota.violations
        assert (violation.quota_id, violation.quota_value) == ("key_max_streams", 3)
        assert violation.subject == "key:"
        # Calls that are no streams have a cap of their own.
        await talk.append(rating())
        streams.pop().cancel()
        async with asyncio.timeout(30):
            while await (again := server.events.WatchEvents(watch)).read() is grpc.aio.EOF:
                pass
        for stream in (*streams, again):
            stream.cancel()


async def test_calls_of_a_key_have_a_cap() -> None:
    async with running_bench(key_max_calls=2) as bench:
        calls = [
            asyncio.ensure_future(bench.call("unary_unary", request("slow"))) for _ in range(2)
        ]
        (keys,) = (part for part in bench.chain if isinstance(part, KeyLimits))
        async with asyncio.timeout(30):
            while sum(held.calls for held in keys._held.values()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        refused = await failure(bench.call("unary_unary", request("ok")))
        assert (refused.reason, refused.retry_s) == ("RATE_LIMIT_EXCEEDED", 1.0)
        # Streams have a cap of their own.
        await bench.call("unary_stream", request("ok"))
        bench.kinds.go_on.set()
        await asyncio.gather(*calls)
        await bench.call("unary_unary", request("ok"))
        await failure(bench.call("unary_unary", request("busy")))
        # Nothing is remembered of keys that hold nothing.
        async with asyncio.timeout(30):
            while keys._held:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_a_process_runs_so_many_turns(databases: Databases, tmp_path: Path) -> None:
    url = databases.migrated("sqlite")
    async with running(tmp_path, url, process_max_turns=2) as server:
        talk = await Talk(server).begin()
        turns = [talk, *[await talk.another(key).open_session() for key in ("t", "u")]]
        held = [await turns[0].hold(request_id="first"), await turns[1].hold()]
        refused = await failure(turns[2].send("hello"))
        assert (refused.reason, refused.retry_s) == ("RATE_LIMIT_EXCEEDED", 1.0)
        # The repeat of an input that was taken is no other input.
        joined = turns[0].stream("Wait.", request_id="first")
        assert (await joined.read()).turn_id == held[0][1]
        for each, (stream, turn_id) in zip(turns, held, strict=False):
            await each.release(turn_id)
            stream.cancel()
        joined.cancel()
        async with asyncio.timeout(30):
            while True:
                # The turns have ended when the engine has let go of them too.
                with suppress(grpc.aio.AioRpcError):
                    assert (await turns[2].send("hello"))[-1].HasField("turn_end")
                    break
