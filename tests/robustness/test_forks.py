"""Forks of servers that are killed, and of sessions that are written to all the time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import create_engine, func, select

from hansard.v1 import (
    event_pb2,
    event_service_pb2,
    paging_pb2,
    session_pb2,
    session_service_pb2,
)
from hansard_server import failpoints
from hansard_server.repository.sql import tables
from tests.robustness.test_failpoints import arguments, connect, upload
from tests.support.invariants import check_store
from tests.support.server import make_settings, running_server, serve_process
from tests.support.talk import Talk, check_turn, rating

EVENTS = 600


def create(talk: Talk, key: str = "fork", **fields: Any) -> Any:
    """Return the running call that forks the session."""
    origin = session_pb2.FromSession(session_key=talk.session_key)
    return talk.server.sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key=talk.agent_key, key=key, name="Fork", from_session=origin, **fields
        )
    )


async def until(holds: Callable[[], bool]) -> None:
    """Return as soon as it holds."""
    async with asyncio.timeout(60):
        while True:
            if await asyncio.to_thread(holds):
                return
            await asyncio.sleep(0.05)


async def fill(talk: Talk, count: int, payload: str = "") -> None:
    for _ in range(count // 200):
        await talk.append(*[rating(f'"{payload}"') for _ in range(200)])


def rows_beside(store_url: str, *uids: str) -> int:
    """Return how many events belong to none of the sessions."""
    engine = create_engine(store_url)
    statement = select(func.count()).where(tables.events.c.session_uid.not_in(uids))
    with engine.connect() as connection:
        count = connection.scalar(statement)
    engine.dispose()
    return int(count or 0)


@pytest.mark.parametrize(
    "point",
    [
        "fork.piece",
        "fork.copied",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("fork.begun", "fork.piece@3")),
    ],
)
async def test_killed_while_it_copies(store_url: str, tmp_path: Path, point: str) -> None:
    with serve_process(*arguments(tmp_path, store_url)) as process:
        channel, talk = await connect(process)
        await talk.begin()
        check_turn(await talk.send())
        await upload(talk)
        await fill(talk, EVENTS)
        await channel.__aexit__(None, None, None)
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    armed = {failpoints.VARIABLE: point}
    with serve_process(*arguments(tmp_path, store_url), environment=armed) as process:
        channel, talk = await connect(process)
        with pytest.raises(grpc.aio.AioRpcError):
            await create(talk, request_id="r")
        await channel.__aexit__(None, None, None)
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL, f"{point} is not reached"
    # Nothing but the copies is there, and they belong to nobody.
    check_store(store_url)
    eager = ("--set", "sweep_interval_s=0.1")
    with serve_process(*arguments(tmp_path, store_url), *eager) as process:
        channel, talk = await connect(process)
        source = await talk.events()
        listed = await talk.server.sessions.ListSessions(
            session_service_pb2.ListSessionsRequest(agent_key=talk.agent_key)
        )
        assert [session.key for session in listed.sessions] == [talk.session_key]
        # On PostgreSQL the other process might live: it is waited for until its lease has run out.
        async with asyncio.timeout(60):
            made = await create(talk, request_id="r")
        assert made == await create(talk, request_id="r")
        assert made.last_sequence == len(source)
        copies = await talk.another("fork").events()
        assert [event.id for event in copies] == [event.id for event in source]
        uids = (made.uid, listed.sessions[0].uid)
        await until(lambda: rows_beside(store_url, *uids) == 0)
        await channel.__aexit__(None, None, None)
    check_store(store_url)


async def fork_under_writers(
    store_url: str, folder: Path, count: int, payload: str
) -> tuple[float, list[float], list[float]]:
    """Fork while the source, and a session that nobody forks, are written to.

    Return how long it took in seconds, and how long appends did before and meanwhile.
    """
    async with running_server(make_settings(folder / "data", store_url)) as server:
        talk = await Talk(server).begin()
        await fill(talk, count, payload)
        other = await talk.another("other").open_session()
        stop = asyncio.Event()
        times: list[float] = []
        acknowledged = {talk.session_key: count, other.session_key: 0}

        async def write(to: Talk) -> None:
            while not stop.is_set():
                begun = time.perf_counter()
                (acknowledged[to.session_key],) = await to.append(rating())
                times.append(time.perf_counter() - begun)

        writers = [asyncio.create_task(write(one)) for one in (talk, other)]
        await until(lambda: len(times) >= 200)
        before, start = list(times), acknowledged[talk.session_key]
        times.clear()
        begun = time.perf_counter()
        made = await create(talk, request_id="r")
        took = time.perf_counter() - begun
        meanwhile, end = list(times), acknowledged[talk.session_key]
        stop.set()
        await asyncio.gather(*writers)
        # What was acknowledged before is in it, and nothing that began when it was there.
        assert start <= made.last_sequence <= end + 1
        fork = talk.another("fork")
        async with asyncio.timeout(60):
            assert await last(fork) == made.last_sequence
            (sequence,) = await fork.append(rating())
        assert sequence == made.last_sequence + 1
    check_store(store_url)
    return took, before, meanwhile


async def last(talk: Talk) -> int:
    """Return the last sequence of a session, as its events say."""
    request = event_service_pb2.ListEventsRequest(
        page_size=1, order=paging_pb2.SORT_ORDER_DESCENDING, **talk.keys
    )
    newest: event_pb2.Event = (await talk.server.events.ListEvents(request)).events[0]
    return newest.sequence


async def test_writers_go_on_while_a_fork_is_copied(store_url: str, tmp_path: Path) -> None:
    _, _, meanwhile = await fork_under_writers(store_url, tmp_path, 4_000, "x" * 200)
    # 40 pieces; whoever waited for all of them would write twice at most.
    assert len(meanwhile) >= 8


@pytest.mark.soak
async def test_writers_go_on_while_100_000_events_are_copied(
    store_url: str, tmp_path: Path
) -> None:
    took, before, meanwhile = await fork_under_writers(store_url, tmp_path, 100_000, "x" * 500)
    p99_before, p99 = (sorted(t)[int(len(t) * 0.99)] for t in (before, meanwhile))
    print(  # noqa: T201 - a figure for people
        f"100,000 events in {took:.1f} s; {len(meanwhile) / took:.0f} appends/s meanwhile, "
        f"p99 {p99 * 1000:.1f} ms, before {p99_before * 1000:.1f} ms, "
        f"longest {max(meanwhile) * 1000:.0f} ms"
    )
    assert len(meanwhile) >= 400  # as many as there are pieces
    assert max(meanwhile) < took / 10
