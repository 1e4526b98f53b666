"""Sessions go when their time has run out, and what was deleted leaves no rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from pathlib import Path

from sqlalchemy import func, select

from hansard.v1 import agent_service_pb2, session_service_pb2
from hansard_server.domain.clock import MICROSECONDS_PER_HOUR, MICROSECONDS_PER_MINUTE, now_us
from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.tables import agents, session_heads, sessions
from hansard_server.resources.sweeper import Sweeper
from tests.support.server import failure, make_settings, running_server
from tests.support.talk import Talk
from tests.wire.conftest import agent_request

Create = session_service_pb2.CreateSessionRequest
Get = session_service_pb2.GetSessionRequest


class Clock:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def __call__(self) -> int:
        return now_us() + self.ahead_us


async def test_expired_session_is_deleted_and_its_rows_removed(
    store_url: str, tmp_path: Path
) -> None:
    clock = Clock()
    settings = make_settings(tmp_path, store_url, sweep_interval_s=3600)
    async with running_server(settings) as running:
        await running.agents.CreateAgent(agent_request(key="a"))
        for key, minutes in (("never", 0), ("soon", 1), ("late", 2)):
            await running.sessions.CreateSession(
                Create(agent_key="a", key=key, name="x", tti_minutes=minutes, request_id=key)
            )
        sweeping = await SqlStore.open(store_url, clock=clock)
        sweeper = Sweeper(sweeping, interval_s=3600, keep_deleted_s=7200, clock=clock)
        assert await sweeper.sweep() == 0
        clock.ahead_us = MICROSECONDS_PER_MINUTE * 3 // 2
        # Two at once delete it once.
        assert sum(await asyncio.gather(sweeper.sweep(), sweeper.sweep())) == 1
        gone = await failure(running.sessions.GetSession(Get(agent_key="a", session_key="soon")))
        assert gone.reason == "SESSION_NOT_FOUND"
        for key in ("never", "late"):
            await running.sessions.GetSession(Get(agent_key="a", session_key=key))
        clock.ahead_us = MICROSECONDS_PER_HOUR
        assert await sweeper.sweep() == 1
        listed = session_service_pb2.ListSessionsRequest(agent_key="a")
        assert [s.key for s in (await running.sessions.ListSessions(listed)).sessions] == ["never"]
        # The request_id is remembered as long as was said.
        again = Create(agent_key="a", key="soon", name="x", tti_minutes=1, request_id="soon")
        first = await running.sessions.CreateSession(again)
        assert (
            await failure(
                running.sessions.CreateSession(
                    Create(agent_key="a", name="other", request_id="soon")
                )
            )
        ).reason == "REQUEST_ID_REUSED"
        clock.ahead_us = 4 * MICROSECONDS_PER_HOUR
        await sweeper.sweep()
        assert (await running.sessions.CreateSession(again)).uid != first.uid
        await running.agents.DeleteAgent(agent_service_pb2.DeleteAgentRequest(agent_key="a"))
        # First its sessions are deleted; their rows, and then its own, go when theirs is over. What
        # the server's own sweep has locked just then is left to the next round.
        async with asyncio.timeout(30):
            while any(count_rows(store_url)):
                clock.ahead_us += 4 * MICROSECONDS_PER_HOUR
                await sweeper.sweep()
        await sweeping.close()


def count_rows(store_url: str) -> list[int]:
    """Return how many agents, sessions and heads there are, deleted ones too."""
    engine = make_engine(store_url)
    with engine.connect() as connection:
        counts = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (agents, sessions, session_heads)
        ]
    engine.dispose()
    return counts


async def test_sessions_of_a_deleted_agent_end_soon(store_url: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, store_url, sweep_interval_s=3600)
    async with running_server(settings) as running:
        talk = await Talk(running).begin()
        stream, _ = await talk.hold()
        watch = talk.watch(after_sequence=2)
        other = await talk.another("other").open_session()
        other_watch = other.watch()
        await asyncio.gather(watch.initial_metadata(), other_watch.initial_metadata())
        await running.agents.DeleteAgent(agent_service_pb2.DeleteAgentRequest(agent_key="agent"))
        async with asyncio.timeout(30):
            for call in (watch, other_watch, stream):
                assert (await failure(_all(call))).reason == "SESSION_NOT_FOUND"
            # The turn is held for a minute, but nobody has use of it.
            tasks = [t for t in asyncio.all_tasks() if t.get_name().startswith("turn-trn_")]
            await asyncio.gather(*tasks, return_exceptions=True)


async def _all(call: AsyncIterable[object]) -> list[object]:
    return [item async for item in call]


async def test_server_sweeps_by_itself(store_url: str, tmp_path: Path) -> None:
    """The loop goes on after a round that failed."""
    settings = make_settings(tmp_path, store_url, sweep_interval_s=3600)
    failed = asyncio.Event()
    async with running_server(settings) as running:
        await running.agents.CreateAgent(agent_request(key="a"))
        await running.sessions.CreateSession(
            Create(agent_key="a", key="s", name="x", tti_minutes=1)
        )
        clock = Clock()
        clock.ahead_us = MICROSECONDS_PER_HOUR
        store = await SqlStore.open(store_url, clock=clock)

        def broken_once() -> int:
            if not failed.is_set():
                failed.set()
                raise OSError
            return clock()

        sweeper = Sweeper(store, interval_s=0.01, keep_deleted_s=0, clock=broken_once)
        task = asyncio.create_task(sweeper.run())
        request = Get(agent_key="a", session_key="s")
        async with asyncio.timeout(20):
            while True:
                listed = await running.sessions.ListSessions(
                    session_service_pb2.ListSessionsRequest(agent_key="a")
                )
                if not listed.sessions:
                    break
                await asyncio.sleep(0.01)
        assert failed.is_set()
        assert (await failure(running.sessions.GetSession(request))).reason == "SESSION_NOT_FOUND"
        task.cancel()
        await asyncio.wait([task])
        await store.close()
